/** Clients of a simulated clone: what they ask for, and what they are told, as the history of its sectors. */
import { CloneError, DeviceError } from "../../src/base/errors.ts";
import type { ClientRead, SectorHistory } from "./sim-history.ts";
import type { Machine } from "./sim-machine.ts";
import type { SimRequest } from "./sim-scenario.ts";

/** What clients have seen. */
export interface Seen {
  reads: ClientRead[];
  /** One sentence for each answer that is wrong by itself, or is no operating error. */
  wrong: string[];
  /** Requests that failed with an operating error: what each was, and was told. */
  failures: string[];
  /** The destination may lose what it was given: once the clone has failed for it, only what was flushed is certain. */
  forgiving: boolean;
}

/** Sends the requests of one client; resolves when all of them are answered. */
export async function runClient(
  machine: Machine,
  history: SectorHistory,
  requests: readonly SimRequest[],
  name: string,
  seen: Seen,
): Promise<void> {
  const running: Promise<void>[] = [];
  for (const [index, request] of requests.entries()) {
    if (request.pauseMs > 0) await machine.clock.sleep(request.pauseMs);
    const what = `${name} ${index} ${request.kind}${"offset" in request ? ` ${request.offset}+${request.length}` : ""}`;
    const answered = send(machine, history, request, what, seen).then(
      () => machine.log.note(`${what}: done`, { answer: true }),
      (error: Error) => {
        machine.log.note(`${what}: ${error.message}`);
        const isRefused = error instanceof DeviceError && error.errno === "ENOTSUP"; // not fast, which is no failure
        if (!isRefused) seen.failures.push(`${what}: ${error.message}`);
        if (!(error instanceof CloneError)) seen.wrong.push(`${what}: ${error.stack ?? error.message}`);
      },
    );
    if (request.waits) await answered;
    else running.push(answered);
  }
  await Promise.all(running);
}

async function send(
  machine: Machine,
  history: SectorHistory,
  request: SimRequest,
  what: string,
  seen: Seen,
): Promise<void> {
  const { device, hydrator, log, commits } = machine;
  const saw = (offset: number, bytes: Buffer, begunAt: number): void => {
    const durableOnly = seen.forgiving && commits.failure !== undefined;
    seen.reads.push({ what, offset, bytes, begunAt, endedAt: log.moment(), durableOnly });
  };
  log.note(what);
  switch (request.kind) {
    case "flush": {
      const askedAt = log.moment();
      await device.flush();
      history.flushed(askedAt);
      return;
    }
    case "describe":
      return await machine.notebook?.write();
    case "commit":
      return await commits.commit();
    case "pause":
      return hydrator.pause();
    case "resume":
      return hydrator.resume();
    case "linear":
      device.becomeLinear();
      return;
    case "tune":
      hydrator.tune({ threshold: request.threshold, batchSize: request.batchSize });
      machine.governor.rate = request.rate;
      device.hydrateOnRead = request.onRead;
      return;
    case "hint":
      return device.hint(request.offset, request.length);
    case "read": {
      const { offset, length } = request;
      const begunAt = log.moment();
      const bytes = Buffer.alloc(length, 0xee);
      if (!device.tryRead(offset, bytes)) await device.read(offset, bytes);
      saw(offset, bytes, begunAt);
      return;
    }
    case "extents": {
      const begunAt = log.moment();
      const extents = await device.extents(request.offset, request.length);
      let end = request.offset;
      for (const { offset, length, zero } of extents) {
        if (offset !== end || length <= 0) seen.wrong.push(`${what}: there is a gap at ${end}`);
        end = offset + length;
        // Far larger ones are those of sparse clones, and looked at by reads.
        if (zero && length <= 2 ** 20) saw(offset, Buffer.alloc(length), begunAt);
      }
      if (end !== request.offset + request.length) seen.wrong.push(`${what}: the extents end at ${end}`);
      return;
    }
    case "write": {
      const { offset, length, fua } = request;
      const data = distinctBytes(log.moment(), offset, length);
      await changed(history, what, offset, data, fua, async () => {
        if (fua || !device.tryWrite(offset, data)) await device.write(offset, data, { fua });
      });
      data.fill(0xdd); // the buffer is ours again
      return;
    }
    case "zero": {
      const { offset, length, mayPunch, fua, fast } = request;
      const options = { mayPunch, fua, fast };
      return await changed(history, what, offset, Buffer.alloc(length), fua, () =>
        device.zero(offset, length, options),
      );
    }
    case "discard": {
      const { offset, length, fua } = request;
      // Where it is as quick as a discard the clone zeroes; else what is discarded may be there as it was.
      const zeroes = (await machine.destination.canZeroFast?.({ mayPunch: true })) === true;
      const discard = () => device.discard(offset, length, { fua });
      if (zeroes) return await changed(history, what, offset, Buffer.alloc(length), fua, discard);
      const change = history.begin(what, offset, Buffer.alloc(length));
      try {
        await discard();
      } finally {
        history.end(change, { certain: false });
      }
    }
  }
}

async function changed(
  history: SectorHistory,
  what: string,
  offset: number,
  bytes: Buffer,
  fua: boolean,
  make: () => Promise<void>,
): Promise<void> {
  const change = history.begin(what, offset, bytes);
  let done = false;
  try {
    await make();
    done = true;
  } finally {
    history.end(change, { certain: done, durable: done && fua });
  }
}

/** Bytes that are nobody else's, as far as 255 values go; never zero. */
function distinctBytes(seed: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let index = 0; index < length; index++) {
    bytes[index] = 1 + ((seed * 89 + (offset + index) * 31 + Math.floor((offset + index) / 512) * 17) % 255);
  }
  return bytes;
}

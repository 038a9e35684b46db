/**
 * Clients of a clone device, and a small hydrator in the background, all at once and by chance; whatever a client is
 * answered is compared with what a plain disk may answer. One line for each thing that is wrong.
 */
import fc from "fast-check";
import { DeviceError } from "../../src/base/errors.ts";
import type { HydrateOnRead } from "../../src/engine/clone-device.ts";
import type { ByteHistory } from "./byte-history.ts";
import type { TestClone } from "./clone-device.ts";

/** A request; in bytes, and ms after the one before. */
export type ClientRequest = { pauseMs: number } & (
  | { kind: "read"; offset: number; length: number; immediate: boolean }
  | { kind: "write"; offset: number; length: number; immediate: boolean; fua: boolean }
  | { kind: "zero"; offset: number; length: number; mayPunch: boolean; fua: boolean; fast: boolean }
  | { kind: "discard"; offset: number; length: number; fua: boolean }
  | { kind: "extents"; offset: number; length: number }
  | { kind: "hint"; offset: number; length: number }
  | { kind: "flush" }
  | { kind: "tune"; hydrateOnRead: HydrateOnRead }
);

/** Requests to a disk of `size` bytes, most of them around regions' ends. */
export function arbitraryRequests(size: number, regionSize: number, maxLength: number): fc.Arbitrary<ClientRequest[]> {
  const position = fc
    .oneof(
      { weight: 4, arbitrary: fc.integer({ min: 0, max: Math.floor(size / regionSize) }).map((at) => at * regionSize) },
      { weight: 2, arbitrary: fc.integer({ min: 0, max: Math.floor(size / 512) }).map((at) => at * 512) },
      { weight: 1, arbitrary: fc.integer({ min: 0, max: size }) },
      { weight: 1, arbitrary: fc.constant(size) },
    )
    .map((at) => Math.min(at, size));
  const range = fc
    .oneof(
      { weight: 3, arbitrary: fc.tuple(position, fc.integer({ min: 1, max: 2 * regionSize })) },
      {
        weight: 3,
        arbitrary: fc.tuple(position, position).map(([a, b]) => [Math.min(a, b), Math.abs(a - b)] as const),
      },
    )
    .map(([offset, length]) => ({ offset, length: Math.min(length, size - offset) }));
  const pauseMs = fc.oneof(fc.constant(0), fc.nat(30), fc.nat(3000));
  const flag = fc.boolean();
  const seldom = fc.nat(4).map((n) => n === 0);
  const request = fc.oneof(
    {
      weight: 5,
      arbitrary: fc
        .record({ pauseMs, range, immediate: flag })
        .map(({ range, ...rest }) => ({ kind: "read" as const, ...range, ...rest })),
    },
    {
      weight: 6,
      arbitrary: fc
        .record({ pauseMs, range, immediate: flag, fua: seldom })
        .map(({ range, ...rest }) => ({ kind: "write" as const, ...range, ...rest })),
    },
    {
      weight: 2,
      arbitrary: fc
        .record({ pauseMs, range, mayPunch: flag, fua: seldom, fast: seldom })
        .map(({ range, ...rest }) => ({ kind: "zero" as const, ...range, ...rest })),
    },
    {
      weight: 3,
      arbitrary: fc
        .record({ pauseMs, range, fua: seldom })
        .map(({ range, ...rest }) => ({ kind: "discard" as const, ...range, ...rest })),
    },
    {
      weight: 1,
      arbitrary: fc
        .record({ pauseMs, range, kind: fc.constantFrom("extents" as const, "hint" as const) })
        .map(({ range, ...rest }) => ({ ...range, ...rest })),
    },
    { weight: 2, arbitrary: fc.record({ pauseMs, kind: fc.constant("flush" as const) }) },
    {
      weight: 1,
      arbitrary: fc.record({
        pauseMs,
        kind: fc.constant("tune" as const),
        hydrateOnRead: fc.constantFrom<HydrateOnRead[]>("always", "whole", "never"),
      }),
    },
  );
  return fc.array(request, { minLength: 1, maxLength });
}

/** What became of the requests. */
export interface WorkloadReport {
  wrong: string[];
  /** Requests that failed, by errno or the error's name. */
  failures: Map<string, number>;
  /** Buffers of reads that failed, full of 0xdd: nobody may fill them any more. */
  abandoned: Buffer[];
}

/** Sends the requests, each at its time, without waiting for those before; resolves when all are answered. */
export async function runClients(
  clone: TestClone,
  history: ByteHistory,
  requests: readonly ClientRequest[],
): Promise<WorkloadReport> {
  const report: WorkloadReport = { wrong: [], failures: new Map(), abandoned: [] };
  const running: Promise<void>[] = [];
  for (const [index, request] of requests.entries()) {
    if (request.pauseMs > 0) await clone.clock.sleep(request.pauseMs);
    const answered = send(clone, history, request, index, report.abandoned).then(
      (wrong) => {
        if (wrong !== undefined) report.wrong.push(`request ${index}, ${request.kind}: ${wrong}`);
      },
      (error: unknown) => {
        const name = error instanceof DeviceError ? (error.errno ?? "DeviceError") : (error as Error).constructor.name;
        report.failures.set(name, (report.failures.get(name) ?? 0) + 1);
      },
    );
    running.push(answered);
  }
  await Promise.all(running);
  return report;
}

/** Resolves to what is wrong with the answer; rejects as the request does. */
async function send(
  { device, regions }: TestClone,
  history: ByteHistory,
  request: ClientRequest,
  index: number,
  abandoned: Buffer[],
): Promise<string | undefined> {
  switch (request.kind) {
    case "tune":
      device.hydrateOnRead = request.hydrateOnRead;
      return undefined;
    case "hint":
      device.hint(request.offset, request.length);
      return undefined;
    case "flush": {
      const askedAt = history.now();
      await device.flush();
      history.flushed(askedAt);
      return undefined;
    }
    case "read": {
      const { offset, length } = request;
      const begunAt = history.now();
      const buffer = Buffer.alloc(length, 0xee);
      try {
        if (!request.immediate || !device.tryRead(offset, buffer)) await device.read(offset, buffer);
      } catch (error) {
        abandoned.push(buffer.fill(0xdd)); // it is ours again
        throw error;
      }
      return history.check(offset, buffer, begunAt);
    }
    case "extents": {
      const begunAt = history.now();
      const { offset, length } = request;
      const extents = await device.extents(offset, length);
      let end = offset;
      for (const extent of extents) {
        if (extent.offset !== end || extent.length <= 0) return `extents with a gap at ${end}`;
        end += extent.length;
        if (!extent.zero) continue;
        const wrong = history.check(extent.offset, new Uint8Array(extent.length), begunAt);
        if (wrong !== undefined) return `told to be zeros: ${wrong}`;
      }
      if (end !== offset + length) return `extents end at ${end}`;
      const runs = device.contexts[0]?.runs(offset, length, 1_000_000) ?? [];
      const sum = runs.reduce((total, run) => total + run.length, 0);
      return sum === length ? undefined : `the runs of the hydrated context are ${sum} bytes`;
    }
    case "write": {
      const { offset, length, fua } = request;
      const data = pattern(index, offset, length);
      const change = history.begin(offset, data);
      let ended = false;
      try {
        if (fua || !request.immediate || !device.tryWrite(offset, data)) await device.write(offset, data, { fua });
        ended = true;
      } finally {
        history.end(change, { certain: ended, durable: ended && fua });
        data.fill(0xdd); // the buffer is ours again
      }
      return undefined;
    }
    case "zero": {
      const { offset, length, mayPunch, fua, fast } = request;
      const change = history.begin(offset, new Uint8Array(length));
      let ended = false;
      try {
        await device.zero(offset, length, { mayPunch, fua, fast });
        ended = true;
      } finally {
        history.end(change, { certain: ended, durable: ended && fua });
      }
      return undefined;
    }
    case "discard": {
      const { offset, length, fua } = request;
      const change = history.begin(offset, new Uint8Array(length));
      const before = regions.hydratedCount;
      try {
        await device.discard(offset, length, { fua });
      } finally {
        history.end(change, { certain: false });
      }
      return regions.hydratedCount < before ? "regions are hydrated no more" : undefined;
    }
  }
}

/** Bytes that are nobody else's, as far as 255 values go; never zero. */
function pattern(seed: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let index = 0; index < length; index++)
    bytes[index] = 1 + ((seed * 89 + (offset + index) * 31 + Math.floor((offset + index) / 512) * 17) % 255);
  return bytes;
}

/** Hydrates in the background, a few regions at a time and now and then, and commits every second, until told to stop. */
export async function hydrateInBackground(
  { clock, regions, geometry, copier, commits, halt }: TestClone,
  random: () => number,
  stop: AbortSignal,
): Promise<void> {
  const copies = new Set<Promise<void>>();
  const copyOne = async (): Promise<void> => {
    const from = Math.floor(random() * regions.regionCount);
    const range = regions.nextUnhydrated(from, regions.regionCount, 1 + Math.floor(random() * 3));
    if (range === undefined) return;
    const hydration = regions.begin(range);
    try {
      await copier.copy(geometry.bytesOf(range), stop, { onLanded: (part) => regions.noteLanded(hydration, part) });
      regions.complete(hydration);
    } catch {
      regions.fail(hydration);
    }
  };
  let commitAt = clock.now() + 1000;
  while (!stop.aborted && !halt.signal.aborted) {
    await clock.sleep(1 + Math.floor(random() * 200), stop);
    if (clock.now() >= commitAt) {
      commitAt = clock.now() + 1000;
      await commits.commit().catch(() => {}); // the clone has failed, and says so to its clients
    }
    if (copies.size >= 3) continue;
    const copy = copyOne().finally(() => copies.delete(copy));
    copies.add(copy);
  }
  await Promise.all(copies);
}

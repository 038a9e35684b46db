/**
 * What servers send to our NBD client: replies to requests, as the client's reader of replies gets them, and handshakes. Whatever
 * they are, they are understood or called a violation; no byte lands outside of the buffer that it is for; and a handshake ends in
 * facts that make sense or in an error that can be shown.
 */

import { CloneError } from "../../../src/base/errors.ts";
import { ConnectionLostError } from "../../../src/nbd/client/handshake-error.ts";
import { greet, type HandshakeStream, negotiate } from "../../../src/nbd/client/negotiation.ts";
import { PendingRequest } from "../../../src/nbd/client/pending-request.ts";
import { ReplyReader } from "../../../src/nbd/client/reply-reader.ts";
import {
  encodeContext,
  encodeExportReply,
  encodeGreeting,
  encodeInfo,
  encodeOptionError,
  encodeOptionReply,
  encodeServer,
} from "../../../src/nbd/option-codec.ts";
import { ChunkType, Command, InfoType, Option, OptionReply, Size } from "../../../src/nbd/protocol.ts";
import { SharedBuffer, SocketInput } from "../../../src/nbd/socket-input.ts";
import { encodeErrorChunk, encodeHoleChunk, encodeStatusChunk } from "../../../src/nbd/transmission-codec.ts";
import { ALL_FLAGS, chunkBytes, dataBytes, simpleBytes } from "../../support/fake-nbd-server.ts";
import { type SeededRandom, seededRandom } from "../../support/random.ts";
import { mutate } from "../mutate.ts";
import { type FuzzTarget, mustHold, outcomeOfAsync } from "../target.ts";

const GUARD = 64;
const CONTEXT = 7;
/** Of a message of replies: the seed of its requests, whether replies are structured, the seed of how they are cut. */
const HEADER = 9;
const shared = new SharedBuffer();

/** A request, and what its reply is. */
export interface Asked {
  cookie: number;
  request: PendingRequest;
  /** Where a read goes; and the same with a guard before and behind. */
  target: Buffer | undefined;
  around: Buffer | undefined;
  outcome: { runs: unknown } | Error | undefined;
  expected: Buffer | "done" | "error";
  bytes: Buffer[];
}

function ask(cookie: number, type: number, length: number): Asked {
  const around = type === Command.read ? Buffer.alloc(length + 2 * GUARD, 0xee) : undefined;
  const target = around?.subarray(GUARD, GUARD + length);
  const asked: Asked = {
    cookie,
    target,
    around,
    outcome: undefined,
    expected: "done",
    bytes: [],
    request: new PendingRequest(
      {
        type,
        offset: 4096 * cookie,
        length,
        ...(target === undefined ? {} : { target }),
      },
      0,
      (runs) => {
        asked.outcome = { runs };
      },
      (error) => {
        asked.outcome = error;
      },
    ),
  };
  return asked;
}

/** The reply to a request, in the chunks of a good server of some whim. */
function answer(asked: Asked, random: SeededRandom, structured: boolean): void {
  const cookie = { cookieHigh: 3, cookieLow: asked.cookie };
  const { type, offset, length } = asked.request;
  if (random.oneIn(6)) {
    asked.expected = "error";
    asked.bytes.push(structured ? encodeErrorChunk(5, Buffer.from("worn"), cookie) : simpleBytes(5, cookie));
  } else if (!structured) {
    const bytes = Buffer.alloc(type === Command.read ? length : 0, asked.cookie);
    if (type === Command.read) asked.expected = bytes;
    asked.bytes.push(Buffer.concat([simpleBytes(0, cookie), bytes]));
  } else if (type === Command.read) {
    const whole = Buffer.alloc(length);
    const pieces: Buffer[] = [];
    for (let at = 0; at < length; ) {
      const end = Math.min(length, at + random.integer(1, random.oneIn(3) ? 100_000 : 3000));
      if (random.oneIn(4)) {
        const hole = Buffer.alloc(Size.holeChunk);
        encodeHoleChunk(hole, 0, { done: false, offset: offset + at, length: end - at }, cookie);
        pieces.push(hole);
      } else {
        whole.fill(random.integer(1, 255), at, end);
        pieces.push(dataBytes(cookie, whole.subarray(at, end), { offset: offset + at, done: false }));
      }
      at = end;
    }
    pieces.sort(() => random.integer(-1, 1));
    if (random.oneIn(2)) pieces.at(-1)?.writeUInt16BE(1, 4);
    else pieces.push(chunkBytes({ done: true, type: ChunkType.none }, cookie));
    asked.expected = whole;
    asked.bytes.push(...pieces);
  } else if (type === Command.blockStatus) {
    const runs = Array.from({ length: random.integer(1, random.oneIn(10) ? 20_000 : 5) }, () => ({
      length: random.integer(1, 4096),
      flags: random.integer(0, 3),
    }));
    asked.bytes.push(encodeStatusChunk(CONTEXT, runs, true, cookie));
  } else asked.bytes.push(chunkBytes({ done: true, type: ChunkType.none }, cookie));
}

/** Feeds bytes to a reader in pieces of any size; returns what was wrong with them. */
export function feed(
  bytes: Buffer,
  all: Map<number, Asked>,
  structured: boolean,
  random: SeededRandom,
): Error | undefined {
  let violation: Error | undefined;
  let reader: ReplyReader | undefined;
  const consumer = {
    consume: (chunk: Buffer, start: number, end: number) => (reader as ReplyReader).consume(chunk, start, end),
  };
  const input = new SocketInput(shared, consumer, () => {});
  reader = new ReplyReader({
    input,
    structured,
    contextId: CONTEXT,
    find: (high, low) => (high === 3 ? all.get(low)?.request : undefined),
    onEnd: (low) => {
      all.delete(low);
    },
    onViolation: (error) => {
      violation ??= error;
      input.close();
    },
  });
  for (let at = 0; at < bytes.length && violation === undefined; ) {
    const most = random.oneIn(3) ? 40 : random.oneIn(2) ? 5000 : 300_000;
    const wanted = Math.min(bytes.length - at, random.integer(1, most));
    // As a socket does: into where the input says.
    const where = input.next();
    const count = Math.min(wanted, where.length);
    bytes.copy(where, 0, at, at + count);
    input.received(count, where);
    at += count;
  }
  return violation;
}

/** Some requests, and the pieces of all their replies, mixed. */
export function session(random: SeededRandom, structured: boolean): { all: Map<number, Asked>; pieces: Buffer[] } {
  const types = [Command.read, Command.read, Command.read, Command.write, Command.flush, Command.blockStatus];
  const all = new Map<number, Asked>();
  const requests = random.integer(1, 6);
  for (let cookie = 1; cookie <= requests; cookie++) {
    const type = random.pick(structured ? types : types.slice(0, 5));
    const length = type === Command.read ? random.integer(1, random.oneIn(5) ? 100_000 : 9000) : 4096;
    const asked = ask(cookie, type, length);
    answer(asked, random, structured);
    all.set(cookie, asked);
  }
  const queues = [...all.values()].map(({ bytes }) => [...bytes]);
  const pieces: Buffer[] = [];
  while (queues.some((queue) => queue.length > 0)) {
    const queue = random.pick(queues.filter((each) => each.length > 0));
    pieces.push(queue.shift() as Buffer);
  }
  return { all, pieces };
}

/** Whether nothing was written around the buffer of a read. */
export function isGuarded({ around }: Asked): boolean {
  if (around === undefined) return true;
  const guard = Buffer.alloc(GUARD, 0xee);
  return around.subarray(0, GUARD).equals(guard) && around.subarray(-GUARD).equals(guard);
}

/** Whether a request got what its reply was made to say. */
export function isAnsweredRight({ expected, outcome, target }: Asked): boolean {
  if (expected === "error") return outcome instanceof CloneError && "errno" in outcome && outcome.errno === "EIO";
  if (outcome === undefined || outcome instanceof Error) return false;
  return !(expected instanceof Buffer) || target?.equals(expected) === true;
}

/** Replies to requests. */
export const nbdReplies: FuzzTarget = {
  name: "nbd-replies",
  weight: 80,
  mostBytes: 40 * 1024 * 1024,
  open: () => ({
    generate(random) {
      const header = Buffer.alloc(HEADER);
      header.writeUInt32BE(random.integer(0, 2 ** 32 - 1));
      header[4] = random.integer(0, 1);
      header.writeUInt32BE(random.integer(0, 2 ** 32 - 1), 5);
      const { pieces } = session(seededRandom(header.readUInt32BE(0)), header[4] === 1);
      if (random.oneIn(8)) return { bytes: Buffer.concat([header, ...pieces]), isGood: true };
      const struck = random.integer(0, pieces.length - 1);
      const sent = pieces.map((piece, index) => {
        // The heads of replies, whatever data follow them.
        if (index !== struck) return piece;
        return Buffer.concat([mutate(piece.subarray(0, 40), random, { others: pieces }), piece.subarray(40)]);
      });
      return { bytes: Buffer.concat([header, ...sent]), isGood: false };
    },
    run(message) {
      const structured = message[4] === 1;
      const { all, pieces } = session(seededRandom(message.readUInt32BE(0)), structured);
      const requests = [...all.values()];
      const replies = message.subarray(HEADER);
      const violation = feed(replies, all, structured, seededRandom(message.readUInt32BE(5)));
      for (const asked of requests) mustHold(isGuarded(asked), "bytes were written around a buffer");
      if (replies.equals(Buffer.concat(pieces))) {
        for (const asked of requests) mustHold(isAnsweredRight(asked), `request ${asked.cookie} is not answered so`);
      }
      if (violation === undefined) return all.size === 0 ? "accepted" : "refused";
      if (!(violation instanceof CloneError)) throw violation;
      return "refused";
    },
    async [Symbol.asyncDispose]() {},
  }),
};

/** Everything that a server says until transmission begins. */
function handshakes(): Buffer[][] {
  const ack = (option: number): Buffer => encodeOptionReply(option, OptionReply.ack);
  const info = (data: Parameters<typeof encodeInfo>[0]): Buffer =>
    encodeOptionReply(Option.go, OptionReply.info, encodeInfo(data));
  const start = [
    encodeGreeting(3),
    ack(Option.structuredReply),
    encodeOptionReply(Option.setMetaContext, OptionReply.metaContext, encodeContext(1, "base:allocation")),
    ack(Option.setMetaContext),
  ];
  const facts = [
    info({ type: InfoType.export, size: 2 ** 40 + 5, flags: ALL_FLAGS }),
    info({ type: InfoType.blockSize, minimum: 512, preferred: 4096, maximum: 2 ** 25 }),
    info({ type: InfoType.name, name: "disk" }),
  ];
  return [
    [...start, ...facts, ack(Option.go)],
    [...start, encodeOptionError(Option.go, OptionReply.errUnsupported, "?"), encodeExportReply(2 ** 30, 3, false)],
    [
      ...start,
      encodeOptionError(Option.go, OptionReply.errUnknown, "no"),
      ...["a", "b", "c"].map((name) => encodeOptionReply(Option.list, OptionReply.server, encodeServer(name, "text"))),
      ack(Option.list),
    ],
  ];
}

/** A stream of bytes that then ends. */
class Recorded implements HandshakeStream {
  #at = 0;
  readonly #bytes: Buffer;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  async take(length: number): Promise<Buffer> {
    mustHold(length <= 65_536, `${length} bytes are waited for at once`);
    this.#at += length;
    if (this.#at > this.#bytes.length) throw new ConnectionLostError("the server hung up");
    return Buffer.from(this.#bytes.subarray(this.#at - length, this.#at));
  }

  send(): void {}
}

/** Handshakes, from the greeting to the export. */
export const nbdHandshakes: FuzzTarget = {
  name: "nbd-handshakes",
  weight: 80,
  mostBytes: 1024 * 1024,
  open() {
    const good = handshakes();
    return {
      generate(random) {
        const which = random.integer(0, good.length - 1);
        const pieces = good[which] as Buffer[];
        if (random.oneIn(8)) return { bytes: Buffer.concat(pieces), isGood: which < 2 };
        const struck = random.integer(0, pieces.length - 1);
        const sent = pieces.map((piece, index) =>
          index === struck ? mutate(piece, random, { others: pieces }) : piece,
        );
        return { bytes: Buffer.concat(sent), isGood: false };
      },
      async run(message) {
        const stream = new Recorded(message);
        return await outcomeOfAsync(async () => {
          try {
            const found = await negotiate(stream, { exportName: "disk", ...(await greet(stream)) });
            const { size, minimum, preferred, maximum } = found;
            mustHold(Number.isSafeInteger(size) && size > 0, `its size is ${size}`);
            mustHold(Number.isInteger(Math.log2(minimum)) && minimum <= 65_536, `its minimum is ${minimum}`);
            mustHold(Number.isInteger(Math.log2(preferred)) && preferred >= minimum, `it prefers ${preferred}`);
            mustHold(maximum >= minimum && maximum <= 2 ** 25 && maximum % minimum === 0, `its maximum is ${maximum}`);
          } catch (error) {
            if (error instanceof CloneError)
              mustHold(!/\p{Cc}/u.test(error.message), `control characters: ${error.message}`);
            throw error;
          }
        });
      },
      async [Symbol.asyncDispose]() {},
    };
  },
};

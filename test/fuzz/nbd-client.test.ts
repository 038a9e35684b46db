// What a server sends, cut anywhere, in any order that is allowed, and mutated at random. However a good stream of replies
// is cut, every request gets what it should. Whatever a bad one is, it is understood or called a violation; no byte lands
// outside of the buffer it is for, no memory is taken that was not announced within bounds, nothing else is thrown, and the
// handshake ends in facts that make sense or in an error. CLONE_FUZZ_RUNS=1000000 goes on for longer.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CloneError } from "../../src/base/errors.ts";
import { ConnectionLostError } from "../../src/nbd/client/handshake-error.ts";
import { greet, type HandshakeStream, negotiate } from "../../src/nbd/client/negotiation.ts";
import { PendingRequest } from "../../src/nbd/client/pending-request.ts";
import { ReplyReader } from "../../src/nbd/client/reply-reader.ts";
import {
  encodeContext,
  encodeExportReply,
  encodeGreeting,
  encodeInfo,
  encodeOptionError,
  encodeOptionReply,
  encodeServer,
} from "../../src/nbd/option-codec.ts";
import { ChunkType, Command, InfoType, Option, OptionReply, Size } from "../../src/nbd/protocol.ts";
import { SharedBuffer, SocketInput } from "../../src/nbd/socket-input.ts";
import { encodeErrorChunk, encodeHoleChunk, encodeStatusChunk } from "../../src/nbd/transmission-codec.ts";
import { ALL_FLAGS, chunkBytes, dataBytes, simpleBytes } from "../support/fake-nbd-server.ts";
import { type SeededRandom, seededRandom } from "../support/random.ts";

const RUNS = Number(process.env.CLONE_FUZZ_RUNS ?? 3000);
const GUARD = 64;
const CONTEXT = 7;
const shared = new SharedBuffer();

/** A request, and what its reply is. */
interface Asked {
  cookie: number;
  request: PendingRequest;
  /** Where a read goes, with a guard before and behind. */
  around: Buffer | undefined;
  outcome: { runs: unknown } | Error | undefined;
  expected: Buffer | "done" | "error";
  bytes: Buffer[];
}

function ask(cookie: number, type: number, length: number): Asked {
  const around = type === Command.read ? Buffer.alloc(length + 2 * GUARD, 0xee) : undefined;
  const asked: Asked = {
    cookie,
    around,
    outcome: undefined,
    expected: "done",
    bytes: [],
    request: new PendingRequest(
      {
        type,
        offset: 4096 * cookie,
        length,
        ...(around === undefined ? {} : { target: around.subarray(GUARD, GUARD + length) }),
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
function feed(bytes: Buffer, all: Map<number, Asked>, structured: boolean, random: SeededRandom): Error | undefined {
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

/** Some requests, and the stream of all their replies, mixed. */
function session(random: SeededRandom, structured: boolean): { all: Map<number, Asked>; stream: Buffer } {
  const types = [Command.read, Command.read, Command.read, Command.write, Command.flush, Command.blockStatus];
  const all = new Map<number, Asked>();
  for (let cookie = 1; cookie <= random.integer(1, 6); cookie++) {
    const type = random.pick(structured ? types : types.slice(0, 5));
    const length = type === Command.read ? random.integer(1, random.oneIn(5) ? 400_000 : 9000) : 4096;
    const asked = ask(cookie, type, length);
    answer(asked, random, structured);
    all.set(cookie, asked);
  }
  const queues = [...all.values()].map(({ bytes }) => [...bytes]);
  const stream: Buffer[] = [];
  while (queues.some((queue) => queue.length > 0)) {
    const queue = random.pick(queues.filter((each) => each.length > 0));
    stream.push(queue.shift() as Buffer);
  }
  return { all, stream: Buffer.concat(stream) };
}

function expectGuards({ around }: Asked): void {
  if (around === undefined) return;
  const guard = Buffer.alloc(GUARD, 0xee);
  expect(around.subarray(0, GUARD).equals(guard) && around.subarray(-GUARD).equals(guard)).toBe(true);
}

const seeds = fc.integer();

describe("A client's replies", () => {
  test("are understood however they are cut and mixed", () => {
    fc.assert(
      fc.property(seeds, fc.boolean(), (seed, structured) => {
        const random = seededRandom(seed);
        const { all, stream } = session(random, structured);
        const requests = [...all.values()];
        expect(feed(stream, all, structured, random)).toBeUndefined();
        expect(all.size).toBe(0);
        for (const asked of requests) {
          expectGuards(asked);
          if (asked.expected === "error") expect(asked.outcome).toMatchObject({ errno: "EIO" });
          else expect(asked.outcome).not.toBeInstanceOf(Error);
          if (asked.expected instanceof Buffer) {
            expect(asked.around?.subarray(GUARD, -GUARD).equals(asked.expected)).toBe(true);
          }
        }
      }),
      { numRuns: Math.ceil(RUNS / 10) },
    );
  });

  test("that are mutated are understood, or called a violation", () => {
    fc.assert(
      fc.property(seeds, fc.boolean(), (seed, structured) => {
        const random = seededRandom(seed);
        const { all, stream } = session(random, structured);
        const requests = [...all.values()];
        for (let count = random.integer(1, 5); count > 0; count--) mutate(stream, random);
        const cut = random.oneIn(4) ? stream.subarray(0, random.integer(0, stream.length)) : stream;
        const violation = feed(cut, all, structured, random);
        if (violation !== undefined) expect(violation).toBeInstanceOf(CloneError);
        for (const asked of requests) expectGuards(asked);
      }),
      { numRuns: RUNS },
    );
  });

  test("of nothing but noise are called a violation", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 40, maxLength: 300 }), seeds, (noise, seed) => {
        const random = seededRandom(seed);
        const { all } = session(random, true);
        expect(feed(Buffer.from(noise), all, true, random)).toBeInstanceOf(CloneError);
      }),
      { numRuns: RUNS },
    );
  });
});

/** Changes a byte, mostly one of a header. */
function mutate(stream: Buffer, random: SeededRandom): void {
  const at = random.oneIn(3)
    ? random.integer(0, stream.length - 1)
    : random.integer(0, Math.min(40, stream.length - 1));
  stream[at] = random.oneIn(3) ? random.integer(0, 255) : random.pick([0, 1, 2, 5, 0x7f, 0x80, 0xff]);
}

/** Everything that a server says until transmission begins. */
function handshakes(): Buffer[] {
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
    Buffer.concat([...start, ...facts, ack(Option.go)]),
    Buffer.concat([
      ...start,
      encodeOptionError(Option.go, OptionReply.errUnsupported, "?"),
      encodeExportReply(2 ** 30, 3, false),
    ]),
    Buffer.concat([
      ...start,
      encodeOptionError(Option.go, OptionReply.errUnknown, "no"),
      ...["a", "b", "c"].map((name) => encodeOptionReply(Option.list, OptionReply.server, encodeServer(name, "text"))),
      ack(Option.list),
    ]),
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
    expect(length).toBeLessThanOrEqual(65536);
    this.#at += length;
    if (this.#at > this.#bytes.length) throw new ConnectionLostError("the server hung up");
    return Buffer.from(this.#bytes.subarray(this.#at - length, this.#at));
  }

  send(): void {}
}

describe("A client's handshake", () => {
  test("ends in facts that make sense, or in an error, whatever is mutated", async () => {
    const good = handshakes();
    let opened = 0;
    await fc.assert(
      fc.asyncProperty(seeds, async (seed) => {
        const random = seededRandom(seed);
        const bytes = Buffer.from(random.pick(good));
        for (let count = random.integer(0, 4); count > 0; count--) {
          bytes[random.integer(0, bytes.length - 1)] = random.pick([
            0,
            1,
            2,
            3,
            0x7f,
            0x80,
            0xff,
            random.integer(0, 255),
          ]);
        }
        const stream = new Recorded(random.oneIn(5) ? bytes.subarray(0, random.integer(0, bytes.length)) : bytes);
        try {
          const found = await negotiate(stream, { exportName: "disk", ...(await greet(stream)) });
          opened += 1;
          expect(Number.isSafeInteger(found.size) && found.size > 0).toBe(true);
          expect(Number.isInteger(Math.log2(found.minimum)) && found.minimum <= 65536).toBe(true);
          expect(Number.isInteger(Math.log2(found.preferred)) && found.preferred >= found.minimum).toBe(true);
          expect(
            found.maximum >= found.minimum && found.maximum <= 2 ** 25 && found.maximum % found.minimum === 0,
          ).toBe(true);
        } catch (error) {
          if (!(error instanceof CloneError)) throw error;
          expect(error.message).not.toMatch(/\p{Cc}/u);
        }
      }),
      { numRuns: RUNS },
    );
    expect(opened).toBeGreaterThan(0);
  });
});

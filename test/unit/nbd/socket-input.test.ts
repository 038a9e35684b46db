// However the bytes come (in what pieces, in our buffer or in another, with pauses), the consumer sees the same messages.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Consumer, ROOM, SharedBuffer, SocketInput } from "../../../src/nbd/socket-input.ts";

/**
 * Messages of a length (4 bytes) and as many bytes. Those longer than `inPlace` are received into their own buffer. Blocks
 * before every message whose number is in `blockAt`, once.
 */
class Messages implements Consumer {
  readonly seen: Buffer[] = [];
  readonly #blockAt: Set<number>;
  readonly #inPlace: number;
  #begun = 0;
  input!: SocketInput;

  constructor(inPlace: number, blockAt: Iterable<number>) {
    this.#inPlace = inPlace;
    this.#blockAt = new Set(blockAt);
  }

  consume(bytes: Buffer, start: number, end: number): number {
    let at = start;
    while (end - at >= 4) {
      if (this.#blockAt.delete(this.#begun)) {
        this.input.block();
        return at;
      }
      const length = bytes.readUInt32BE(at);
      const there = Math.min(length, end - at - 4);
      if (there < length && length <= this.#inPlace) return at;
      this.#begun++;
      const message = Buffer.alloc(length);
      bytes.copy(message, 0, at + 4, at + 4 + there);
      at += 4 + there;
      if (there === length) this.seen.push(message);
      else this.input.receive(message, there, length, () => this.seen.push(message));
    }
    return at;
  }
}

const lengths = fc.array(fc.oneof(fc.nat(40), fc.nat(ROOM - 4), fc.nat(400_000)), { maxLength: 12 });
const pieces = fc.array(fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 200_000 })), {
  minLength: 1,
});

describe("SocketInput", () => {
  test("gives the consumer every message whole and in order", () => {
    const shared = new SharedBuffer();
    fc.assert(
      fc.property(
        lengths,
        pieces,
        fc.nat(ROOM - 4),
        fc.array(fc.nat(12)),
        fc.boolean(),
        fc.infiniteStream(fc.boolean()),
        (sizes, cuts, inPlace, blockAt, push, others) => {
          const sent = sizes.map((size, index) => Buffer.alloc(size, index + 1));
          const stream = Buffer.concat(
            sent.flatMap((message) => {
              const header = Buffer.alloc(4);
              header.writeUInt32BE(message.length, 0);
              return [header, message];
            }),
          );
          const consumer = new Messages(inPlace, blockAt);
          let paused = false;
          const input = new SocketInput(shared, consumer, () => {
            paused = false;
          });
          consumer.input = input;
          // A socket of Node: it asks where to write after each callback, and writes there whatever happened since.
          let where = input.next();
          for (let at = 0, cut = 0; at < stream.length; cut++) {
            const wanted = cut < 500 ? (cuts[cut % cuts.length] as number) : 200_000; // nine bytes each take long
            const count = Math.min(stream.length - at, wanted, push ? 65536 : where.length);
            let goOn: boolean;
            if (push) {
              goOn = input.push(Buffer.from(stream.subarray(at, at + count)));
            } else {
              stream.copy(where, 0, at, at + count);
              goOn = input.received(count, where);
              where = input.next();
            }
            at += count;
            paused = !goOn;
            if (cut < 500 && others.next().value) shared.bytes.fill(0xee); // another connection's turn
            while (paused) input.unblock();
          }
          expect(consumer.seen.length).toBe(sent.length);
          for (const [index, message] of sent.entries()) expect(consumer.seen[index]?.equals(message)).toBe(true);
        },
      ),
      { numRuns: 200 },
    );
  });

  test("has a long payload written straight to where it belongs, and the next bytes to the shared buffer again", () => {
    const shared = new SharedBuffer();
    const consumer = new Messages(100, []);
    const input = new SocketInput(shared, consumer, () => {});
    consumer.input = input;
    expect(input.next()).toBe(shared.reads);
    shared.reads.set([0, 0, 4, 0, 7, 7]);
    input.received(6, input.next());
    const where = input.next();
    expect(where.length).toBe(1024 - 2);
    expect(where.buffer).not.toBe(shared.bytes.buffer);
    where.fill(7);
    input.received(where.length, where);
    expect(consumer.seen).toEqual([Buffer.alloc(1024, 7)]);
    expect(input.next()).toBe(shared.reads);
  });

  test("begins with a small read where a large payload came last, until none comes", () => {
    const shared = new SharedBuffer();
    const consumer = new Messages(100, []);
    const input = new SocketInput(shared, consumer, () => {});
    consumer.input = input;
    const receive = (bytes: Buffer): number => {
      let reads = 0;
      for (let at = 0; at < bytes.length; reads++) {
        const where = input.next();
        const count = Math.min(where.length, bytes.length - at);
        bytes.copy(where, 0, at, at + count);
        input.received(count, where);
        at += count;
      }
      return reads;
    };
    const large = Buffer.concat([Buffer.from([0, 4, 0, 0]), Buffer.alloc(256 * 1024, 1)]);
    expect(receive(large)).toBe(2); // what fits in a large read, which is copied, and the rest
    expect(input.next()).toBe(shared.smallReads);
    expect(receive(large)).toBe(2); // a small one, and all that is left
    expect(receive(Buffer.from([0, 0, 0, 1, 9]))).toBe(1);
    expect(input.next()).toBe(shared.reads);
    expect(consumer.seen.map((message) => message.length)).toEqual([256 * 1024, 256 * 1024, 1]);
  });

  test("throws away what comes after it was closed, and does not stop the socket", () => {
    const consumer = new Messages(100, []);
    const input = new SocketInput(new SharedBuffer(), consumer, () => {});
    consumer.input = input;
    input.push(Buffer.from([0, 0, 0, 2, 7]));
    input.close();
    expect(input.push(Buffer.from([7, 0, 0, 0, 0]))).toBe(true);
    expect(input.received(5, input.next())).toBe(true);
    expect(consumer.seen).toEqual([]);
  });
});

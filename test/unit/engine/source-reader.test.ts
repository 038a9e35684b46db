import { describe, expect, test } from "vitest";
import { ChangedError, DeviceError } from "../../../src/base/errors.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { BufferShelf } from "../../../src/engine/buffer-shelf.ts";
import { ReadsInFlight } from "../../../src/engine/reads-in-flight.ts";
import { SourceReader, type SourceReaderParts } from "../../../src/engine/source-reader.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { noise } from "../../support/layout.ts";
import { SlowDevice } from "../../support/slow-device.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

const SIZE = 4 * 2 ** 20;
const CONTENT = noise(SIZE, 1);

function setUp({ depth = 2, timeoutMs = 30_000, wrap = (device: BlockDevice) => device } = {}) {
  const clock = new VirtualClock();
  const held = new HeldDevice(wrap(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT })));
  const stats = { sourceReadBytes: 0, timeouts: 0 };
  const reader = new SourceReader({ source: held, clock, timeoutMs, depth, stats });
  /** A plain read. */
  const read = async (offset: number, length: number): Promise<Buffer> => {
    const buffer = Buffer.alloc(length, 0xee);
    await reader.read({ range: { offset, length }, skip: 0, buffer });
    return buffer;
  };
  return { clock, held, stats, reader, read };
}

describe("SourceReader", () => {
  test("fills the part of a wider range that is waited for, and hands over the whole", async () => {
    const { reader, stats } = setUp();
    const buffer = Buffer.alloc(1000);
    const ends: (Uint8Array | undefined)[] = [];
    const onEnd = (bytes: Uint8Array | undefined) => void ends.push(bytes);
    await reader.read({ range: { offset: 8192, length: 12_288 }, skip: 700, buffer, onEnd });
    expect(Buffer.compare(buffer, CONTENT.subarray(8892, 9892))).toBe(0);
    expect(ends).toHaveLength(1);
    expect(Buffer.compare((ends[0] as Uint8Array).subarray(0, 12_288), CONTENT.subarray(8192, 20_480))).toBe(0);
    reader.release(ends[0] as Uint8Array);
    expect(stats.sourceReadBytes).toBe(12_288);
  });

  test("keeps no memory for those who gave up waiting for what others have asked for", async () => {
    let taken = 0;
    class CountedReads extends ReadsInFlight {
      override fetch(range: { offset: number; length: number }, memory: () => Uint8Array) {
        return super.fetch(range, () => {
          taken++;
          return memory();
        });
      }
    }
    const { clock, held, stats } = setUp();
    const reads = new CountedReads();
    const reader = new SourceReader({ source: held, clock, timeoutMs: 30_000, depth: 2, stats, reads });
    const read = (offset: number, length: number, buffer = Buffer.alloc(length)) =>
      reader.read({ range: { offset, length }, skip: 0, buffer }).then(
        () => buffer,
        (error) => error,
      );
    held.hold("read");
    const hanging = [read(0, 4096), read(4096, 4096)];
    for (let round = 0; round < 10; round++) {
      const joined = Array.from({ length: 10 }, () => read(0, 8192));
      for (const error of await Promise.all(joined)) expect(error).toMatchObject({ errno: "ETIMEDOUT" });
    }
    for (const error of await Promise.all(hanging)) expect(error).toMatchObject({ errno: "ETIMEDOUT" });
    expect([taken, stats.timeouts]).toEqual([2, 102]);
    // One has come, and then its reader gives up on the other.
    const late = read(0, 8192);
    held.waiting.shift()?.letGo();
    expect(await late).toMatchObject({ errno: "ETIMEDOUT" });
    const patient = read(0, 8192);
    held.release("read");
    expect(Buffer.compare((await patient) as Buffer, CONTENT.subarray(0, 8192))).toBe(0);
    await whenIdle();
    expect(taken).toBe(4);
    expect(Buffer.compare((await read(4096, 4096)) as Buffer, CONTENT.subarray(4096, 8192))).toBe(0);
  });

  test("reads so many at once, the others in the order they came", async () => {
    const { held, read } = setUp({ depth: 2, timeoutMs: Infinity });
    held.hold("read");
    const reads = [0, 1, 2, 3, 4].map((index) => read(index * 4096, 4096));
    await whenIdle();
    expect(held.waiting.map(({ offset }) => offset / 4096)).toEqual([0, 1]);
    held.release("read");
    for (const [index, bytes] of (await Promise.all(reads)).entries()) {
      expect(Buffer.compare(bytes, CONTENT.subarray(index * 4096, (index + 1) * 4096))).toBe(0);
    }
    expect(held.log.map((entry) => entry.split("+")[0])).toEqual(
      [0, 1, 2, 3, 4].map((index) => `read ${index * 4096}`),
    );
  });

  test("never shares a buffer among reads at the same time, however often buffers are used again", async () => {
    const { held, read } = setUp({ depth: 4, timeoutMs: Infinity });
    for (let round = 0; round < 3; round++) {
      held.hold("read");
      const reads = [0, 1, 2, 3].map((index) => read((round * 4 + index) * 4096, 4096));
      await whenIdle();
      expect(held.waiting).toHaveLength(4);
      held.release("read"); // all four are filled before any of them is handed over
      for (const [index, bytes] of (await Promise.all(reads)).entries()) {
        const offset = (round * 4 + index) * 4096;
        expect(Buffer.compare(bytes, CONTENT.subarray(offset, offset + 4096))).toBe(0);
      }
    }
  });

  test("gives up when the time is up: the client has an error, and its buffer for itself", async () => {
    const { clock, held, reader, stats } = setUp();
    held.hold("read");
    const buffer = Buffer.alloc(4096, 0xee);
    const ends: (Uint8Array | undefined)[] = [];
    const onEnd = (bytes: Uint8Array | undefined) => void ends.push(bytes);
    const reading = reader.read({ range: { offset: 4096, length: 4096 }, skip: 0, buffer, onEnd });
    await expect(reading).rejects.toMatchObject({
      errno: "ETIMEDOUT",
      message: 'Cannot read 4096 bytes at 4096 from "source": no answer for 30 s (ETIMEDOUT)',
      offset: 4096,
      length: 4096,
    });
    expect(clock.now()).toBe(30_000);
    expect(stats.timeouts).toBe(1);
    expect(ends).toEqual([]);
    held.release("read");
    await whenIdle();
    expect(buffer.every((byte) => byte === 0xee)).toBe(true);
    // The bytes are good for something else all the same.
    expect(Buffer.compare((ends[0] as Uint8Array).subarray(0, 4096), CONTENT.subarray(4096, 8192))).toBe(0);
    expect(clock.sleeping).toBe(0);
  });

  test("waits as long as it takes in the queue of a source that answers, however slowly", async () => {
    const clock = new VirtualClock();
    const source = new SlowDevice(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT }), clock, 20_000);
    const reader = new SourceReader({
      source,
      clock,
      timeoutMs: 30_000,
      depth: 2,
      stats: { sourceReadBytes: 0, timeouts: 0 },
    });
    const reads = Array.from({ length: 8 }, async (_, index) => {
      const buffer = Buffer.alloc(512);
      await reader.read({ range: { offset: index * 512, length: 512 }, skip: 0, buffer });
      return buffer.equals(CONTENT.subarray(index * 512, (index + 1) * 512));
    });
    expect(await Promise.all(reads)).toEqual(reads.map(() => true));
    expect(clock.now()).toBe(80_000);
  });

  test("what hangs keeps its place; those who wait for one give up too, and never reach the source", async () => {
    const { clock, held, reader, read } = setUp({ depth: 2 });
    held.hold("read");
    const hanging = [read(0, 512), read(512, 512)];
    const failed = Promise.allSettled(hanging);
    await clock.sleep(10_000);
    const ends: (Uint8Array | undefined)[] = [];
    const onEnd = (bytes: Uint8Array | undefined) => void ends.push(bytes);
    const buffer = Buffer.alloc(512);
    const late = reader.read({ range: { offset: 1024, length: 512 }, skip: 0, buffer, onEnd });
    await expect(late).rejects.toMatchObject({ errno: "ETIMEDOUT" });
    expect(clock.now()).toBe(40_000);
    expect(ends).toEqual([undefined]);
    expect((await failed).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(held.waiting.map(({ offset }) => offset)).toEqual([0, 512]);
    const next = read(2048, 512);
    await Promise.resolve();
    expect(held.waiting).toHaveLength(2);
    held.release("read");
    expect(Buffer.compare(await next, CONTENT.subarray(2048, 2560))).toBe(0);
    expect(held.log).toEqual(["read 0+512", "read 512+512", "read 2048+512"]);
  });

  test("hands on the source's error, and goes on", async () => {
    const { reader, read, stats } = setUp({ wrap: (device) => new FaultyDevice(device, { failRead: [0] }) });
    const ends: unknown[] = [];
    const buffer = Buffer.alloc(512);
    const reading = reader.read({
      range: { offset: 0, length: 512 },
      skip: 0,
      buffer,
      onEnd: (bytes) => void ends.push(bytes),
    });
    await expect(reading).rejects.toThrow('Cannot read 512 bytes at 0 from "source": EIO');
    expect(ends).toEqual([undefined]);
    expect(Buffer.compare(await read(0, 512), CONTENT.subarray(0, 512))).toBe(0);
    expect(stats).toEqual({ sourceReadBytes: 512, timeouts: 0 });
  });

  test("takes what is in memory at once, without a place or a timer, unless others wait", async () => {
    const clock = new VirtualClock();
    const source = new MemoryDevice({ name: "source", size: SIZE, content: CONTENT });
    const held = new HeldDevice(source);
    const stats = { sourceReadBytes: 0, timeouts: 0 };
    let cached = true;
    held.tryRead = ((offset: number, buffer: Uint8Array) => cached && source.tryRead(offset, buffer)) as () => boolean;
    const reader = new SourceReader({ source: held, clock, timeoutMs: 30_000, depth: 1, stats });
    const buffer = Buffer.alloc(5000);
    expect(reader.tryRead(100, buffer)).toBe(true);
    expect(Buffer.compare(buffer, CONTENT.subarray(100, 5100))).toBe(0);
    const ends: (Uint8Array | undefined)[] = [];
    await reader.read({
      range: { offset: 0, length: 8192 },
      skip: 3000,
      buffer,
      onEnd: (bytes) => void ends.push(bytes),
    });
    expect(Buffer.compare(buffer, CONTENT.subarray(3000, 8000))).toBe(0);
    expect(Buffer.compare((ends[0] as Uint8Array).subarray(0, 8192), CONTENT.subarray(0, 8192))).toBe(0);
    expect([held.log, clock.sleeping, stats.sourceReadBytes]).toEqual([[], 0, 13_192]);
    // More than a quarter of a MiB would keep the event loop from everybody else.
    expect(reader.tryRead(0, Buffer.alloc(2 ** 19))).toBe(false);

    cached = false;
    held.hold("read");
    const first = reader.read({ range: { offset: 0, length: 512 }, skip: 0, buffer: Buffer.alloc(512) });
    const second = reader.read({ range: { offset: 512, length: 512 }, skip: 0, buffer: Buffer.alloc(512) });
    cached = true;
    expect(reader.tryRead(0, Buffer.alloc(512))).toBe(false);
    held.release("read");
    await Promise.all([first, second]);
    reader.close();
  });

  test("hands on an error of the attempt to read at once", async () => {
    const { reader, held } = setUp();
    held.tryRead = () => {
      throw new Error("broken");
    };
    const ends: unknown[] = [];
    const request = { range: { offset: 0, length: 512 }, skip: 0, buffer: Buffer.alloc(512) };
    await expect(reader.read({ ...request, onEnd: (bytes) => void ends.push(bytes) })).rejects.toThrow("broken");
    expect(ends).toEqual([undefined]);
  });
});

describe("SourceReader and passing errors", () => {
  /** A source of which the first `errors` reads fail. */
  function setUpFailing(errors: (Error | DeviceError)[], options: Partial<SourceReaderParts> = {}) {
    const clock = new VirtualClock();
    const source = new HeldDevice(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT }));
    const read = source.read.bind(source);
    const askedAt: number[] = [];
    source.read = async (offset, buffer) => {
      askedAt.push(clock.now());
      const error = errors.shift();
      if (error !== undefined) throw error;
      await read(offset, buffer);
    };
    const stats = { sourceReadBytes: 0, timeouts: 0 };
    const parts = { source, clock, timeoutMs: 30_000, depth: 2, stats, retry: 3, random: () => 1 };
    const reader = new SourceReader({ ...parts, ...options });
    const buffer = Buffer.alloc(512);
    const request = { range: { offset: 512, length: 512 }, skip: 0, buffer };
    return { clock, reader, request, askedAt, stats, buffer };
  }
  const ioError = (errno: string): DeviceError => new DeviceError(`Cannot read: ${errno}`, { errno });

  test("asks again, after pauses that grow, while somebody waits", async () => {
    const { reader, request, askedAt, buffer, stats } = setUpFailing([ioError("EIO"), ioError("ECONNRESET")]);
    await reader.read(request);
    expect(askedAt).toEqual([0, 50, 150]);
    expect(buffer.equals(CONTENT.subarray(512, 1024))).toBe(true);
    expect(stats).toEqual({ sourceReadBytes: 512, timeouts: 0 });
  });

  test("hands on the last error when it has tried often enough", async () => {
    const errors = ["EIO", "EIO", "EIO", "ENODATA"].map(ioError);
    const { reader, request, askedAt } = setUpFailing(errors);
    await expect(reader.read(request)).rejects.toMatchObject({ errno: "ENODATA" });
    expect(askedAt).toEqual([0, 50, 150, 350]);
  });

  test.for([
    ["a source that is gone", ioError("ENODEV")],
    ["a source that has changed", new ChangedError("Cannot read: it has changed", { difference: "has another tag" })],
    ["no error of a device", new Error("broken")],
  ] as const)("does not ask again after %s", async ([, error]) => {
    const { reader, request, askedAt } = setUpFailing([error]);
    await expect(reader.read(request)).rejects.toBe(error);
    expect(askedAt).toEqual([0]);
  });

  test("does not ask again for what is known to be unreadable, nor for what nobody waits for", async () => {
    const known = setUpFailing([ioError("EIO")], { isUnreadable: ({ offset, length }) => offset + length > 600 });
    await expect(known.reader.read(known.request)).rejects.toMatchObject({ errno: "EIO" });
    expect(known.askedAt).toEqual([0]);
    const ahead = setUpFailing([ioError("EIO")]);
    await expect(ahead.reader.read({ ...ahead.request, speculative: true })).rejects.toMatchObject({ errno: "EIO" });
    expect(ahead.askedAt).toEqual([0]);
  });

  test("gives the client the error, and asks no more, when its time is up meanwhile", async () => {
    const errors = Array.from({ length: 9 }, () => ioError("EIO"));
    const { clock, reader, request, askedAt, stats } = setUpFailing(errors, { retry: 8, timeoutMs: 200 });
    await expect(reader.read(request)).rejects.toMatchObject({ errno: "EIO" });
    expect([clock.now(), stats.timeouts]).toEqual([200, 0]);
    await clock.sleep(60_000);
    expect(askedAt).toEqual([0, 50, 150]);
  });
});

describe("SourceReader and those who read beside it", () => {
  function setUpShared(options: Partial<SourceReaderParts> = {}) {
    const clock = new VirtualClock();
    const held = new HeldDevice(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT }));
    const reads = new ReadsInFlight();
    const stats = { sourceReadBytes: 0, timeouts: 0 };
    const reader = new SourceReader({ source: held, clock, timeoutMs: 30_000, depth: 1, stats, reads, ...options });
    const read = async (offset: number, length: number): Promise<boolean> => {
      const buffer = Buffer.alloc(length, 0xee);
      await reader.read({ range: { offset, length }, skip: 0, buffer });
      return buffer.equals(CONTENT.subarray(offset, offset + length));
    };
    /** As a copy in the background does it. */
    const copy = (offset: number, length: number) => {
      const memory = Buffer.alloc(length);
      const fetch = reads.fetch({ offset, length }, () => memory);
      return { fetch, done: fetch.run((from, bytes) => held.read(from, bytes)) };
    };
    return { clock, held, reads, stats, reader, read, copy };
  }

  test("takes what a copy has on its way, without a place of its own", async () => {
    const { held, copy, read, reads } = setUpShared({ timeoutMs: Infinity });
    held.hold("read");
    const copying = copy(0, 65_536);
    const hanging = read(2 ** 20, 512);
    const joined = read(4096, 4096);
    await whenIdle();
    expect(held.waiting).toHaveLength(2);
    held.release("read");
    expect(await Promise.all([joined, hanging])).toEqual([true, true]);
    await copying.done;
    expect(await read(8192, 512)).toBe(true); // it has come, and is not at the destination yet
    copying.fetch.release();
    expect([reads.count, held.log]).toEqual([0, ["read 0+65536", `read ${2 ** 20}+512`]]);
  });

  test("gives up on a copy that hangs, as it would on the source", async () => {
    const { clock, held, copy, read, stats } = setUpShared();
    held.hold("read");
    const copying = copy(0, 65_536);
    await expect(read(4096, 4096)).rejects.toMatchObject({ errno: "ETIMEDOUT", offset: 4096, length: 4096 });
    expect([clock.now(), stats.timeouts]).toEqual([30_000, 1]);
    held.release("read");
    await copying.done;
    copying.fetch.release();
  });

  test("waits for its turn with the one who asks, as long as others get answers", async () => {
    const { clock, held, read } = setUpShared();
    held.hold("read");
    const first = read(0, 512);
    const queued = read(4096, 4096);
    const joined = read(4096, 1024);
    await clock.sleep(25_000);
    held.release("read");
    held.hold("read");
    expect(await first).toBe(true);
    await clock.sleep(25_000); // the queued one is at the source for as long as that; the joined one has waited for 50 s
    held.release("read");
    expect(await Promise.all([queued, joined])).toEqual([true, true]);
    expect(held.log).toEqual(["read 0+512", "read 4096+4096"]);
  });

  test("asks for itself where the one who asks gives up in the queue", async () => {
    const { clock, held, read } = setUpShared({ depth: 1 });
    held.hold("read");
    const hanging = read(0, 512).catch(() => "timed out");
    const queued = read(4096, 4096).catch(() => "timed out");
    await clock.sleep(20_000);
    const late = read(4096, 1024);
    expect([await hanging, await queued, clock.now()]).toEqual(["timed out", "timed out", 30_000]);
    held.release("read");
    expect(await late).toBe(true);
    expect(held.log).toEqual(["read 0+512", "read 4096+1024"]);
  });

  test("keeps what nobody has used up, as far as it has room, and the youngest the longest", async () => {
    const { held, read, copy, reader, reads } = setUpShared({ keptBytes: 3 * 4096 });
    for (let at = 0; at < 4; at++) await read(at * 4096, 4096);
    const copying = copy(0, 4 * 4096);
    await copying.done;
    expect(held.log.slice(4)).toEqual(["read 0+4096"]);
    copying.fetch.release();
    reader.close();
    expect(reads.count).toBe(0);
  });

  test("has no more bytes in flight than it may, but one read in any case", async () => {
    const { held, read } = setUpShared({ depth: 10, mostBytes: 10_000, timeoutMs: Infinity });
    held.hold("read");
    const all = [read(0, 65_536), read(65_536, 4096), read(2 ** 18, 4096), read(2 ** 19, 4096)];
    await whenIdle();
    expect(held.waiting).toHaveLength(1);
    held.release("read");
    held.hold("read");
    await whenIdle();
    expect(held.waiting).toHaveLength(2);
    held.release("read");
    expect(await Promise.all(all)).toEqual([true, true, true, true]);
  });
});

describe("BufferShelf", () => {
  test("lends by powers of two, keeps what comes back, up to its bound", () => {
    let allocated = 0;
    const shelf = new BufferShelf(16_384, (byteLength) => {
      allocated++;
      return new Uint8Array(byteLength);
    });
    const [a, b, c] = [shelf.take(1), shelf.take(4097), shelf.take(8192)];
    expect([a.length, b.length, c.length]).toEqual([4096, 8192, 8192]);
    shelf.put(a);
    shelf.put(b);
    shelf.put(c); // 20,480 would be too many
    expect(shelf.take(5000)).toBe(b);
    expect(shelf.take(5000)).not.toBe(c);
    expect(shelf.take(4096)).toBe(a);
    expect(allocated).toBe(4);
  });
});

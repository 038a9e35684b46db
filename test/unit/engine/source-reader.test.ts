import { describe, expect, test } from "vitest";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { BufferShelf } from "../../../src/engine/buffer-shelf.ts";
import { SourceReader } from "../../../src/engine/source-reader.ts";
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

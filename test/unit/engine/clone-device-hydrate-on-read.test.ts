import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import type { HydrateOnRead } from "../../../src/engine/clone-device.ts";
import { bytesAt, destinationOf, drawing, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { formattedStore } from "../../support/hydration.ts";
import { noise } from "../../support/layout.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 8 * REGION;
const OLD = noise(SIZE, 1);
const DIRT = noise(SIZE, 2);

async function setUp(hydrateOnRead: HydrateOnRead, options: Parameters<typeof makeClone>[0] = {}) {
  const badSource = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: OLD }), {});
  const source = new HeldDevice(badSource);
  const memory = new MemoryDevice({ name: "destination", size: SIZE, content: DIRT });
  const bad = new FaultyDevice(memory, {});
  const destination = new HeldDevice(bad);
  const clone = await makeClone({ size: SIZE, source, destination, hydrateOnRead, ...options });
  const { device } = clone;
  /** Reads, and compares with the source. */
  const read = async (offset: number, length: number): Promise<void> => {
    expect(Buffer.compare(await bytesAt(device, offset, length), OLD.subarray(offset, offset + length))).toBe(0);
  };
  return { ...clone, badSource, source, memory, bad, destination, read };
}

describe("Hydration on read", () => {
  test.for<[HydrateOnRead, number, number, string, string]>([
    ["never", 0, SIZE, "........", `read 0+${SIZE}`],
    ["whole", REGION, 2 * REGION, ".##.....", `read ${REGION}+${2 * REGION}`],
    ["whole", REGION + 1, 3 * REGION, "..##....", `read ${REGION + 1}+${3 * REGION}`],
    ["whole", REGION + 1, 2 * REGION - 1, "..#.....", `read ${REGION + 1}+${2 * REGION - 1}`],
    ["whole", REGION + 1, REGION, "........", `read ${REGION + 1}+${REGION}`],
    ["whole", 100, 100, "........", "read 100+100"],
    ["always", REGION, REGION, ".#......", `read ${REGION}+${REGION}`],
    ["always", REGION + 1, REGION, ".##.....", `read ${REGION}+${2 * REGION}`],
    ["always", 100, 100, "#.......", `read 0+${REGION}`],
    ["always", SIZE - 1, 1, ".......#", `read ${SIZE - REGION}+${REGION}`],
  ])("%s: a read at %i of %i bytes", async ([policy, offset, length, after, asked]) => {
    const { device, read, regions, source, destination, memory } = await setUp(policy);
    await read(offset, length);
    await device.drain();
    expect(drawing({ regions })).toBe(after);
    // The source was asked once.
    expect(source.log).toEqual([asked]);
    source.log.length = 0;
    const hydrated = after.split("#").length - 1;
    expect(device.stats).toMatchObject({
      hydratedOnReadBytes: hydrated * REGION,
      sourceServedBytes: length,
      writeBehindBytes: 0,
    });
    // What is hydrated is right, and is not asked for again.
    const start = after.indexOf("#");
    if (start < 0) return expect(destination.log).toEqual([]);
    const bytes = await bytesAt(memory, start * REGION, hydrated * REGION);
    expect(Buffer.compare(bytes, OLD.subarray(start * REGION, (start + hydrated) * REGION))).toBe(0);
    await read(start * REGION, hydrated * REGION);
    expect(source.log).toEqual([]);
  });

  test("leaves out what is hydrated or in the table already, and does not complete that either", async () => {
    const { read, device, regions, source } = await setUp("always", { hydrated: [] });
    await device.write(3 * REGION, OLD.subarray(3 * REGION, 4 * REGION));
    const busy = regions.begin({ start: 5, end: 6 });
    await read(REGION + 10, 4 * REGION + 20);
    await device.drain();
    expect(drawing({ regions })).toBe(".####~..");
    expect(source.log).toEqual([`read ${REGION}+${2 * REGION}`, `read ${4 * REGION}+${REGION + 30}`]);
    regions.fail(busy);
  });

  test("covers the short last region, of a clone of an odd size too", async () => {
    const size = 2 * REGION + 700;
    const image = new HeldDevice(destinationOf(new MemoryDevice({ size, content: OLD.subarray(0, size) }), size));
    const { device, regions } = await makeClone({ size, source: image, hydrateOnRead: "whole" });
    await bytesAt(device, 2 * REGION, 700);
    await device.drain();
    expect(drawing({ regions })).toBe("..#");
    expect(Buffer.compare(await bytesAt(device, 0, size), OLD.subarray(0, size))).toBe(0);
  });

  test("answers the reader before the destination has been written, from bytes that are not the reader's", async () => {
    const { device, destination, regions, memory } = await setUp("whole");
    destination.hold("write");
    const buffer = await bytesAt(device, REGION, REGION);
    buffer.fill(0xdd); // it is the reader's own
    expect(drawing({ regions })).toBe(".~......");
    expect(device.stats.writeBehindBytes).toBe(REGION);
    expect(device.inFlight).toBe(1);
    destination.release("write");
    await device.drain();
    expect(drawing({ regions })).toBe(".#......");
    expect(Buffer.compare(await bytesAt(memory, REGION, REGION), OLD.subarray(REGION, 2 * REGION))).toBe(0);
  });

  test("is in the table from before the source is read: a write to a part waits for the bytes, and lands on them", async () => {
    const { device, source, regions, read } = await setUp("whole");
    source.hold("read");
    const reading = read(REGION, REGION);
    await whenIdle();
    expect(drawing({ regions })).toBe(".~......");
    const writing = device.write(REGION + 100, Buffer.alloc(100, 7));
    await whenIdle();
    source.release("read");
    await Promise.all([reading, writing]);
    expect(source.log).toEqual([`read ${REGION}+${REGION}`]);
    expect(device.stats.demandCopies).toBe(0);
    const expected = Buffer.from(OLD.subarray(REGION, 2 * REGION)).fill(7, 100, 200);
    expect(Buffer.compare(await bytesAt(device, REGION, REGION), expected)).toBe(0);
  });

  test.for(["write", "discard", "zero"] as const)(
    "is cancelled by a %s that covers the region, which need not wait for the source",
    async (kind) => {
      const { device, source, regions, read, destination } = await setUp("whole");
      source.hold("read");
      const reading = read(REGION, 2 * REGION);
      await whenIdle();
      expect(drawing({ regions })).toBe(".~~.....");
      if (kind === "write") await device.write(REGION, Buffer.alloc(REGION, 7));
      else await device[kind](REGION, REGION);
      expect(drawing({ regions })).toBe(".#......");
      await device.flush();
      source.release("read");
      await reading; // it began before the write did
      await device.drain();
      expect(device.stats.writeBehindCancelled).toBe(1);
      expect(await bytesAt(device, REGION, REGION)).toEqual(Buffer.alloc(REGION, kind === "write" ? 7 : 0));
      // Nor is the other region of that read written behind any more.
      expect(drawing({ regions })).toBe(".#......");
      expect(destination.log.filter((entry) => entry.endsWith(`+${2 * REGION}`))).toEqual([]);
    },
  );

  test.for(["write", "discard"] as const)("that has begun to land is waited for by a %s", async (kind) => {
    const { device, destination, regions, read } = await setUp("whole");
    destination.hold("write");
    await read(REGION, REGION);
    await whenIdle();
    let ended = false;
    const changing = (
      kind === "write" ? device.write(REGION, Buffer.alloc(REGION, 7)) : device.discard(REGION, REGION)
    ).then(() => {
      ended = true;
    });
    await whenIdle();
    expect([ended, destination.waiting.length]).toEqual([false, 1]);
    destination.release("write");
    await changing;
    await device.flush();
    expect(drawing({ regions })).toBe(".#......");
    if (kind === "write") expect(await bytesAt(device, REGION, REGION)).toEqual(Buffer.alloc(REGION, 7));
  });

  test("takes no more than its buffer: beyond that a read is a read", async () => {
    const { device, destination, regions, read } = await setUp("whole", { writeBehindBytes: 3 * REGION });
    destination.hold("write");
    await read(0, 2 * REGION);
    await read(2 * REGION, 2 * REGION);
    await read(4 * REGION, REGION);
    expect(drawing({ regions })).toBe("~~..~...");
    await read(5 * REGION, REGION);
    expect(drawing({ regions })).toBe("~~..~...");
    destination.release("write");
    await device.drain();
    await read(2 * REGION, 2 * REGION);
    await device.drain();
    expect(drawing({ regions })).toBe("#####...");
  });

  test("that fails is nobody's error, is counted, and not tried again at once", async () => {
    const { device, clock, bad, regions, read, commits } = await setUp("whole");
    bad.faults = { failWrite: [0], errno: "ENOSPC" };
    await read(REGION, REGION);
    await device.drain();
    expect(drawing({ regions })).toBe("........");
    expect(device.stats).toMatchObject({ writeBehindFailures: 1, failures: 0 });
    expect(commits.failure).toBeUndefined();
    await read(REGION, REGION);
    await device.drain();
    expect(drawing({ regions })).toBe("........");
    await clock.sleep(1000);
    await read(REGION, REGION);
    await device.drain();
    expect(drawing({ regions })).toBe(".#......");
  });

  test("of a source that fails hydrates nothing, and the reader has the error", async () => {
    const { device, badSource, regions, read } = await setUp("always");
    badSource.faults = { failRead: [0] };
    await expect(bytesAt(device, 100, 100)).rejects.toMatchObject({ errno: "EIO" });
    expect(drawing({ regions })).toBe("........");
    expect([device.stats.writeBehindBytes, device.inFlight]).toEqual([0, 0]);
    await read(100, 100);
  });

  test("makes use of bytes that come too late for the reader, who may not see them in the buffer", async () => {
    const { device, clock, source, regions } = await setUp("always", { sourceTimeoutMs: 5000 });
    source.hold("read");
    const buffer = Buffer.alloc(100, 0xee);
    await expect(device.read(100, buffer)).rejects.toMatchObject({ errno: "ETIMEDOUT" });
    expect(clock.now()).toBe(5000);
    expect(drawing({ regions })).toBe("~.......");
    source.release("read");
    await device.drain();
    expect(drawing({ regions })).toBe("#.......");
    expect(buffer).toEqual(Buffer.alloc(100, 0xee));
  });

  test("does not write zeros: it makes them where the destination shows something else", async () => {
    const content = Buffer.concat([noise(2 * REGION, 1), Buffer.alloc(4 * REGION), noise(2 * REGION, 2)]);
    const hole = new MemoryDevice({ name: "destination", size: SIZE });
    await hole.write(4 * REGION, DIRT.subarray(0, 4 * REGION));
    const destination = new HeldDevice(hole);
    const source = new MemoryDevice({ size: SIZE, content });
    const { device, regions } = await makeClone({ size: SIZE, source, destination, hydrateOnRead: "whole" });
    await bytesAt(device, 0, SIZE);
    await device.drain();
    expect(drawing({ regions })).toBe("########");
    expect(destination.log.filter((entry) => !entry.startsWith("read"))).toEqual([
      `write 0+${2 * REGION}`,
      `zero ${4 * REGION}+${2 * REGION}`,
      `write ${6 * REGION}+${2 * REGION}`,
    ]);
    expect(Buffer.compare(await bytesAt(device, 0, SIZE), content)).toBe(0);
  });

  test("never takes regions of more than a MiB, but says that they will be wanted", async () => {
    const size = 8 * 2 ** 20;
    const regionSize = 2 ** 21;
    const source = new HeldDevice(new MemoryDevice({ size, content: noise(size, 1) }));
    const { device, regions, hints } = await makeClone({
      size,
      regionSize,
      source,
      destination: new MemoryDevice({ size }),
      store: await formattedStore(size, regionSize),
      hydrateOnRead: "always",
    });
    await bytesAt(device, regionSize + 100, 100);
    await device.drain();
    expect([drawing({ regions }), source.log, hints]).toEqual([
      "....",
      [`read ${regionSize + 100}+100`],
      ["nearby 1-2"],
    ]);
  });

  test("may be switched at any time", async () => {
    const { device, regions, read } = await setUp("never");
    await read(0, REGION);
    device.hydrateOnRead = "always";
    expect(device.hydrateOnRead).toBe("always");
    await read(REGION, 1);
    device.hydrateOnRead = "never";
    await read(2 * REGION, REGION);
    await device.drain();
    expect(drawing({ regions })).toBe(".#......");
  });
});

import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { bytesAt, destinationOf, drawing, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { formattedStore } from "../../support/hydration.ts";
import { noise } from "../../support/layout.ts";
import { SlowDevice } from "../../support/slow-device.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 8 * REGION;
const OLD = noise(SIZE, 1);
const DIRT = noise(SIZE, 2);
const signal = new AbortController().signal;

async function setUp(options: Parameters<typeof makeClone>[0] = {}) {
  const badSource = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: OLD }), {});
  const source = new HeldDevice(badSource);
  const badDestination = new FaultyDevice(new MemoryDevice({ name: "destination", size: SIZE, content: DIRT }), {});
  const destination = new HeldDevice(badDestination);
  const clone = await makeClone({ size: SIZE, source, destination, ...options });
  /** What clients must see, as the test goes on. */
  const expected = Buffer.from(OLD);
  const write = (offset: number, length: number, value: number, fua = false): Promise<void> => {
    expected.fill(value, offset, offset + length);
    return clone.device.write(offset, Buffer.alloc(length, value), { fua });
  };
  const check = async (): Promise<void> => {
    expect(
      Buffer.compare(await bytesAt(clone.device, 0, clone.device.size), expected.subarray(0, clone.device.size)),
    ).toBe(0);
  };
  return { ...clone, badSource, source, badDestination, destination, expected, write, check };
}

describe("CloneDevice.write()", () => {
  test("of hydrated regions goes to the destination alone, in one piece", async () => {
    const { device, source, destination, metadata, geometry, copier } = await setUp();
    await copier.copy({ offset: 0, length: SIZE }, signal);
    metadata.markHydrated({ start: 0, end: geometry.regionCount });
    source.log.length = 0;
    destination.log.length = 0;
    await device.write(100, Buffer.alloc(3 * REGION, 7));
    expect([source.log, destination.log]).toEqual([[], [`write 100+${3 * REGION}`]]);
  });

  test("of a part of an unhydrated region copies the region first", async () => {
    const { write, check, regions, source, device } = await setUp();
    await write(2 * REGION + 100, 50, 7);
    expect(drawing({ regions })).toBe("..#.....");
    expect(source.log).toEqual([`read ${2 * REGION}+${REGION}`]);
    expect(device.stats).toMatchObject({ writes: 1, writtenBytes: 50, demandCopies: 1, overwrittenRegions: 0 });
    await check();
  });

  test("that covers regions whole copies nothing, whatever is the matter with the source", async () => {
    const { write, check, regions, source, destination, device, badSource } = await setUp();
    badSource.faults = { failRead: () => true };
    await write(REGION, 3 * REGION, 7);
    expect(drawing({ regions })).toBe(".###....");
    expect([source.log, destination.log]).toEqual([[], [`write ${REGION}+${3 * REGION}`]]);
    expect(device.stats).toMatchObject({ overwrittenRegions: 3, demandCopies: 0 });
    badSource.faults = {};
    await check();
  });

  test("across unhydrated and hydrated regions copies only what it covers in part", async () => {
    const { write, check, regions, source } = await setUp();
    await write(3 * REGION, REGION, 1);
    await write(REGION + 10, 5 * REGION, 7);
    expect(drawing({ regions })).toBe(".######.");
    expect(source.log).toEqual([`read ${REGION}+${REGION}`, `read ${6 * REGION}+${REGION}`]);
    await check();
  });

  test.for([SIZE - 512, SIZE - 700, SIZE - 1])(
    "that reaches the end of a clone of %i bytes covers its short last region whole",
    async (size) => {
      const disk = new MemoryDevice({ name: "disk", size: SIZE, content: DIRT });
      const image = new HeldDevice(
        destinationOf(new MemoryDevice({ name: "source", size, content: OLD.subarray(0, size) }), size),
      );
      const { device, regions, metadata } = await makeClone({
        size,
        source: image,
        destination: destinationOf(disk, size),
      });
      await device.write(7 * REGION, Buffer.alloc(size - 7 * REGION, 9));
      expect(drawing({ regions })).toBe(".......#");
      expect(image.log).toEqual([]);
      await device.write(6 * REGION + 1, Buffer.alloc(size - 6 * REGION - 1, 8));
      expect(image.log).toEqual([`read ${6 * REGION}+${REGION}`]);
      expect(metadata.hydratedCount).toBe(2);
      expect(Buffer.compare(await bytesAt(disk, size, SIZE - size), DIRT.subarray(size))).toBe(0);
    },
  );

  test("to a region that is being copied waits for the copy, and lands on top of it, in the order the writes came", async () => {
    const { regions, copier, geometry, destination, write, check } = await setUp();
    destination.hold("write");
    const hydration = regions.begin({ start: 0, end: 4 });
    const copying = copier.copy(geometry.bytesOf(hydration), signal).then(() => regions.complete(hydration));
    await whenIdle();
    const ended: number[] = [];
    const writes = [
      write(REGION + 100, 200, 1).then(() => ended.push(1)),
      write(REGION + 200, 200, 2).then(() => ended.push(2)),
      write(REGION + 300, 200, 3).then(() => ended.push(3)),
      write(2 * REGION, REGION, 4).then(() => ended.push(4)), // one that covers it whole waits too
    ];
    await whenIdle();
    expect(ended).toEqual([]);
    expect(destination.waiting).toHaveLength(1); // the copy
    destination.release("write");
    await Promise.all([copying, ...writes]);
    expect(ended).toEqual([1, 2, 3, 4]);
    expect(destination.log[0]).toBe(`write 0+${4 * REGION}`);
    await check();
  });

  test("small ones to one region cause one copy", async () => {
    const { write, check, source, device } = await setUp();
    await Promise.all(Array.from({ length: 20 }, (_, index) => write(5 * REGION + 200 * index, 200, index + 1)));
    expect(source.log).toEqual([`read ${5 * REGION}+${REGION}`]);
    expect(device.stats.demandCopies).toBe(1);
    await check();
  });

  test("fails where the copy does, and so do those that wait for it; the next one tries again", async () => {
    const { device, regions, badSource, check, write, expected } = await setUp();
    badSource.faults = { failRead: [0] };
    const results = await Promise.allSettled([1, 2, 3].map(() => device.write(10, Buffer.alloc(10))));
    for (const result of results) {
      expect(result).toMatchObject({
        status: "rejected",
        reason: { errno: "EIO", message: /^Cannot read 4096 bytes at 0 from "source"/ },
      });
    }
    expect(drawing({ regions })).toBe("........");
    expect(device.stats).toMatchObject({ demandCopies: 1, demandCopyFailures: 1, failures: 3 });
    expect(expected).toEqual(OLD);
    await write(10, 10, 5);
    await check();
  });

  test("that covers a region whole does not mind that the copy it waited for has failed", async () => {
    const { device, regions, badSource, source, write, check } = await setUp();
    badSource.faults = { failRead: [0] };
    source.hold("read");
    const part = expect(device.write(10, Buffer.alloc(10))).rejects.toThrow("EIO");
    const whole = write(0, REGION, 5);
    await whenIdle();
    source.release("read");
    await Promise.all([part, whole]);
    expect(drawing({ regions })).toBe("#.......");
    await check();
  });

  test("waits no longer than the time limit for a copy from a source that hangs, and nothing of it lands later", async () => {
    const { device, clock, regions, source, destination, write, check } = await setUp({ sourceTimeoutMs: 5000 });
    source.hold("read");
    const writes = [device.write(10, Buffer.alloc(10, 1)), device.write(0, Buffer.alloc(REGION, 2))];
    for (const result of await Promise.allSettled(writes)) {
      expect(result).toMatchObject({ status: "rejected", reason: { errno: "ETIMEDOUT" } });
    }
    expect(clock.now()).toBe(5000);
    expect(device.stats).toMatchObject({ timeouts: 2, failures: 2 });
    // The copy may still land, so the region stays in the table, and in the way of others; everything else goes on.
    expect(drawing({ regions })).toBe("~.......");
    await write(REGION, REGION, 3);
    await expect(device.write(20, Buffer.alloc(10, 4))).rejects.toMatchObject({ errno: "ETIMEDOUT" });
    expect(clock.now()).toBe(10_000);
    expect(device.inFlight).toBe(1);
    source.release("read");
    await device.drain();
    expect(drawing({ regions })).toBe("##......");
    expect(destination.log).toEqual([`write ${REGION}+${REGION}`, `write 0+${REGION}`]);
    await check();
  });

  test("waits as long as it takes for a large region of a source that answers, however slowly", async () => {
    const size = 8 * 2 ** 20;
    const clock = new VirtualClock();
    const source = new SlowDevice(new MemoryDevice({ name: "source", size, content: noise(size, 1) }), clock, 3000);
    const made = { size, regionSize: size, source, clock, sourceTimeoutMs: 7000 };
    const { device, regions } = await makeClone({ ...made, store: await formattedStore(size, size) });
    await device.write(4096, Buffer.alloc(4096, 7));
    expect(clock.now()).toBeGreaterThan(10_000);
    expect(drawing({ regions })).toBe("#");
    expect(await bytesAt(device, 4096, 4096)).toEqual(Buffer.alloc(4096, 7));
  });

  test("that fails at the destination is only its own error; what it covered whole stays the source's", async () => {
    const { device, regions, badDestination, commits, write, check } = await setUp();
    badDestination.faults = { failWrite: [0], errno: "ENOSPC" };
    await expect(device.write(2 * REGION, Buffer.alloc(REGION, 7))).rejects.toMatchObject({ errno: "ENOSPC" });
    expect(drawing({ regions })).toBe("........");
    expect(commits.failure).toBeUndefined();
    await check();
    await write(2 * REGION, REGION, 7);
    await check();
  });

  test("that fails in one part ends when the others have", async () => {
    const { device, badSource, destination } = await setUp();
    badSource.faults = { failRead: ({ offset }) => offset === 0 };
    destination.hold("write");
    let ended = false;
    const writing = device.write(100, Buffer.alloc(3 * REGION, 7)).finally(() => {
      ended = true;
    });
    const failed = expect(writing).rejects.toThrow("EIO");
    await whenIdle();
    await whenIdle();
    expect(ended).toBe(false);
    destination.release("write");
    await failed;
  });

  test("of nothing hydrates nothing", async () => {
    const { device, regions, source, check } = await setUp();
    for (const offset of [0, 100, REGION, SIZE]) await device.write(offset, Buffer.alloc(0));
    expect(drawing({ regions })).toBe("........");
    expect(source.log).toEqual([]);
    await check();
  });
});

describe("CloneDevice.tryWrite()", () => {
  test("writes where all is hydrated, and nothing is in the table", async () => {
    const destination = new MemoryDevice({ name: "destination", size: SIZE, content: DIRT });
    const { device, regions, meter } = await makeClone({ size: SIZE, destination, hydrated: [{ start: 0, end: 3 }] });
    expect(device.tryWrite(10, Buffer.alloc(2 * REGION, 7))).toBe(true);
    expect((await bytesAt(destination, 10, 2 * REGION)).every((byte) => byte === 7)).toBe(true);
    expect(device.tryWrite(2 * REGION, Buffer.alloc(REGION + 1, 8))).toBe(false);
    expect(device.tryWrite(3 * REGION, Buffer.alloc(REGION, 8))).toBe(false);
    regions.begin({ start: 3, end: 4 });
    expect(device.tryWrite(3 * REGION, Buffer.alloc(REGION, 8))).toBe(false);
    expect(device.tryWrite(0, Buffer.alloc(3 * REGION, 8))).toBe(true);
    expect(() => device.tryWrite(SIZE, Buffer.alloc(1))).toThrow(RangeError);
    expect(meter).toEqual({ busy: 0, touches: 2, measured: 0 });
    expect(device.stats).toMatchObject({ writes: 2, writtenBytes: 5 * REGION });
  });

  test("does not where the destination cannot at once", async () => {
    const { device } = await setUp({ hydrated: [{ start: 0, end: 3 }] });
    expect(device.tryWrite(0, Buffer.alloc(REGION))).toBe(false);
    expect(device.stats.writes).toBe(0);
  });
});

test("A read-only clone refuses every change with a TypeError, and still hydrates", async () => {
  const { device, regions, write } = await setUp({ readOnly: true, hydrateOnRead: "whole" });
  expect(device.readOnly).toBe(true);
  await expect(write(0, REGION, 7)).rejects.toThrow(TypeError);
  await expect(device.zero(0, REGION)).rejects.toThrow(TypeError);
  await expect(device.discard(0, REGION)).rejects.toThrow(TypeError);
  expect(() => device.tryWrite(0, Buffer.alloc(1))).toThrow(TypeError);
  await bytesAt(device, 0, REGION);
  await device.drain();
  expect(drawing({ regions })).toBe("#.......");
  await device.flush();
});

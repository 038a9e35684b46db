import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { afterPowerLossOf, bytesAt, drawing, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { formattedStore } from "../../support/hydration.ts";
import { imageOf } from "../../support/image.ts";
import { deviceOf, noise } from "../../support/layout.ts";
import { Power, PowerLossDevice } from "../../support/power-loss-device.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SECTOR = 512;
const SIZE = 8 * REGION;
const OLD = noise(SIZE, 1);
const DIRT = noise(SIZE, 2);
const signal = new AbortController().signal;

async function setUp(options: Parameters<typeof makeClone>[0] = {}) {
  const source = new HeldDevice(new MemoryDevice({ name: "source", size: SIZE, content: OLD }));
  const bad = new FaultyDevice(new MemoryDevice({ name: "destination", size: SIZE, content: DIRT }), {});
  const destination = new HeldDevice(bad);
  return { ...(await makeClone({ size: SIZE, source, destination, ...options })), source, bad, destination };
}

describe("CloneDevice.discard()", () => {
  // Three regions, the last of them short; all offsets and lengths in sectors, and a byte more or less.
  test.for([
    { state: "unhydrated", hydrated: [] as number[] },
    { state: "hydrated", hydrated: [0, 1, 2] },
    { state: "the middle one hydrated", hydrated: [1] },
    { state: "the outer ones hydrated", hydrated: [0, 2] },
  ])(
    "of any range of three regions, $state, makes it zeros, copies only what it covers in part, and changes nothing else",
    { timeout: 60_000 },
    async ({ hydrated }) => {
      const size = 2 * REGION + 3 * SECTOR;
      for (let start = 0; start <= size; start += SECTOR) {
        for (let end = start; end <= size; end += SECTOR) {
          for (const [offset, length] of start % REGION === SECTOR
            ? ([
                [start, end - start],
                [start - 1, end - start + 1],
              ] as const)
            : ([[start, end - start]] as const)) {
            const destination = new HeldDevice(new MemoryDevice({ size, content: DIRT.subarray(0, size) }));
            const source = new HeldDevice(new MemoryDevice({ size, content: OLD.subarray(0, size) }));
            const ranges = hydrated.map((region) => ({ start: region, end: region + 1 }));
            const { device, regions } = await makeClone({ size, source, destination, hydrated: ranges });
            await device.discard(offset, length);
            const copies = source.log.length;
            const shown = await bytesAt(device, 0, size);
            for (let region = 0; region < 3; region++) {
              const from = region * REGION;
              const to = Math.min(from + REGION, size);
              const touched = offset < to && offset + length > from && length > 0;
              // One that is touched in part is copied, and then hydrated as well.
              expect(regions.state(region)).toBe(touched || hydrated.includes(region) ? "hydrated" : "unhydrated");
              for (
                let byte = from;
                byte < to;
                byte += byte % SECTOR === SECTOR - 1 ? 1 : SECTOR - 1 - (byte % SECTOR)
              ) {
                const before = (hydrated.includes(region) ? DIRT : OLD)[byte];
                const inside = byte >= offset && byte < offset + length;
                if (!inside) {
                  if (shown[byte] !== before)
                    expect.fail(`byte ${byte} changed by a discard of ${length} at ${offset}`);
                } else if (shown[byte] !== 0) {
                  expect.fail(`byte ${byte} is ${shown[byte]} after a discard of ${length} at ${offset}`);
                }
              }
            }
            expect(copies).toBeLessThanOrEqual(2); // of its first and its last region: what it covers whole is not copied
          }
        }
      }
    },
  );

  test("of hydrated regions is passed down as it is, parts of regions too; unless that is not wanted", async () => {
    const hydrated = [{ start: 1, end: 5 }];
    const { device, destination } = await setUp({ hydrated });
    await device.discard(REGION + 512, 3 * REGION);
    expect(destination.log).toEqual([`zero ${REGION + 512}+${3 * REGION}`]);
    expect((await destination.extents(2 * REGION, REGION))[0]).toMatchObject({ hole: true });
    const kept = await setUp({ hydrated, discardPassdown: false });
    await kept.device.discard(REGION + 512, 3 * REGION);
    expect(await bytesAt(kept.device, REGION + 512, 3 * REGION)).toEqual(Buffer.alloc(3 * REGION));
    expect((await kept.destination.extents(2 * REGION, REGION))[0]).toMatchObject({ hole: false });
  });

  test("of hydrated regions is a discard, or nothing, where zeroing would take its time", async () => {
    const hydrated = [{ start: 1, end: 5 }];
    const { device, destination } = await setUp({ hydrated });
    destination.canZeroFast = async () => false;
    await device.discard(REGION + 512, 3 * REGION);
    expect(destination.log).toEqual([`discard ${REGION + 512}+${3 * REGION}`]);
    const kept = await setUp({ hydrated, discardPassdown: false });
    kept.destination.canZeroFast = async () => false;
    await kept.device.discard(REGION + 512, 3 * REGION);
    expect(kept.destination.log).toEqual([]);
  });

  test("across hydrated and unhydrated regions copies the first and the last, and zeroes the rest", async () => {
    const { device, regions, source } = await setUp({ hydrated: [{ start: 2, end: 4 }] });
    await device.discard(REGION - 512, 4 * REGION);
    expect(drawing({ regions })).toBe("#####...");
    expect(source.log.sort()).toEqual([`read 0+${REGION}`, `read ${4 * REGION}+${REGION}`]);
    expect(device.stats).toMatchObject({
      discards: 1,
      discardedBytes: 4 * REGION,
      discardedRegions: 1,
      demandCopies: 2,
    });
    const expected = Buffer.from(OLD);
    DIRT.copy(expected, 2 * REGION, 2 * REGION, 4 * REGION); // as hydrated as that
    expected.fill(0, REGION - 512, 5 * REGION - 512);
    expect(Buffer.compare(await bytesAt(device, 0, SIZE), expected)).toBe(0);
  });

  test("writes nothing where the destination shows zeros already", async () => {
    const hole = await deviceOf(
      [
        { kind: "hole", length: 4 * REGION },
        { kind: "data", length: 4 * REGION },
      ],
      SIZE,
      2,
      "destination",
    );
    const destination = new HeldDevice(hole);
    const { device, regions } = await setUp({ destination });
    await device.discard(0, 6 * REGION);
    expect(drawing({ regions })).toBe("######..");
    expect(destination.log).toEqual([`zero ${4 * REGION}+${2 * REGION}`]);
  });

  test("does not ask the source, which may be gone", async () => {
    const gone = new FaultyDevice(new MemoryDevice({ size: SIZE }), { failRead: () => true });
    const { device, regions } = await setUp({ source: gone });
    await device.discard(0, SIZE);
    expect(drawing({ regions })).toBe("########");
    expect(await bytesAt(device, 0, SIZE)).toEqual(Buffer.alloc(SIZE));
  });

  // The kernel's dm-clone gets this wrong to this day: its discard looks at the map alone.
  test.for([true, false])(
    "of a region that is being copied waits: the copy never lands on a later write (flushed: %s)",
    async (flushes) => {
      const power = new Power();
      const disk = new PowerLossDevice(DIRT, { name: "destination", power });
      const store = new PowerLossDevice(await imageOf(await formattedStore(SIZE, REGION)), { name: "metadata", power });
      const destination = new HeldDevice(disk);
      const { device, regions, copier, geometry, source } = await setUp({ destination, store });
      destination.hold("write"); // between the copy's read and its write
      const hydration = regions.begin({ start: 3, end: 4 });
      const copying = copier.copy(geometry.bytesOf(hydration), signal).then(() => regions.complete(hydration));
      await whenIdle();
      expect([source.log.length, destination.waiting.length]).toEqual([1, 1]);

      let discarded = false;
      const discarding = device.discard(3 * REGION, REGION).then(() => {
        discarded = true;
      });
      await whenIdle();
      const writing = device.write(3 * REGION + 512, Buffer.alloc(512, 7));
      await whenIdle();
      expect(discarded).toBe(false);
      expect(drawing({ regions })).toBe("...~....");
      destination.release("write");
      await Promise.all([copying, discarding, writing]);
      if (flushes) await device.flush();
      expect(await bytesAt(device, 3 * REGION + 512, 512)).toEqual(Buffer.alloc(512, 7));
      if (!flushes) return;
      const after = await afterPowerLossOf({ disk, store, size: SIZE, source });
      expect(await bytesAt(after.device, 3 * REGION + 512, 512)).toEqual(Buffer.alloc(512, 7));
    },
  );

  test("waits for a region that it covers in part, and then makes that part zeros", async () => {
    const { device, regions, destination } = await setUp();
    const hydration = regions.begin({ start: 1, end: 2 });
    const discarding = device.discard(0, REGION + 512);
    await whenIdle();
    expect(drawing({ regions })).toBe("#~......");
    await destination.write(REGION, OLD.subarray(REGION, 2 * REGION));
    regions.complete(hydration);
    await discarding;
    expect(await bytesAt(device, 0, REGION + 512)).toEqual(Buffer.alloc(REGION + 512));
    expect(Buffer.compare(await bytesAt(device, REGION + 512, 1000), OLD.subarray(REGION + 512, REGION + 1512))).toBe(
      0,
    );
  });

  test("fails where a region stays busy beyond the time limit: nobody may take it for zeros", async () => {
    const { device, regions, clock } = await setUp({ sourceTimeoutMs: 5000 });
    const busy = regions.begin({ start: 5, end: 6 });
    await expect(device.discard(0, SIZE)).rejects.toMatchObject({ errno: "ETIMEDOUT" });
    expect(clock.now()).toBe(5000);
    regions.fail(busy);
    await device.discard(0, SIZE);
    expect(drawing({ regions })).toBe("########");
  });

  test("fails where the destination does, and marks nothing there", async () => {
    const { device, regions, bad, commits } = await setUp();
    bad.faults = { failWrite: () => true };
    await expect(device.discard(REGION, 2 * REGION)).rejects.toMatchObject({ errno: "EIO" });
    expect(drawing({ regions })).toBe("........");
    expect(commits.failure).toBeUndefined();
    expect(Buffer.compare(await bytesAt(device, 0, SIZE), OLD)).toBe(0);
  });

  test("of much takes steps, so that others never wait long", async () => {
    const size = 2 ** 30;
    const regionSize = 2 ** 20;
    const destination = new HeldDevice(new MemoryDevice({ size }));
    const store = await formattedStore(size, regionSize);
    const { device, regions } = await makeClone({
      size,
      regionSize,
      store,
      source: new MemoryDevice({ size }),
      destination,
    });
    destination.hold("extents");
    const discarding = device.discard(0, size);
    await whenIdle();
    expect(regions.hydratingCount).toBe(128);
    // What it has not come to yet is free for others, who find it done.
    await device.write(512 * regionSize, Buffer.alloc(regionSize, 7));
    destination.release("extents");
    await discarding;
    expect(regions.hydratedCount).toBe(1024);
  });

  test("outside of the clone is the caller's mistake, an error and no broken invariant", async () => {
    const { device } = await setUp();
    await expect(device.discard(SIZE - 512, 1024)).rejects.toThrow(RangeError);
    await expect(device.discard(-1, 10)).rejects.toThrow(RangeError);
  });

  test("with FUA is durable when it is answered", async () => {
    const { device, metadata } = await setUp();
    await device.discard(REGION, REGION);
    expect([metadata.changed, metadata.committedCount]).toEqual([true, 0]);
    await device.discard(2 * REGION, REGION, { fua: true });
    expect([metadata.changed, metadata.committedCount]).toEqual([false, 2]);
  });
});

import { describe, expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { afterPowerLossOf, bytesAt, drawing, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { committedRegions, formattedStore } from "../../support/hydration.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { Power, PowerLossDevice } from "../../support/power-loss-device.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 100 * REGION;
const OLD = noise(SIZE, 1);
const DIRT = noise(SIZE, 2);

async function setUp(options: Parameters<typeof makeClone>[0] = {}) {
  const power = new Power();
  const disk = new PowerLossDevice(DIRT, { name: "disk", power });
  const medium = new PowerLossDevice(await imageOf(await formattedStore(SIZE, REGION)), { name: "metadata", power });
  const badDisk = new FaultyDevice(disk, {});
  const badStore = new FaultyDevice(medium, {});
  const destination = new HeldDevice(badDisk);
  const source = new MemoryDevice({ name: "source", size: SIZE, content: OLD });
  const clone = await makeClone({ size: SIZE, source, destination, store: badStore, ...options });
  /** The clone after the power has failed now, nothing of what was not flushed there. */
  const afterPowerLoss = () => afterPowerLossOf({ disk, store: medium, size: SIZE, source });
  return { ...clone, source, disk, medium, destination, badDisk, badStore, afterPowerLoss };
}

const isOdd = ({ index }: { index: number }): boolean => index % 2 === 1;
const sevens = Buffer.alloc(512, 7);

describe("CloneDevice.flush()", () => {
  test.for([
    ["a part of a region", 3 * REGION + 512, 512],
    ["a whole region", 3 * REGION, REGION],
    ["regions and parts of them", 3 * REGION + 512, 4 * REGION],
  ] as const)(
    "makes a write to %s survive, and the bits of its regions; without it nothing does",
    async ([, offset, length]) => {
      const { device, afterPowerLoss } = await setUp();
      const data = Buffer.alloc(length, 7);
      await device.write(offset, data);
      const lost = await afterPowerLoss();
      expect(lost.metadata.hydratedCount).toBe(0);
      expect(Buffer.compare(await bytesAt(lost.device, 0, SIZE), OLD)).toBe(0);
      await device.flush();
      const kept = await afterPowerLoss();
      const expected = Buffer.from(OLD);
      data.copy(expected, offset);
      expect(Buffer.compare(await bytesAt(kept.device, 0, SIZE), expected)).toBe(0);
      // A write to what is hydrated and committed needs the destination's flush alone.
      await device.write(offset, sevens);
      await device.flush();
      expect(device.stats.flushes).toBe(2);
    },
  );

  test.for([4, 90])(
    "that is under way does not vouch for region %i, written meanwhile: its bit belongs to the next commit",
    async (late) => {
      const { device, destination, medium, afterPowerLoss } = await setUp();
      await device.write(3 * REGION, Buffer.alloc(REGION, 7));
      destination.hold("flush");
      const flushing = device.flush();
      await whenIdle();
      await device.write(late * REGION, Buffer.alloc(REGION, 8));
      destination.release("flush");
      await flushing;
      expect(await committedRegions(medium.afterPowerLoss(() => 0))).toEqual([{ start: 3, end: 4 }]);
      await device.flush();
      const { device: after } = await afterPowerLoss();
      expect(await bytesAt(after, late * REGION, 512)).toEqual(Buffer.alloc(512, 8));
    },
  );

  test("covers what had been answered, of every client", async () => {
    const { device, afterPowerLoss } = await setUp();
    await Promise.all([1, 2, 3].map((region) => device.write(region * REGION + 512, sevens)));
    await device.flush();
    const { device: after } = await afterPowerLoss();
    for (const region of [1, 2, 3]) expect(await bytesAt(after, region * REGION + 512, 512)).toEqual(sevens);
  });
});

describe("CloneDevice.write() with FUA", () => {
  test.for([
    ["part of a region", 3 * REGION + 512, 512, false],
    ["whole region", 3 * REGION, REGION, false],
    ["part of a hydrated region that is not committed", 3 * REGION + 512, 512, true],
  ] as const)("survives when it is answered: a %s", async ([, offset, length, before]) => {
    const { device, afterPowerLoss } = await setUp();
    if (before) await device.write(3 * REGION, Buffer.alloc(REGION, 1));
    await device.write(offset, Buffer.alloc(length, 7), { fua: true });
    const { device: after } = await afterPowerLoss();
    expect(await bytesAt(after, offset, length)).toEqual(Buffer.alloc(length, 7));
    expect(device.stats.durableChanges).toBe(1);
    // Once more, with nothing to commit.
    await device.write(offset, Buffer.alloc(length, 9), { fua: true });
    expect(await bytesAt((await afterPowerLoss()).device, offset, length)).toEqual(Buffer.alloc(length, 9));
  });

  test("is still under way while it is made durable", async () => {
    const { device, destination, meter } = await setUp();
    destination.hold("flush");
    const writing = device.write(0, Buffer.alloc(REGION), { fua: true });
    await whenIdle();
    // But the time that the flush takes says nothing about how busy reads and writes find the devices.
    expect([device.inFlight, meter.busy]).toEqual([1, 0]);
    destination.release("flush");
    await writing;
    expect(device.inFlight).toBe(0);
  });
});

describe("A clone of which a commit has failed", () => {
  test.for<[string, (clone: Awaited<ReturnType<typeof setUp>>) => void]>([
    ["the destination's flush", ({ badDisk }) => void Object.assign(badDisk, { faults: { failFlush: [0] } })],
    ["a write of metadata", ({ badStore }) => void Object.assign(badStore, { faults: { failWrite: () => true } })],
    ["the metadata's last flush", ({ badStore }) => void Object.assign(badStore, { faults: { failFlush: isOdd } })],
  ])("by %s, shows what is true in memory, and refuses everything else with that error", async ([, breakIt]) => {
    const clone = await setUp();
    const { device, commits, events, regions, destination } = clone;
    await device.write(3 * REGION, Buffer.alloc(REGION, 7));
    breakIt(clone);
    const flushing = device.flush();
    await expect(flushing).rejects.toBeInstanceOf(CloneError);
    const { failure } = commits;
    expect(events).toEqual([`failed: ${failure?.message}`]);
    destination.log.length = 0;

    // What was written is not taken back: it is there, though nobody knows for how long.
    const expected = Buffer.from(OLD);
    expected.fill(7, 3 * REGION, 4 * REGION);
    expect(Buffer.compare(await bytesAt(device, 0, SIZE), expected)).toBe(0);
    await expect(device.write(3 * REGION, sevens)).rejects.toBe(failure); // hydrated
    await expect(device.write(5 * REGION, sevens)).rejects.toBe(failure); // not
    await expect(device.write(6 * REGION, Buffer.alloc(REGION))).rejects.toBe(failure); // whole
    await expect(device.zero(3 * REGION, REGION)).rejects.toBe(failure);
    await expect(device.discard(3 * REGION, REGION)).rejects.toBe(failure);
    await expect(device.flush()).rejects.toBe(failure);
    expect(() => device.tryWrite(3 * REGION, sevens)).toThrow(failure);
    expect(destination.log.filter((entry) => !entry.startsWith("read"))).toEqual([]);

    // Nothing is hydrated any more, not by reading either.
    device.hydrateOnRead = "always";
    await bytesAt(device, 8 * REGION, REGION);
    await device.drain();
    expect(regions.state(8)).toBe("unhydrated");
    expect(device.becomeLinear()).toBe(false);
  });

  test("refuses what was waiting for a copy meanwhile, and what its metadata could not mark", async () => {
    const { device, badStore, destination, regions } = await setUp();
    destination.hold("write");
    const waiting = [device.write(10, sevens), device.write(20, sevens), device.write(REGION, Buffer.alloc(REGION))];
    const results = Promise.allSettled(waiting);
    await whenIdle();
    badStore.faults = { failWrite: () => true };
    regions.complete(regions.begin({ start: 50, end: 51 })); // something to commit
    await expect(device.flush()).rejects.toThrow("EIO");
    destination.release("write");
    for (const result of await results) expect(result.status).toBe("rejected");
    expect(drawing({ regions }).replaceAll(".", "")).toBe("#");
    expect(Buffer.compare(await bytesAt(device, 0, 2 * REGION), OLD.subarray(0, 2 * REGION))).toBe(0);
  });

  test("because the source has changed is one like any other", async () => {
    const changed = new CloneError("failed", "the source has changed");
    const { device, commits } = await setUp({ guard: () => Promise.reject(changed) });
    await device.write(3 * REGION, Buffer.alloc(REGION, 7));
    await expect(device.flush()).rejects.toBe(changed);
    await expect(device.write(3 * REGION, sevens)).rejects.toBe(commits.failure);
    expect(await bytesAt(device, 3 * REGION, 512)).toEqual(sevens);
  });
});

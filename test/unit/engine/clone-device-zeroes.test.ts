import { describe, expect, test } from "vitest";
import type { BlockDevice, ZeroOptions } from "../../../src/device/block-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { bytesAt, drawing, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 8 * REGION;
const OLD = noise(SIZE, 1);
const DIRT = noise(SIZE, 2);

/** Notes whether zeroing may punch; can zero fast as it is told. */
class ZeroingDevice extends HeldDevice {
  fast = true;
  onQuestion: (() => void) | undefined;

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    await super.zero(offset, length, options);
    if (options?.mayPunch === false) this.log.push(`${this.log.pop()} allocated`);
  }

  override async canZeroFast({ mayPunch }: { mayPunch: boolean }): Promise<boolean> {
    this.onQuestion?.();
    return this.fast && mayPunch;
  }
}

async function setUp(options: Parameters<typeof makeClone>[0] = {}) {
  const source = new HeldDevice(new MemoryDevice({ name: "source", size: SIZE, content: OLD }));
  const bad = new FaultyDevice(new MemoryDevice({ name: "destination", size: SIZE, content: DIRT }), {});
  const destination = new ZeroingDevice(bad);
  const clone = await makeClone({ size: SIZE, source, destination, ...options });
  const expected = Buffer.from(OLD);
  const zero = (offset: number, length: number, zeroOptions: Parameters<typeof clone.device.zero>[2] = {}) => {
    expected.fill(0, offset, offset + length);
    return clone.device.zero(offset, length, zeroOptions);
  };
  const check = async (): Promise<void> => {
    expect(Buffer.compare(await bytesAt(clone.device, 0, SIZE), expected)).toBe(0);
  };
  return { ...clone, source, bad, destination, zero, check };
}

describe("CloneDevice.zero()", () => {
  test("of whole regions copies nothing, of a part copies the region first", async () => {
    const { zero, check, regions, source, destination, device } = await setUp();
    await zero(REGION, 2 * REGION);
    expect([drawing({ regions }), source.log]).toEqual([".##.....", []]);
    await zero(4 * REGION + 100, 200);
    expect(drawing({ regions })).toBe(".##.#...");
    expect(source.log).toEqual([`read ${4 * REGION}+${REGION}`]);
    await zero(1000, 5 * REGION);
    expect(drawing({ regions })).toBe("######..");
    await check();
    expect(device.stats).toMatchObject({ zeroes: 3, zeroedRegions: 3, demandCopies: 3 });
    expect(destination.log.filter((entry) => entry.startsWith("zero"))[0]).toBe(`zero ${REGION}+${2 * REGION}`);
  });

  test("of what the destination shows as zeros already writes nothing, unless it must be allocated", async () => {
    const hole = new ZeroingDevice(new MemoryDevice({ name: "destination", size: SIZE }));
    const { zero, check, regions } = await setUp({ destination: hole });
    await zero(0, 2 * REGION);
    expect([drawing({ regions }), hole.log]).toEqual(["##......", []]);
    await zero(2 * REGION, REGION, { mayPunch: false });
    expect([drawing({ regions }), hole.log]).toEqual(["###.....", [`zero ${2 * REGION}+${REGION} allocated`]]);
    await check();
    const [first, second] = await hole.extents(0, 4 * REGION);
    expect([first?.hole, second?.hole]).toEqual([true, false]);
    // Hydrated regions are zeroed as it is asked for.
    hole.log.length = 0;
    await zero(0, REGION, { mayPunch: false });
    await zero(2 * REGION, REGION);
    expect(hole.log).toEqual([`zero 0+${REGION} allocated`, `zero ${2 * REGION}+${REGION}`]);
  });

  test("waits for a copy that is under way", async () => {
    const { zero, check, regions, destination, device } = await setUp();
    destination.hold("write");
    const writing = device.write(10, Buffer.alloc(10));
    await whenIdle();
    const zeroing = zero(0, REGION);
    await whenIdle();
    expect(destination.log).toEqual([]);
    destination.release("write");
    await Promise.all([writing, zeroing]);
    expect(drawing({ regions })).toBe("#.......");
    await check();
  });

  test("that fails is only its own error, and marks nothing", async () => {
    const { device, regions, bad, commits, check } = await setUp();
    bad.faults = { failWrite: () => true, errno: "ENOSPC" };
    await expect(device.zero(REGION, 3 * REGION)).rejects.toMatchObject({ errno: "ENOSPC" });
    expect([drawing({ regions }), commits.failure]).toEqual(["........", undefined]);
    await check();
  });

  test("with FUA is durable when it is answered", async () => {
    const { zero, metadata } = await setUp();
    await zero(REGION, REGION, { fua: true });
    expect([metadata.changed, metadata.committedCount]).toEqual([false, 1]);
  });
});

describe("CloneDevice.zero(), fast", () => {
  test("zeroes hydrated regions and whole ones where the destination can", async () => {
    const { zero, check, regions, device } = await setUp();
    await device.write(3 * REGION, OLD.subarray(3 * REGION, 4 * REGION));
    await zero(REGION, 2 * REGION + 100, { fast: true });
    expect(drawing({ regions })).toBe(".###....");
    await check();
  });

  test.for<[string, (clone: Awaited<ReturnType<typeof setUp>>) => void, Parameters<BlockDevice["zero"]>[2]]>([
    ["the destination cannot", ({ destination }) => void Object.assign(destination, { fast: false }), {}],
    ["it cannot without punching", () => {}, { mayPunch: false }],
    ["a region would have to be copied", () => {}, {}],
    ["a region is busy", ({ regions }) => void regions.begin({ start: 2, end: 3 }), {}],
    [
      "a region becomes busy while the destination is asked",
      ({ destination, regions }) => {
        destination.onQuestion = () => void regions.begin({ start: 2, end: 3 });
      },
      {},
    ],
  ])("fails at once with ENOTSUP and changes nothing where %s", async ([why, prepare, options]) => {
    const clone = await setUp();
    const { device, destination, source } = clone;
    prepare(clone);
    const before = await imageOf(destination);
    destination.log.length = 0;
    const length = why === "a region would have to be copied" ? 2 * REGION + 1 : 2 * REGION;
    await expect(device.zero(REGION, length, { ...options, fast: true })).rejects.toMatchObject({
      errno: "ENOTSUP",
      message: `Cannot zero ${length} bytes at ${REGION} of "destination" fast: ENOTSUP`,
    });
    expect([destination.log, source.log]).toEqual([[], []]);
    expect(Buffer.compare(await imageOf(destination), before)).toBe(0);
    expect(device.stats).toMatchObject({ demandCopies: 0, zeroedRegions: 0 });
  });

  test("fails on a destination that does not know how", async () => {
    const destination = Object.assign(new MemoryDevice({ size: SIZE }), { canZeroFast: undefined });
    const { device } = await makeClone({ size: SIZE, destination: destination as BlockDevice });
    await expect(device.zero(0, REGION, { fast: true })).rejects.toMatchObject({ errno: "ENOTSUP" });
    await device.zero(0, REGION);
  });
});

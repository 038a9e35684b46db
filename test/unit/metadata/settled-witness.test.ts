// A clone is left, and its superblock and lowest free blocks are recorded. Then sessions of somebody else are played with our own
// writer, which takes blocks as the kernel does, and everything that asks whether anybody has gone on must see them.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Geometry } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES, DescriptorStore } from "../../../src/metadata/descriptor.ts";
import { writeFormatted } from "../../../src/metadata/format-image.ts";
import { RegionBitmap } from "../../../src/metadata/region-bitmap.ts";
import { planRepair, writeRepaired } from "../../../src/metadata/repair.ts";
import { checksumText, isAsLeft, recordFree, sinceLeft } from "../../../src/metadata/settled-witness.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { MetadataImage } from "../../support/metadata-image.ts";
import { plainDescriptor } from "../../support/plain-descriptor.ts";

const REGIONS = 40_000;
const geometry = new Geometry({ size: REGIONS * 4096, regionSize: 4096 });
const place = { geometry, blockCount: 64 };
const SIZE = 64 * 4096 + DESCRIPTOR_BYTES;

const descriptor = plainDescriptor(geometry.size, { alone: true });

/** One session that commits once for each region. */
async function session(device: MemoryDevice, regions: readonly number[]): Promise<void> {
  const metadata = await CloneMetadata.open(device);
  for (const start of regions) {
    metadata.markHydrated({ start, end: start + 1 });
    metadata.preCommit();
    await metadata.commit();
  }
}

async function imageOf(device: MemoryDevice): Promise<MetadataImage> {
  const bytes = new Uint8Array(device.size);
  await device.read(0, bytes);
  return new MetadataImage(bytes);
}

const deviceOf = ({ bytes }: MetadataImage): MemoryDevice => new MemoryDevice({ size: bytes.length, content: bytes });

/** A clone that was left after these sessions. */
async function left(sessions: readonly (readonly number[])[]): Promise<MemoryDevice> {
  const device = new MemoryDevice({ size: SIZE });
  await writeFormatted(device, { ...place, bits: null, descriptor });
  for (const regions of sessions) await session(device, regions);
  const metadata = await CloneMetadata.open(device, { readOnly: true });
  const settled = {
    mtimeNs: "1",
    superblock: checksumText((await imageOf(device)).bytes),
    ...(await recordFree(device)),
    hydratedRegions: metadata.hydratedCount,
    hydratedDigest: metadata.hydratedDigest(),
  };
  const store = await DescriptorStore.open(device, place);
  await store.write({ ...descriptor, destination: { ...descriptor.destination, settled } });
  return device;
}

async function settledOf(device: MemoryDevice) {
  const metadata = await CloneMetadata.open(device, { readOnly: true });
  const store = await DescriptorStore.open(device, { geometry, blockCount: metadata.totalBlocks });
  const settled = store.read()?.destination.settled;
  if (settled == null) throw new Error("nothing is recorded");
  return settled;
}

const regionLists = fc.array(fc.array(fc.nat(REGIONS / 2 - 1), { minLength: 1, maxLength: 4 }), { maxLength: 4 });

describe("isAsLeft()", () => {
  test("is true of a clone that nobody has gone on with, and false after any sessions, whatever the superblock", () =>
    fc.assert(
      fc.asyncProperty(regionLists, regionLists, async (before, after) => {
        const device = await left(before);
        const settled = await settledOf(device);
        expect(await isAsLeft(device, settled)).toBe(true);
        let bits = REGIONS / 2;
        for (const regions of after) {
          await session(
            device,
            regions.map(() => bits++),
          );
          expect(await isAsLeft(device, settled)).toBe(false);
        }
      }),
      { numRuns: 60 },
    ));

  test("is false where a free block was struck, and where no free blocks were recorded", async () => {
    const device = await left([[1, 2]]);
    const settled = await settledOf(device);
    const image = await imageOf(device);
    const [block] = (settled.free ?? "").split(" ").map(Number);
    image.block(block as number)[100] = 0x5a;
    expect(await isAsLeft(deviceOf(image), settled)).toBe(false);
    const { free: _, ...older } = settled;
    expect(await isAsLeft(device, older)).toBe(false);
    for (const free of ["", "1", `1 ${"0".repeat(64)}`, `9999999 ${"0".repeat(64)}`]) {
      expect(await isAsLeft(device, { ...settled, free })).toBe(false);
    }
  });

  test("is false, and not known to have changed, where a free block cannot be read or none were recorded", async () => {
    const device = await left([[1, 2]]);
    const settled = await settledOf(device);
    const [block = 0] = (settled.free ?? "").split(" ").map(Number);
    const failRead = ({ offset }: { offset: number }) => offset === block * 4096;
    const faulty = new FaultyDevice(device, { failRead });
    expect([await isAsLeft(faulty, settled), await sinceLeft(faulty, settled)]).toEqual([false, "unknown"]);
    const { free: _, ...older } = settled;
    expect(await sinceLeft(device, older)).toBe("unknown");
    expect(await sinceLeft(device, settled)).toBe("nothing");
    await session(device, [9]);
    expect(await sinceLeft(faulty, settled)).toBe("changed"); // block 0 tells
  });

  test("is true of new metadata with the bits that were recorded, and nothing is recorded of other bits", async () => {
    const { destination } = {
      destination: { ...descriptor.destination, settled: await settledOf(await left([[1, 2]])) },
    };
    const bits = new RegionBitmap(REGIONS);
    bits.setRange({ start: 1, end: 3 });
    const device = new MemoryDevice({ size: SIZE, content: new Uint8Array(SIZE).fill(7) });
    await writeFormatted(device, { ...place, bits, descriptor: { ...descriptor, destination } });
    const settled = await settledOf(device);
    expect(await isAsLeft(device, settled)).toBe(true);
    expect(settled).toMatchObject(await recordFree(device));
    bits.setRange({ start: 9, end: 10 });
    await writeFormatted(device, { ...place, bits, descriptor: { ...descriptor, destination } });
    await expect(settledOf(device)).rejects.toThrow("nothing is recorded");
  });
});

describe("A lost superblock", () => {
  test("is not made anew from the state that was left where a commit followed, and its blocks were struck, too", async () => {
    const device = await left([[1], [2]]);
    await session(device, [100]);
    const { indexBlock } = await imageOf(device);
    for (const lost of [[0], [0, indexBlock]]) {
      const image = await imageOf(device);
      for (const block of lost) image.block(block).fill(0);
      const plan = await planRepair(deviceOf(image));
      expect(plan).toMatchObject({ ok: false, unknown: [{ start: 0, end: REGIONS }] });
    }
  });

  test("is made anew from the state that was left where nobody has committed since", async () => {
    const image = await imageOf(await left([[1], [2]]));
    image.block(0).fill(0);
    const plan = await planRepair(deviceOf(image));
    expect(plan.ok && [...plan.bits.ranges()]).toEqual([{ start: 1, end: 3 }]);
  });
});

test("A clone that was repaired, gone on with, and damaged again is repaired again", async () => {
  let device = await left([[1], [2]]);
  for (const region of [100, 200, 300]) {
    const plan = await planRepair(device);
    if (!plan.ok) throw new Error(plan.reason);
    device = new MemoryDevice({ size: SIZE });
    await writeRepaired(plan, device);
    await session(device, [region]);
    const image = await imageOf(device);
    image.block(image.indexBlock).fill(0);
    device = deviceOf(image);
  }
  const plan = await planRepair(device);
  expect(plan.ok && [...plan.bits.ranges()].map(({ start }) => start)).toEqual([1, 100, 200, 300]);
  if (!plan.ok) return;
  const written = new MemoryDevice({ size: SIZE });
  await writeRepaired(plan, written);
  expect(await checkMetadata(written)).toMatchObject({ verdict: "clean" });
});

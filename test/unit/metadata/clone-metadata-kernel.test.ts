// What the kernel wrote is the measure: images made here must have its bytes, and its images must say here what they say
// to it. A kernel image even holds the history of its commits, since every commit leaves the blocks it replaces behind:
// replayed here from the same format on, the same commits must give the same image, stale blocks included.
import { expect, test } from "vitest";
import { Geometry, type RegionRange } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { imageHash, imageOf } from "../../support/image.ts";
import { kernelCommits } from "../../support/kernel-commits.ts";
import { kernelFixtures, readFixtureImage, readFixtureTruth } from "../../support/kernel-fixtures.ts";

/** Formats for `sectors` sectors in regions of `regionSectors`. */
async function format(sectors: number, regionSectors: number, blockCount: number): Promise<MemoryDevice> {
  const device = new MemoryDevice({ name: "clone.meta", size: blockCount * 4096 });
  const geometry = new Geometry({ size: sectors * 512, regionSize: regionSectors * 512 });
  await CloneMetadata.create(device, { geometry, blockCount });
  return device;
}

async function commit(metadata: CloneMetadata, ...ranges: RegionRange[]): Promise<void> {
  for (const range of ranges) metadata.markHydrated(range);
  metadata.preCommit();
  await metadata.commit();
}

function imageDevice(name: string): MemoryDevice {
  const content = readFixtureImage(name);
  return new MemoryDevice({ name: `${name}.meta`, size: content.length, content });
}

test("CloneMetadata.create() and four commits of 16 regions have the kernel's bytes", async () => {
  const device = await format(128, 8, 32);
  expect(await imageHash(device)).toBe("aaff031cfd2d8a4470db5305e6e0c6be84715320aac8df8c49123858ef860652");
  const metadata = await CloneMetadata.open(device);
  await commit(metadata, { start: 3, end: 4 });
  expect(await imageHash(device)).toBe("80e7c5cd8808a0b468d3d5acb988fe3f48ffd63a089c60918795fcb1121644bc");
  await commit(metadata, { start: 5, end: 6 });
  await commit(metadata, { start: 15, end: 16 });
  await commit(metadata, { start: 8, end: 12 });
  expect(await imageHash(device)).toBe("00c8df0026f482e88bd15f55d447f6d74fbf188a7d87c147cf8623b4f73c6c03");
});

test("CloneMetadata.create() of 100001 regions has the kernel's bytes", async () => {
  const device = await format(800003, 8, 1024);
  expect(await imageHash(device)).toBe("3a2a9028fa9a9236d7fe97b29560d054bf47286a6535091e310053cfb8db121a");
});

test("CloneMetadata.create() of 10 million regions grows the btree where the kernel does", async () => {
  const device = await format(80_000_000, 8, 4096);
  const image = await imageOf(device);
  const u64 = (block: number, offset: number) => Number(image.readBigUInt64LE(block * 4096 + offset));
  expect(u64(0, 52)).toBe(314); // nr_allocated
  expect(u64(0, 188)).toBe(4); // bitset_root
  expect(image.readUInt32LE(4 * 4096 + 4)).toBe(1); // an internal node
  expect(image.readUInt32LE(4 * 4096 + 16)).toBe(2); // with two entries
  expect([u64(4, 2048), u64(4, 2056)]).toEqual([258, 259]); // the leaves, after array block 252 at 257
});

test.each(["fresh-64m-4k", "odd-fresh-32k", "one-region-fresh"])(
  "CloneMetadata.create() reproduces %s",
  async (name) => {
    const truth = readFixtureTruth(name);
    const device = await format(truth.target_size, truth.region_size, truth.metadata_sectors / 8);
    expect(await imageHash(device)).toBe(truth.metadata_sha256);
  },
);

test.each(kernelFixtures)(
  "CloneMetadata.open() reads from %s exactly the regions the kernel hydrated",
  async (name) => {
    const truth = readFixtureTruth(name);
    await using metadata = await CloneMetadata.open(imageDevice(name));
    expect([...metadata.hydratedRanges()]).toEqual(truth.hydrated.map(([start, last]) => ({ start, end: last + 1 })));
    expect(metadata.hydratedCount).toBe(truth.nr_hydrated);
    expect(metadata.regionCount).toBe(truth.nr_regions);
    expect(metadata.geometry.size).toBe(truth.target_size * 512);
    expect(metadata.geometry.regionSize).toBe(truth.region_size * 512);
    const [, used, total] = /clone 8 (\d+)\/(\d+) /.exec(truth.status ?? truth.status_reopened) ?? [];
    expect([metadata.usedBlocks, metadata.totalBlocks]).toEqual([Number(used), Number(total)]);
    expect(metadata.warnings).toEqual([]);
  },
);

test.each(kernelFixtures)("CloneMetadata.commit() repeats the kernel's commits of %s byte for byte", async (name) => {
  const truth = readFixtureTruth(name);
  const commits = kernelCommits(readFixtureImage(name));
  const device = await format(truth.target_size, truth.region_size, truth.metadata_sectors / 8);
  await using metadata = await CloneMetadata.open(device);
  // Right after a format the kernel's search for free blocks goes on behind it; after an open it starts at 0, where
  // nothing is free yet: the same.
  for (const ranges of commits) await commit(metadata, ...ranges);
  expect(await imageHash(device)).toBe(truth.metadata_sha256);
});

// Each kind of damage is done to an image built by the test's own hand, whose bits are known. What is proved must come out
// as it was; what is not must be refused, and never be called hydrated.
import { expect, test } from "vitest";
import { Geometry } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { writeFormatted } from "../../../src/metadata/format-image.ts";
import { metadataByteLength, recommendedBlockCount } from "../../../src/metadata/metadata-size.ts";
import { type PlannedRepair, planRepair, type RepairRequest, writeRepaired } from "../../../src/metadata/repair.ts";
import { imageBytes } from "../../../src/metadata/repair-descriptor.ts";
import { imageOf } from "../../support/image.ts";
import { kernelFixtures, readFixtureImage } from "../../support/kernel-fixtures.ts";
import {
  buildMetadata,
  flipBit,
  MetadataImage,
  REGIONS,
  recount,
  twoLevelImage,
} from "../../support/metadata-image.ts";

const plan = (image: MetadataImage, request?: RepairRequest) =>
  planRepair(new MemoryDevice({ size: image.bytes.length, content: image.bytes, readOnly: true }), request);

async function written(planned: PlannedRepair): Promise<MetadataImage> {
  const size = imageBytes(planned.blockCount, planned.descriptor);
  const device = new MemoryDevice({ size });
  await writeRepaired(planned, device);
  const report = await checkMetadata(device);
  expect(report.fatal.concat(report.warnings)).toEqual([]);
  const bytes = Buffer.alloc(size);
  await device.read(0, bytes);
  return new MetadataImage(bytes);
}

async function repaired(image: MetadataImage, request?: RepairRequest): Promise<MetadataImage> {
  const planned = await plan(image, request);
  if (!planned.ok) throw new Error(`refused: ${planned.reason}`);
  return await written(planned);
}

const truth: [number, number][] = [
  [0, 5],
  [32570, 32600],
  [REGIONS - 1, REGIONS],
];

function free(image: MetadataImage, block: number): void {
  image.setCount(block, 0);
  recount(image);
}

/** Damage from which everything can be made anew. `twoLevelImage()` says which block is what. */
const cheap: [string, (image: MetadataImage) => void][] = [
  ["nothing", () => {}],
  ["a wrong number of allocated blocks", (image) => image.edit(0, "superblock", () => image.set64(0, 52, 31))],
  [
    "flags, uuid and spare bytes",
    (image) => image.edit(0, "superblock", (block) => block.fill(1, 16, 32).fill(2, 300)),
  ],
  ["an unreadable index block", (image) => flipBit(image, 1)],
  ["an unreadable bitmap block", (image) => flipBit(image, 3)],
  ["an unreadable leaf of reference counts", (image) => flipBit(image, 2)],
  ["a live block that is counted free", (image) => image.setCount(7, 0)],
  ["a live block that is counted free, and in no sum", (image) => free(image, 7)],
  ["a leaked block", (image) => image.setCount(30, 1)],
  [
    "a leaked block that is counted right",
    (image) => {
      image.setCount(30, 1);
      recount(image);
    },
  ],
  ["a count of 3 without an entry", (image) => image.setCount(8, 3)],
  ["a hint that hides free blocks", (image) => image.edit(1, "index", () => image.set32(1, 28, 50))],
  ["no free blocks according to the index", (image) => image.edit(1, "index", () => image.set32(1, 24, 0))],
  [
    "bits beyond the last region",
    (image) => image.edit(9, "array", (block) => block.writeUInt8(0xff, 24 + 8 * 508 + 7)),
  ],
  ["an index that names an array block as its bitmap", (image) => image.edit(1, "index", () => image.set64(1, 16, 9))],
  ["an index that names no bitmap", (image) => image.edit(1, "index", () => image.set64(1, 16, 2 ** 40))],
];

test.for(cheap)("planRepair() rebuilds all bits exactly after %s", async ([, strike]) => {
  const image = twoLevelImage();
  strike(image);
  expect((await repaired(image)).hydratedRanges()).toEqual(truth);
});

test("planRepair() finds the array blocks of an unreadable leaf by the space map and keeps what they agree on", async () => {
  const image = twoLevelImage();
  flipBit(image, 12); // key 4 alone: the last one
  expect((await repaired(image)).hydratedRanges()).toEqual(truth);
});

test("planRepair() leaves unknown what the array blocks of an unreadable leaf do not agree on", async () => {
  const image = twoLevelImage();
  flipBit(image, 10); // keys 0 and 1
  const planned = await plan(image);
  expect(planned.ok).toBe(false);
  const unknown = planned.unknown;
  for (const { end } of unknown) expect(end).toBeLessThanOrEqual(2 * 32576);
  const bits = (await repaired(image, { assume: "unhydrated" })).hydratedRanges();
  // One has the bits 0 to 4 and 32570 to 32575, the other 0 to 23: whichever is whose, both have 0 to 4.
  expect(bits).toEqual([
    [0, 5],
    [32576, 32581],
    [REGIONS - 1, REGIONS],
  ]);
});

test("planRepair() concludes nothing from the space map where a leaked block could be the lost one", async () => {
  const image = twoLevelImage();
  flipBit(image, 12);
  image.block(9).copy(image.block(30));
  image.edit(30, "array", (block) => block.fill(0xff, 24, 3000));
  image.seal(30, "array");
  image.setCount(30, 1);
  recount(image);
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 4 * 32576, end: REGIONS }] });
});

/** Of another time than the superblock, whose tree has lost the leaf of the last key. An older block of that key is in 30. */
const olderSpaceMaps: [string, (image: MetadataImage) => void][] = [
  ["calls a leaf free", (image) => free(image, 11)],
  ["calls itself free", (image) => free(image, 1)],
  ["calls the root of the tree free", (image) => free(image, 4)],
  [
    "does not add up to the free entries",
    (image) => image.edit(1, "index", () => image.set32(1, 24, image.get32(1, 24) - 1)),
  ],
  ["has free entries where none are said to be", (image) => image.edit(1, "index", () => image.set32(1, 28, 50))],
];

test.for(olderSpaceMaps)("planRepair() concludes nothing from a space map that %s", async ([, strike]) => {
  const older = twoLevelImage();
  flipBit(older, 12);
  older.block(9).copy(older.block(30));
  older.edit(30, "array", (block) => block.fill(0xff, 24, 3000));
  older.seal(30, "array");
  older.setCount(30, 1);
  older.setCount(9, 0);
  recount(older);
  // So far nothing tells that it is not of this time.
  expect(await plan(older)).toMatchObject({ ok: true });
  strike(older);
  const { ok, unknown } = await plan(older);
  expect(ok).toBe(false);
  expect(unknown.at(-1)?.end).toBe(REGIONS);
});

test("planRepair() concludes nothing from an index whose bitmap is in the place of the tree's root", async () => {
  const image = twoLevelImage();
  image.block(3).copy(image.block(4)); // where the root is by now
  image.seal(4, "bitmap");
  image.edit(1, "index", () => image.set64(1, 16, 4));
  free(image, 3); // all else adds up
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 0, end: REGIONS }] });
});

test("planRepair() takes no root of an older commit for what an unreadable root led to", async () => {
  const image = buildMetadata({
    regionSectors: 8,
    targetSectors: 8 * 100_000,
    blockCount: 64,
    hydrated: [[5, 70_000]],
  });
  const [first, second] = image.arrayBlocks() as [number, number];
  image.block(image.bitsetRoot).copy(image.block(30));
  image.seal(30, "node");
  // It named these under each other's key, whose places have been used again.
  image.edit(30, "node", (node) => {
    node.writeBigUInt64LE(BigInt(second), 2048);
    node.writeBigUInt64LE(BigInt(first), 2056);
  });
  flipBit(image, image.bitsetRoot);
  const without = await plan(image);
  image.setCount(30, 1);
  recount(image);
  const planned = await plan(image);
  expect(without.salvaged).toHaveLength(1); // what all have in common
  expect(planned).toMatchObject({ ok: false, salvaged: [], unknown: [{ start: 0, end: 100_000 }] });
});

/** The leaf of the keys 2 and 3 is older than the last commit, and names 30, which was key 3's then. */
function withOlderLeaf(): MetadataImage {
  const image = twoLevelImage();
  image.block(8).copy(image.block(30));
  image.edit(30, "array", (block) => block.fill(0xff, 24, 3000));
  image.seal(30, "array");
  image.edit(11, "node", () => image.set64(11, 2056, 30));
  return image;
}

test("planRepair() believes no leaf that names what is free, where something in use is named by none", async () => {
  const image = withOlderLeaf();
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 2 * 32576, end: 4 * 32576 }] });
  expect((await repaired(image, { assume: "unhydrated" })).hydratedRanges()).toEqual(truth);
});

test("planRepair() believes no key of a leaf that names what is something else, or is not there", async () => {
  for (const other of [0, 1, 2, 3, 4, 5, 10, 64]) {
    const image = twoLevelImage();
    image.edit(8, "array", (block) => block.fill(0xff, 24, 3000));
    // Key 2 has what is key 3's by now.
    image.edit(11, "node", () => {
      image.set64(11, 2048, 8);
      image.set64(11, 2056, other);
    });
    const { ok, unknown } = await plan(image);
    expect(ok).toBe(false);
    const keys = unknown.flatMap(({ start, end }) => [Math.floor(start / 32576), Math.ceil(end / 32576)]);
    expect(keys[0], `block ${other}`).toBeLessThanOrEqual(2);
    expect(keys.at(-1), `block ${other}`).toBeGreaterThanOrEqual(4);
  }
});

test("planRepair() believes no leaf that is free, where something in use is named by none", async () => {
  const image = twoLevelImage();
  image.block(11).copy(image.block(30)); // the same leaf as it was, named by an older root
  image.seal(30, "node");
  image.edit(4, "node", () => image.set64(4, 2056, 30));
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 2 * 32576, end: 4 * 32576 }] });
});

/** What tells that it is the space map that is older than the leaf. */
const signsOfAge: [string, (image: MetadataImage) => void][] = [
  ["calls itself free", (image) => free(image, 1)],
  ["calls the root of the tree free", (image) => free(image, 4)],
  ["does not add up", (image) => image.setCount(33, 1)],
  ["has blocks in use beyond the last one", (image) => image.setCount(64, 1)],
];

test.for(signsOfAge)("planRepair() believes a leaf against a space map that %s", async ([, strike]) => {
  const image = withOlderLeaf();
  for (const leaked of [31, 32]) image.setCount(leaked, 1);
  recount(image);
  expect(await plan(image)).toMatchObject({ ok: false });
  strike(image);
  expect(await plan(image)).toMatchObject({ ok: true, unknown: [] });
});

test("planRepair() follows an unreadable root to the leaves that the space map calls in use", async () => {
  const image = twoLevelImage();
  flipBit(image, 4);
  expect((await repaired(image)).hydratedRanges()).toEqual(truth);
});

test("planRepair() calls no region of an unreadable array block hydrated, and names them all", async () => {
  const image = twoLevelImage();
  flipBit(image, 5);
  const planned = await plan(image);
  expect(planned).toMatchObject({ ok: false, unknown: [{ start: 0, end: 32576 }] });
  expect((await repaired(image, { assume: "unhydrated" })).hydratedRanges()).toEqual([
    [32576, 32600],
    [REGIONS - 1, REGIONS],
  ]);
  expect((await repaired(image, { assume: "hydrated" })).hydratedRanges()[0]).toEqual([0, 32600]);
});

test("planRepair() calls hydrated what a comparison found equal, and nothing else of the unknown", async () => {
  const image = twoLevelImage();
  flipBit(image, 5);
  const compare = async () => [{ start: 3, end: 4 }];
  const planned = await plan(image, { compare });
  expect(planned).toMatchObject({ ok: false, compared: [{ start: 3, end: 4 }] });
  expect((await repaired(image, { compare, assume: "unhydrated" })).hydratedRanges()).toEqual([
    [3, 4],
    [32576, 32600],
    [REGIONS - 1, REGIONS],
  ]);
});

test("planRepair() believes neither of two keys that name the same array block", async () => {
  const image = twoLevelImage();
  image.edit(10, "node", () => image.set64(10, 2056, 5)); // key 1 names the block of key 0
  const planned = await plan(image);
  expect(planned).toMatchObject({ ok: false, unknown: [{ start: 0, end: 2 * 32576 }] });
});

test("planRepair() believes no array block of another length than its key's", async () => {
  const image = twoLevelImage();
  image.edit(9, "array", (block) => block.writeUInt32LE(509 - 1, 8));
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 4 * 32576, end: REGIONS }] });
});

test.for(kernelFixtures)("planRepair() and writeRepaired() keep the bits of the kernel's %s", async (name) => {
  const image = new MetadataImage(readFixtureImage(name));
  const before = image.hydratedRanges();
  const after = await repaired(image);
  expect(after.hydratedRanges()).toEqual(before);
  if (before.length > 0) return;
  expect(Buffer.compare(after.bytes, image.bytes.subarray(0, after.bytes.length))).toBe(0);
});

test("writeRepaired() lays the bits out as a fresh format of the same size has them", async () => {
  const sizes = { regionSectors: 8, targetSectors: 8 * 100_000, blockCount: 64 };
  const image = buildMetadata({ ...sizes, hydrated: [[5, 70_000]] });
  image.setCount(8, 0);
  const expected = buildMetadata({ ...sizes, hydrated: [[5, 70_000]] });
  expect(Buffer.compare((await repaired(image)).bytes, expected.bytes)).toBe(0);
});

test("500,000 separate ranges that stay unknown are refused as few are", async () => {
  const geometry = new Geometry({ size: 1_000_000 * 4096, regionSize: 4096 });
  const blockCount = recommendedBlockCount(geometry.regionCount);
  const device = new MemoryDevice({ size: metadataByteLength(blockCount) });
  await writeFormatted(device, { geometry, blockCount, bits: null, descriptor: null, isBlank: true });
  const image = new MetadataImage(await imageOf(device));
  for (const block of image.arrayBlocks()) flipBit(image, block);
  const everySecond = Array.from({ length: 500_000 }, (_, i) => ({ start: 2 * i, end: 2 * i + 1 }));
  const planned = await plan(image, { compare: async () => everySecond });
  expect(planned).toMatchObject({ ok: false, reason: expect.stringContaining("cannot be known") });
  expect(planned.unknown.length).toBe(500_000);
});

// Clones with a history of commits, each of which leaves older blocks behind: what of these a repair may believe, and what not,
// however sound it looks. The truth is what was marked hydrated.
import { expect, test } from "vitest";
import { UsageError } from "../../../src/base/errors.ts";
import { Geometry, type RegionRange } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES, type Descriptor, DescriptorStore } from "../../../src/metadata/descriptor.ts";
import { writeFormatted } from "../../../src/metadata/format-image.ts";
import { planRepair, type RepairPlan, type RepairRequest, writeRepaired } from "../../../src/metadata/repair.ts";
import { isAsLeft, recordFree } from "../../../src/metadata/settled-witness.ts";
import { flipBit, MetadataImage } from "../../support/metadata-image.ts";
import { plainDescriptor } from "../../support/plain-descriptor.ts";

const BLOCK = 4096;
const PER_KEY = 32576;
/** Three array blocks, the last of another length. */
const THREE_KEYS = new Geometry({ size: 4096 * (2 * PER_KEY + 1000), regionSize: 4096 });
const ONE_KEY = new Geometry({ size: 4096 * 1000, regionSize: 4096 });

const descriptorOf = ({ size }: Geometry, changes: Partial<Descriptor> = {}): Descriptor =>
  plainDescriptor(size, { blank: true, alone: true, ...changes });

/** Metadata with a descriptor, and a commit for each of the lists of ranges. */
async function clone(
  geometry: Geometry,
  commits: RegionRange[][],
  {
    blockCount = 64,
    descriptor = descriptorOf(geometry),
    on,
  }: {
    blockCount?: number;
    descriptor?: Descriptor | null;
    on?: MemoryDevice;
  } = {},
): Promise<MemoryDevice> {
  const device = on ?? new MemoryDevice({ size: blockCount * BLOCK + DESCRIPTOR_BYTES });
  await writeFormatted(device, { geometry, blockCount, bits: null, descriptor, isBlank: descriptor?.blank === true });
  const metadata = await CloneMetadata.open(device);
  for (const ranges of commits) {
    for (const range of ranges) metadata.markHydrated(range);
    metadata.preCommit();
    await metadata.commit();
  }
  return device;
}

/** Records in the descriptor that the program has let go of the clone. */
async function settle(
  device: MemoryDevice,
  geometry: Geometry,
  changes: Partial<Descriptor> = {},
  { hasDigest = false } = {},
): Promise<void> {
  const image = await imageOf(device);
  const store = await DescriptorStore.open(device, { geometry, blockCount: image.get64(0, 44) });
  const descriptor = store.read() as Descriptor;
  const metadata = await CloneMetadata.open(device, { readOnly: true });
  const bits = hasDigest ? { hydratedRegions: metadata.hydratedCount, hydratedDigest: metadata.hydratedDigest() } : {};
  const superblock = image.bytes.subarray(0, 4).toString("hex");
  const settled = { mtimeNs: "0", superblock, ...(await recordFree(device)), ...bits };
  const destination = { ...descriptor.destination, ...changes.destination, settled };
  await store.write({ ...descriptor, ...changes, destination });
}

async function descriptorOn(device: MemoryDevice): Promise<Descriptor | null> {
  const metadata = await CloneMetadata.open(device, { readOnly: true });
  const { geometry, totalBlocks } = metadata;
  return (await DescriptorStore.open(device, { geometry, blockCount: totalBlocks })).read();
}

async function imageOf(device: MemoryDevice): Promise<MetadataImage> {
  const bytes = new Uint8Array(device.size);
  await device.read(0, bytes);
  return new MetadataImage(bytes);
}

const plan = ({ bytes }: MetadataImage, request?: RepairRequest): Promise<RepairPlan> =>
  planRepair(new MemoryDevice({ size: bytes.length, content: bytes, readOnly: true }), request);

const isDestinationAsLeft = async (): Promise<boolean> => true;

const hydrated = (planned: RepairPlan): [number, number][] => {
  if (!planned.ok) throw new Error(`refused: ${planned.reason}`);
  return [...planned.bits.ranges()].map(({ start, end }) => [start, end]);
};

const growing = (ends: number[]): RegionRange[][] => ends.map((end) => [{ start: 0, end }]);

/** A space map that seems to be of another time: it calls the first array block free, and one that nothing leads to in use. */
function withOtherSpaceMap(image: MetadataImage): MetadataImage {
  image.setCount(image.arrayBlocks()[0] as number, 0);
  image.setCount(60, 1);
  return image;
}

test("planRepair() believes a tree against the space map where the digest fits", async () => {
  const device = await clone(THREE_KEYS, growing([10, 500, 40_000]));
  await settle(device, THREE_KEYS, {}, { hasDigest: true });
  expect(hydrated(await plan(withOtherSpaceMap(await imageOf(device))))).toEqual([[0, 40_000]]);
});

test("planRepair() believes a tree against the space map where the recorded free blocks are others", async () => {
  const device = await clone(THREE_KEYS, growing([10, 500, 40_000]));
  const undecided = await plan(withOtherSpaceMap(await imageOf(device)));
  expect(undecided).toMatchObject({ ok: false, unknown: [{ start: 0, end: THREE_KEYS.regionCount }] });
  await settle(device, THREE_KEYS);
  expect(hydrated(await plan(withOtherSpaceMap(await imageOf(device))))).toEqual([[0, 40_000]]);
});

test("planRepair() concludes nothing from a space map where the recorded free blocks are others", async () => {
  const device = await clone(THREE_KEYS, growing([10, 500, 40_000]));
  const damaged = async (): Promise<MetadataImage> => {
    const image = await imageOf(device);
    const free = image.arrayBlocks()[2] as number;
    flipBit(image, image.bitsetRoot);
    // An older block of the last key, in use then.
    image.block(free).copy(image.block(60));
    image.edit(60, "array", (block) => block.fill(0xff, 24, 80));
    image.seal(60, "array");
    image.setCount(free, 0);
    image.setCount(60, 1);
    return image;
  };
  expect(hydrated(await plan(await damaged(), { assume: "unhydrated" }))).toContainEqual([
    2 * PER_KEY,
    2 * PER_KEY + 448,
  ]);
  await settle(device, THREE_KEYS);
  expect(await plan(await damaged())).toMatchObject({
    ok: false,
    unknown: [{ start: 0, end: THREE_KEYS.regionCount }],
  });
});

test("planRepair() finds the last state by the checksum that a wrecked superblock still holds", async () => {
  const image = await imageOf(await clone(THREE_KEYS, growing([10, 500, 40_000]), { descriptor: null }));
  image.bytes.fill(0xff, 44, 200); // the roots are gone, the sizes with them
  expect(await plan(image)).toMatchObject({ ok: false, reason: expect.stringContaining("nothing tells the size") });
  const { size, regionSize } = THREE_KEYS;
  expect(hydrated(await plan(image, { geometry: { size, regionSize } }))).toEqual([[0, 40_000]]);
});

test("planRepair() finds the last state by the fields of a superblock whose checksum is wrong, told the size", async () => {
  const image = await imageOf(await clone(THREE_KEYS, growing([10, 500]), { descriptor: null }));
  image.bytes.fill(0xff, 0, 4);
  const { size, regionSize } = THREE_KEYS;
  expect(hydrated(await plan(image, { geometry: { size, regionSize } }))).toEqual([[0, 500]]);
});

test("planRepair() makes a zeroed superblock anew from the checksum that the descriptor records", async () => {
  const device = await clone(THREE_KEYS, growing([10, 500, 40_000]));
  await settle(device, THREE_KEYS, { served: true });
  const image = await imageOf(device);
  image.block(0).fill(0);
  const planned = await plan(image);
  expect(hydrated(planned)).toEqual([[0, 40_000]]);
  expect(planned).toMatchObject({ descriptor: { served: true } });
});

test("planRepair() records nothing of the destination where nothing tells which state was the last", async () => {
  const device = await clone(THREE_KEYS, growing([10, 500, 40_000]));
  await settle(device, THREE_KEYS, { served: true }, { hasDigest: true });
  const image = await imageOf(device);
  image.block(0).fill(0);
  for (let block = 1; block < 64; block++) if (image.get32(block, 20) === 252) flipBit(image, block); // all nodes
  const planned = await plan(image, { assume: "unhydrated" });
  expect(hydrated(planned)).toEqual([]);
  // Another superblock than recorded would mean that the kernel has gone on, and then any content is trusted.
  expect(planned).toMatchObject({ descriptor: { destination: { settled: null } } });
});

test("planRepair() does not take the recorded state for the last where the kernel has gone on with the clone", async () => {
  const device = await clone(THREE_KEYS, growing([10, 500]));
  await settle(device, THREE_KEYS, { served: true });
  const metadata = await CloneMetadata.open(device);
  metadata.markHydrated({ start: 900, end: 901 });
  metadata.preCommit();
  await metadata.commit();
  const image = await imageOf(device);
  image.block(0).fill(0);
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 0, end: THREE_KEYS.regionCount }] });
});

test("planRepair() believes no whole state where nothing tells which was the last", async () => {
  const device = await clone(THREE_KEYS, growing([10, 500]));
  const image = await imageOf(device);
  image.block(0).fill(0);
  const planned = await plan(image);
  expect(planned).toMatchObject({ ok: false, unknown: [{ start: 0, end: THREE_KEYS.regionCount }] });
  expect(hydrated(await plan(image, { assume: "unhydrated" }))).toEqual([]);
});

test("planRepair() refuses a zeroed superblock whose sizes nothing tells, and one that is no clone's", async () => {
  const image = await imageOf(await clone(ONE_KEY, growing([10]), { descriptor: null }));
  image.block(0).fill(0);
  expect(await plan(image)).toMatchObject({ ok: false, hint: expect.stringContaining("--region-size") });
  image.bytes.fill(0);
  const geometry = { size: ONE_KEY.size, regionSize: 4096 };
  expect(await plan(image, { geometry })).toMatchObject({ ok: false, reason: "it is no clone's metadata" });
});

test("planRepair() takes sizes that a sound superblock contradicts, and impossible ones, from nobody", async () => {
  const image = await imageOf(await clone(ONE_KEY, growing([10])));
  const geometry = { size: ONE_KEY.size + 512, regionSize: 4096 };
  await expect(plan(image, { geometry })).rejects.toThrow(/its superblock is sound and says 4096000 bytes/);
  image.block(0).fill(0);
  const impossible = { size: 2 ** 47, regionSize: 4096 };
  for (const geometry of [impossible, { size: 0, regionSize: 4096 }, { size: 4096, regionSize: 5000 }]) {
    await expect(plan(image, { geometry })).rejects.toThrow(UsageError);
  }
});

test("planRepair() takes the user's word for the sizes where a descriptor, left by another clone, says others", async () => {
  const image = await imageOf(await clone(ONE_KEY, growing([10])));
  image.block(0).fill(0);
  const geometry = { size: 2 * ONE_KEY.size, regionSize: 4096 };
  expect(await plan(image, { geometry })).toMatchObject({ ok: false, unknown: [{ start: 0, end: 2000 }] });
  const planned = await plan(image, { geometry, assume: "unhydrated" });
  expect(planned).toMatchObject({ ok: true, geometry, descriptor: null });
});

/** One key, four commits; the array block of the last is broken. The one before it had 300 regions, that before 200. */
async function withBrokenArray(descriptor: Descriptor): Promise<MetadataImage> {
  const image = await imageOf(await clone(ONE_KEY, growing([100, 200, 300, 400]), { descriptor }));
  flipBit(image, image.arrayBlocks()[0] as number);
  return image;
}

test("planRepair() takes from older blocks what two of them agree on, and leaves the rest unknown", async () => {
  const image = await withBrokenArray(descriptorOf(ONE_KEY, { served: true }));
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 200, end: 1000 }] });
  const planned = await plan(image, { assume: "unhydrated" });
  expect(hydrated(planned)).toEqual([[0, 200]]);
  expect(planned.salvaged).toHaveLength(1);
});

test("planRepair() takes nothing from older blocks where the metadata was not blank when it was formatted", async () => {
  const { blank: _, ...descriptor } = descriptorOf(ONE_KEY);
  const image = await withBrokenArray(descriptor);
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 0, end: 1000 }], salvaged: [] });
});

test("planRepair() is not misled by all the remains of an earlier clone of the same size", async () => {
  const device = await clone(ONE_KEY, growing([100, 200, 300, 400, 500, 600, 1000]));
  const { blank: _, ...descriptor } = descriptorOf(ONE_KEY);
  await clone(ONE_KEY, growing([10]), { on: device, descriptor });
  const image = await imageOf(device);
  flipBit(image, image.arrayBlocks()[0] as number);
  expect(hydrated(await plan(image, { assume: "unhydrated" }))).toEqual([]);
  image.block(0).fill(0);
  expect(hydrated(await plan(image, { assume: "unhydrated" }))).toEqual([]);
});

test("planRepair() takes no bit from a single block that came from elsewhere, wherever it landed", async () => {
  const image = await withBrokenArray(descriptorOf(ONE_KEY));
  for (let place = 1; place < 64; place++) {
    const struck = new MetadataImage(image.bytes);
    if (place === image.indexBlock || place === image.bitmapBlock(0) || place === image.bitsetRoot) continue;
    if (place === image.arrayBlocks()[0]) continue; // in a live place it cannot be told
    const foreign = struck.block(place);
    foreign.fill(0).fill(0xff, 24, 24 + 8 * 16);
    foreign.writeUInt32LE(509, 4);
    foreign.writeUInt32LE(16, 8);
    foreign.writeUInt32LE(8, 12);
    struck.seal(place, "array");
    for (const [, end] of hydrated(await plan(struck, { assume: "unhydrated" }))) expect(end).toBeLessThanOrEqual(300);
  }
});

test("planRepair() does not take another key's older blocks for those of a lost one", async () => {
  // Key 0 has all of its history, key 1 nothing; both are of the same length.
  const device = await clone(THREE_KEYS, growing([100, 200, 300, PER_KEY]), { descriptor: descriptorOf(THREE_KEYS) });
  const image = await imageOf(device);
  flipBit(image, image.arrayBlocks()[1] as number);
  expect(hydrated(await plan(image, { assume: "unhydrated" }))).toEqual([[0, PER_KEY]]);
});

test("planRepair() does not believe old leaves that name other keys' older blocks under the lost one", async () => {
  const device = await clone(THREE_KEYS, growing([100, 200, 300, PER_KEY]));
  const image = await imageOf(device);
  for (let block = 1; block < 64; block++) {
    const isLeaf = image.get32(block, 4) === 2 && image.get32(block, 24) === 8 && image.get64(block, 8) === block;
    if (!isLeaf || block === image.bitsetRoot) continue;
    const [first, second] = [image.get64(block, 2048), image.get64(block, 2056)];
    image.set64(block, 2048, second);
    image.set64(block, 2056, first);
    image.seal(block, "node");
  }
  flipBit(image, image.arrayBlocks()[1] as number);
  expect(hydrated(await plan(image, { assume: "unhydrated" }))).toEqual([[0, PER_KEY]]);
});

test("planRepair() copies unknown regions again where the descriptor proves that no client has written", async () => {
  const device = await clone(ONE_KEY, growing([100, 200, 300, 400]));
  await settle(device, ONE_KEY);
  const image = await imageOf(device);
  flipBit(image, image.arrayBlocks()[0] as number);
  const planned = await plan(image, { isDestinationAsLeft });
  expect(hydrated(planned)).toEqual([[0, 200]]);
  expect(planned.copiedAgain).toEqual([{ start: 200, end: 1000 }]);
});

// What users of the kernel's clone write to hydrated regions leaves no commit: only the destination tells of it.
test("planRepair() copies nothing again where somebody may have written to the destination since", async () => {
  const device = await clone(ONE_KEY, growing([100]));
  await settle(device, ONE_KEY);
  const image = await imageOf(device);
  flipBit(image, image.arrayBlocks()[0] as number);
  for (const request of [{}, { isDestinationAsLeft: async () => false }]) {
    expect(await plan(image, request)).toMatchObject({
      ok: false,
      copiedAgain: [],
      unknown: [{ start: 0, end: 1000 }],
    });
  }
});

test("planRepair() copies nothing again that a comparison has found different", async () => {
  const device = await clone(ONE_KEY, growing([100]));
  await settle(device, ONE_KEY);
  const image = await imageOf(device);
  flipBit(image, image.arrayBlocks()[0] as number);
  const compare = async () => [{ start: 0, end: 600 }];
  const planned = await plan(image, { isDestinationAsLeft, compare });
  expect(planned).toMatchObject({ ok: false, copiedAgain: [], unknown: [{ start: 600, end: 1000 }] });
});

test.for<[string, Partial<Descriptor>]>([
  ["it was served", { served: true }],
  ["the kernel may have gone on with it", { alone: false }],
  [
    "somebody else was found to have written to it",
    { destination: { uri: "file:///a", size: ONE_KEY.size, fingerprint: {}, touched: true } },
  ],
])("planRepair() leaves regions unknown where %s", async ([, changes]) => {
  const device = await clone(ONE_KEY, growing([100]));
  await settle(device, ONE_KEY, changes);
  const image = await imageOf(device);
  flipBit(image, image.arrayBlocks()[0] as number);
  expect((await plan(image, { isDestinationAsLeft })).ok).toBe(false);
});

test("planRepair() says that a slot of the descriptor is lost, whether the superblock is, too, or not", async () => {
  const device = await clone(ONE_KEY, growing([100]));
  await settle(device, ONE_KEY);
  const image = await imageOf(device);
  const older = image.bytes.length - DESCRIPTOR_BYTES;
  image.bytes.fill(0x55, older, older + 512);
  const lost = ["One of the two slots of the descriptor, perhaps the newer one: what was recorded last may be missing"];
  expect(await plan(image)).toMatchObject({ ok: true, descriptor: { served: false, alone: true }, lost });
  const without = new MetadataImage(Buffer.from(image.bytes));
  without.block(0).fill(0);
  expect(await plan(without)).toMatchObject({ ok: true, descriptor: { served: false, alone: true }, lost });
  image.bytes.fill(0x55, older);
  expect(await plan(image)).toMatchObject({ descriptor: null, lost: [expect.stringMatching(/^The descriptor, /)] });
});

test("planRepair() calls every region of a finalized clone hydrated", async () => {
  const finalized = { finished: "2026-01-01T00:00:00Z", verified: true, unreadableRegions: 0 };
  const device = await clone(ONE_KEY, growing([1000]), { descriptor: descriptorOf(ONE_KEY, { finalized }) });
  const image = await imageOf(device);
  flipBit(image, image.arrayBlocks()[0] as number);
  expect(hydrated(await plan(image))).toEqual([[0, 1000]]);
});

test("planRepair() does not call the regions of a finalized clone hydrated that were given up", async () => {
  const made = async (inexact: boolean, unreadableRegions: number) => {
    const finalized = { finished: "2026-01-01T00:00:00Z", verified: false, unreadableRegions };
    const unreadable = { ranges: [{ start: 4, end: 6 }], inexact, complete: true };
    const device = await clone(
      ONE_KEY,
      [
        [
          { start: 0, end: 4 },
          { start: 6, end: 1000 },
        ],
      ],
      { descriptor: descriptorOf(ONE_KEY, { finalized, unreadable }) },
    );
    const image = await imageOf(device);
    image.block(image.arrayBlocks()[0] as number).fill(0);
    return image;
  };
  const planned = await plan(await made(false, 2));
  expect(hydrated(planned)).toEqual([
    [0, 4],
    [6, 1000],
  ]);
  // Which of the two it was is not known.
  for (const image of [await made(true, 1), await made(false, 1)]) {
    expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 4, end: 6 }] });
  }
});

test("planRepair() names the backup where a repair in place was cut off", async () => {
  const image = await imageOf(await clone(ONE_KEY, growing([10])));
  image.block(0).fill(0).write("dmclone: a repair in place was cut off; backup: /srv/a b\n");
  expect(await plan(image)).toMatchObject({ ok: false, hint: expect.stringContaining('"/srv/a b"') });
});

/** A served clone of three array blocks with scattered bits, left behind with a digest. */
async function withDigest(commits: RegionRange[][]): Promise<{ image: MetadataImage; truth: [number, number][] }> {
  const device = await clone(THREE_KEYS, commits, { descriptor: descriptorOf(THREE_KEYS, { blank: false }) });
  await settle(device, THREE_KEYS, { served: true }, { hasDigest: true });
  const image = await imageOf(device);
  return { image, truth: image.hydratedRanges() };
}

const SCATTERED: RegionRange[][] = [
  [{ start: 0, end: 3 }],
  [
    { start: 70, end: 90 },
    { start: PER_KEY + 100, end: PER_KEY + 700 },
  ],
  [
    { start: 2 * PER_KEY + 5, end: 2 * PER_KEY + 900 },
    { start: 500, end: 501 },
  ],
];

test.for<[string, (image: MetadataImage, array: number) => void]>([
  ["one bit of it", (image, array) => flipBit(image, array)],
  ["one bit that is set", (image, array) => flipBit(image, array, 24)],
  ["its header", (image, array) => image.block(array).fill(0xee, 0, 24)],
])("planRepair() knows an array block again by the digest where %s was hit", async ([, strike]) => {
  for (const key of [0, 1, 2]) {
    const { image, truth } = await withDigest(SCATTERED);
    strike(image, image.arrayBlocks()[key] as number);
    const planned = await plan(image);
    expect(hydrated(planned)).toEqual(truth);
    expect(planned.unknown).toEqual([]);
  }
});

test("planRepair() knows a zeroed array block again that was hydrated in order, and keeps the state settled", async () => {
  const { image, truth } = await withDigest(growing([10, PER_KEY + 77]));
  image.block(image.arrayBlocks()[1] as number).fill(0);
  const planned = await plan(image);
  expect(hydrated(planned)).toEqual(truth);
  if (!planned.ok) return;
  const written = new MemoryDevice({ size: 64 * BLOCK + DESCRIPTOR_BYTES });
  await writeRepaired(planned, written);
  const superblock = (await imageOf(written)).bytes.subarray(0, 4).toString("hex");
  const { settled } = (await descriptorOn(written))?.destination ?? {};
  expect(settled).toMatchObject({ superblock, hydratedRegions: PER_KEY + 77 });
  expect(settled && (await isAsLeft(written, settled))).toBe(true);
});

test("planRepair() puts the true block in the place of an older one, by the digest", async () => {
  const { image, truth } = await withDigest(SCATTERED);
  const live = image.arrayBlocks()[0] as number;
  const older = [...Array(64).keys()].find((block) => {
    const isArray = block !== live && block > 5 && image.get32(block, 4) === 509 && image.get64(block, 16) === block;
    return isArray && !image.arrayBlocks().includes(block);
  }) as number;
  const last = 63; // free, and not among the lowest
  image.block(live).copy(image.block(last)); // so that the true bits are somewhere
  image.block(older).copy(image.block(live));
  image.seal(live, "array");
  image.seal(last, "array");
  expect(hydrated(await plan(image))).toEqual(truth);
});

test("planRepair() believes none of the blocks where the digest refutes them and fits nothing else", async () => {
  const { image } = await withDigest(SCATTERED);
  image.edit(image.arrayBlocks()[0] as number, "array", (block) => block.fill(0xff, 24 + 50, 24 + 52));
  image.edit(image.arrayBlocks()[1] as number, "array", (block) => block.fill(0, 24 + 20, 24 + 40));
  expect(await plan(image)).toMatchObject({ ok: false, unknown: [{ start: 0, end: THREE_KEYS.regionCount }] });
  expect(hydrated(await plan(image, { assume: "unhydrated" }))).toEqual([]);
});

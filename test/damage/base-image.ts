/**
 * Sound images that damage is done to, and the truth about them, known from how they were made: our own of random geometry and
 * history, and those that the kernel left, some with further commits of ours. Blocks in use are found by a hand of its own
 * (test/support/metadata-image.ts), not by src.
 */
import { Geometry } from "../../src/base/geometry.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES, type Descriptor, DescriptorStore } from "../../src/metadata/descriptor.ts";
import { writeFormatted } from "../../src/metadata/format-image.ts";
import { minimumBlockCount } from "../../src/metadata/metadata-size.ts";
import { recordFree } from "../../src/metadata/settled-witness.ts";
import { kernelFixtures, readFixtureImage, readFixtureTruth } from "../support/kernel-fixtures.ts";
import { MetadataImage, type SealedType } from "../support/metadata-image.ts";
import { type SeededRandom, seededRandom } from "../support/random.ts";
import { DamagedDevice } from "./damaged-device.ts";

export const BLOCK = 4096;

/** Half-open; lists of them are ascending and do not touch. */
export type Range = [start: number, end: number];

/** What a live block is for, which tells the type that it must have. */
export type Role = "superblock" | "index" | "reference counts" | "bitmap" | "node" | "array";

export const TYPE_OF_ROLE: Readonly<Record<Role, SealedType>> = {
  superblock: "superblock",
  index: "index",
  "reference counts": "node",
  bitmap: "bitmap",
  node: "node",
  array: "array",
};

/** A sound image. */
export interface BaseImage {
  name: string;
  bytes: Buffer;
  blockCount: number;
  regionCount: number;
  /** Regions that are hydrated. */
  truth: Range[];
  live: Map<number, Role>;
  /** What blocks held before, oldest first: the same place at earlier commits. */
  older: Map<number, Buffer[]>;
  /** What the last commit has changed, as it was before. */
  lastCommit: Map<number, Buffer>;
  /** What its descriptor says that matters to a repair. */
  story: Story;
}

/** How a clone came to be what it is, as far as its descriptor tells, and what that leaves true. */
export interface Story {
  /** Its place was all zero before; where not, an earlier clone's blocks lie in it. */
  isBlank: boolean;
  /** Nobody has written to it but by copying the source, and descriptor and destination prove that. */
  isNeverWritten: boolean;
  /** The destination's time of last change is that recorded. */
  isDestinationAsLeft: boolean;
  isFinalized: boolean;
  /** Its first region was given up as unreadable, and is never hydrated. */
  isFirstUnreadable: boolean;
  /** Hydrated from the first region on, as where no client asks for others. */
  isInOrder: boolean;
  /** The descriptor has the digest of the very bits that are there. */
  hasDigest: boolean;
}

/** What the descriptor of a foreign image tells: nothing. */
const NO_STORY: Story = {
  isBlank: false,
  isNeverWritten: false,
  isDestinationAsLeft: true,
  isFinalized: false,
  isFirstUnreadable: false,
  isInOrder: false,
  hasDigest: false,
};

/** The image of a seed, which alone decides what it is. */
export async function baseImage(seed: number): Promise<BaseImage> {
  const random = seededRandom(Math.imul(seed, 0x9e3779b1));
  return seed % 3 === 0 ? await kernelImage(Math.floor(seed / 3), random) : await ownImage(seed, random);
}

async function kernelImage(turn: number, random: SeededRandom): Promise<BaseImage> {
  const fixture = kernelFixtures[turn % kernelFixtures.length] as string;
  // The largest takes as long as a hundred of the others.
  if (fixture === "large-4t-32k" && turn % (4 * kernelFixtures.length) >= kernelFixtures.length) {
    return await kernelImage(turn + 1, random);
  }
  const { hydrated, nr_regions } = readFixtureTruth(fixture);
  const device = new DamagedDevice(readFixtureImage(fixture), new Map(), { readOnly: false });
  const truth = merged(hydrated.map(([first, last]): Range => [first, last + 1]));
  return await withHistory(`the kernel's ${fixture}`, device, {
    truth,
    regionCount: nr_regions,
    random,
    most: 4,
    story: NO_STORY,
  });
}

async function ownImage(seed: number, random: SeededRandom): Promise<BaseImage> {
  const regionCount = random.oneIn(30)
    ? random.integer(253 * 32576, 300 * 32576)
    : random.pick([random.integer(1, 130), random.integer(1, 33_000), random.integer(30_000, 200_000)]);
  const slack = random.oneIn(40) ? 17_000 : random.integer(0, random.pick([0, 6, 60]));
  const blockCount = minimumBlockCount(regionCount) + slack;
  const geometry = new Geometry({ size: regionCount * 4096 - 512 * random.integer(0, 7), regionSize: 4096 });
  const described = !random.oneIn(3);
  // Each of three alone shows that somebody may have written to it: clients, commits of others, the destination itself.
  const isUnserved = described && !random.oneIn(3);
  const isAlone = !random.oneIn(6);
  const isDestinationAsLeft = !random.oneIn(6);
  const story: Story = {
    isBlank: !random.oneIn(3),
    isNeverWritten: isUnserved && isAlone && isDestinationAsLeft,
    isDestinationAsLeft,
    isFinalized: described && random.oneIn(4),
    isFirstUnreadable: described && regionCount > 1 && random.oneIn(2),
    isInOrder: random.oneIn(2),
    hasDigest: described && random.oneIn(2),
  };
  const room = blockCount * BLOCK + (described ? DESCRIPTOR_BYTES : random.integer(0, 5000));
  const device = new DamagedDevice(Buffer.alloc(room), new Map(), { readOnly: false });
  // Another clone was here, of these sizes or others: its blocks are as sound as ours.
  if (!story.isBlank) await earlierClone(device, { regionCount, blockCount, random });
  const descriptor = described ? describe(geometry, { isAlone, ...story }) : null;
  await writeFormatted(device, { geometry, blockCount, bits: null, descriptor, isBlank: story.isBlank });
  const most = random.pick([1, 6, 25]);
  const base = await withHistory(`image ${seed}`, device, { truth: [], regionCount, random, most, story });
  if (descriptor !== null) {
    const store = await DescriptorStore.open(device, { geometry, blockCount });
    await using metadata = await CloneMetadata.open(device, { readOnly: true });
    const settled = {
      mtimeNs: "1",
      superblock: base.bytes.subarray(0, 4).toString("hex"),
      ...(await recordFree(device)),
      ...(story.hasDigest
        ? { hydratedRegions: metadata.hydratedCount, hydratedDigest: metadata.hydratedDigest() }
        : {}),
    };
    const isSettled = story.isNeverWritten || story.hasDigest || random.oneIn(2);
    await store.write({
      ...descriptor,
      ...(store.read()?.blank === true ? { blank: true } : {}),
      served: !isUnserved,
      ...(story.isFinalized ? { unreadable: { ...descriptor.unreadable, complete: true } } : {}),
      finalized: story.isFinalized
        ? { finished: WHEN, verified: true, unreadableRegions: story.isFirstUnreadable ? 1 : 0 }
        : null,
      destination: { ...descriptor.destination, settled: isSettled ? settled : null },
    });
    base.bytes = await contentOf(device);
  }
  return base;
}

/** Leaves blocks of another clone all over the place of the next one. */
async function earlierClone(
  device: DamagedDevice,
  { regionCount, blockCount, random }: { regionCount: number; blockCount: number; random: SeededRandom },
): Promise<void> {
  const regions = random.oneIn(2) ? regionCount : random.integer(1, regionCount);
  const geometry = new Geometry({ size: regions * 4096, regionSize: 4096 });
  await writeFormatted(device, { geometry, blockCount, bits: null, descriptor: null });
  const story = NO_STORY;
  await withHistory("earlier", device, { truth: [], regionCount: regions, random, most: 6, story });
}

/** Commits some times, keeping what was there before. */
async function withHistory(
  name: string,
  device: DamagedDevice,
  {
    truth,
    regionCount,
    random,
    most,
    story,
  }: { truth: Range[]; regionCount: number; random: SeededRandom; most: number; story: Story },
): Promise<BaseImage> {
  const older = new Map<number, Buffer[]>();
  let lastCommit = new Map<number, Buffer>();
  let ranges = truth;
  // A clone that is finalized has all of its regions, which the last commit brings.
  const commits = random.integer(0, most) + (story.isFinalized ? 1 : 0);
  for (let commit = 1; commit <= commits; commit++) {
    const before = new Map(device.blocks);
    const original = new DamagedDevice(await sharedOf(device), before);
    const metadata = await CloneMetadata.open(device);
    const length = random.integer(1, 6);
    const marked = Array.from({ length }, (): Range => {
      const first = story.isFirstUnreadable ? 1 : 0;
      if (story.isFinalized && commit === commits) return [first, regionCount];
      const next = Math.min(regionCount - 1, ranges.at(-1)?.[1] ?? first);
      const start = story.isInOrder ? next : random.integer(first, regionCount - 1);
      return [start, Math.min(regionCount, start + random.integer(1, random.pick([1, 40, 5000])))];
    });
    for (const [start, end] of marked) metadata.markHydrated({ start, end });
    metadata.preCommit();
    await metadata.commit();
    ranges = merged([...ranges, ...marked]);
    lastCommit = new Map();
    for (const [block, bytes] of device.blocks) {
      if (before.get(block) === bytes) continue;
      const was = original.block(block);
      lastCommit.set(block, was);
      older.set(block, [...(older.get(block) ?? []), was]);
    }
  }
  const bytes = await contentOf(device);
  const image = new MetadataImage(bytes);
  return {
    name,
    bytes,
    blockCount: image.get64(0, 44),
    regionCount,
    truth: ranges,
    live: liveBlocks(image),
    older,
    lastCommit,
    story,
  };
}

const shared = new WeakMap<DamagedDevice, Buffer>();

/** The bytes that a device began with. */
async function sharedOf(device: DamagedDevice): Promise<Buffer> {
  let bytes = shared.get(device);
  if (bytes === undefined) {
    bytes = await contentOf(device);
    shared.set(device, bytes);
  }
  return bytes;
}

async function contentOf(device: DamagedDevice): Promise<Buffer> {
  const bytes = Buffer.alloc(device.size);
  await device.read(0, bytes);
  return bytes;
}

/** Every block that the superblock leads to, and what for. */
function liveBlocks(image: MetadataImage): Map<number, Role> {
  const live = new Map<number, Role>([
    [0, "superblock"],
    [image.indexBlock, "index"],
    [image.referenceCountRoot, "reference counts"],
  ]);
  for (let i = 0; i < Math.ceil(image.get64(0, 44) / 16320); i++) live.set(image.bitmapBlock(i), "bitmap");
  const visit = (node: number): void => {
    live.set(node, "node");
    for (let i = 0; i < image.get32(node, 16); i++) {
      const child = image.get64(node, 2048 + 8 * i);
      if (image.get32(node, 4) === 2) live.set(child, "array");
      else visit(child);
    }
  };
  visit(image.bitsetRoot);
  return live;
}

/** Sorted, joined where they overlap or touch. */
export function merged(ranges: readonly Range[]): Range[] {
  const result: Range[] = [];
  for (const [start, end] of [...ranges].sort((a, b) => a[0] - b[0])) {
    const last = result.at(-1);
    if (last !== undefined && start <= last[1]) last[1] = Math.max(last[1], end);
    else result.push([start, end]);
  }
  return result;
}

const WHEN = "2026-01-02T03:04:05Z";

function describe({ size }: Geometry, { isAlone, isFirstUnreadable }: Story & { isAlone: boolean }): Descriptor {
  return {
    uuid: "12954880-dcd8-4fee-a479-37857fe06e58",
    created: WHEN,
    source: { uri: "file:///source.img", size, format: "raw", fingerprint: { kind: "file", inode: "12" } },
    destination: { uri: "file:///copy.img", size, fingerprint: {} },
    exactSize: size,
    options: {},
    unreadable: { ranges: isFirstUnreadable ? [{ start: 0, end: 1 }] : [], inexact: false },
    served: false,
    finalized: null,
    ...(isAlone ? { alone: true } : {}),
  };
}

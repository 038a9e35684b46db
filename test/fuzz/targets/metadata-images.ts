/**
 * Metadata from anybody: whole images, struck where a disk would not strike them, in fields that mean something, and sealed
 * again, so that no checksum protects what reads them. A message is the list of blows, as JSON.
 */
import assert from "node:assert/strict";
import type { RegionRange } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { DescriptorStore } from "../../../src/metadata/descriptor.ts";
import { dumpMetadata } from "../../../src/metadata/dump.ts";
import { probeSuperblock } from "../../../src/metadata/superblock.ts";
import {
  BLOCK,
  buildMetadata,
  MetadataImage,
  SALT,
  type SealedType,
  twoLevelImage,
} from "../../support/metadata-image.ts";
import type { SeededRandom } from "../../support/random.ts";
import { type FuzzTarget, mustHold, outcomeOfAsync } from "../target.ts";

/** One blow. `block` and `other` are taken modulo the image's number of blocks; numbers are decimal, for the u64 among them. */
type Blow =
  | { kind: "u32"; block: number; offset: number; value: string }
  | { kind: "u64"; block: number; offset: number; value: string }
  | { kind: "flip"; block: number; bit: number }
  | { kind: "fill"; block: number; byte: number }
  | { kind: "copy" | "swap"; block: number; other: number }
  | { kind: "cut"; length: number };

interface Blows {
  image: number;
  /** Whether struck blocks get the checksum of what they were, and whether their own number is filled in. */
  seal: boolean;
  number: boolean;
  blows: Blow[];
}

const IMAGES: readonly (() => MetadataImage)[] = [
  () => buildMetadata({ regionSectors: 8, targetSectors: 8 * 1000, blockCount: 16, hydrated: [[3, 70]] }),
  () =>
    buildMetadata({ regionSectors: 128, targetSectors: 128 * 40_000 - 77, blockCount: 24, hydrated: [[0, 40_000]] }),
  () => buildMetadata({ regionSectors: 2 ** 21, targetSectors: 1, blockCount: 12, trailer: 131_072 }),
  twoLevelImage,
];

/** Where the fields are, by the type of block; of arrays of fields the first ones. */
const FIELDS: Readonly<Record<SealedType, readonly (readonly [offset: number, width: 4 | 8])[]>> = {
  superblock: [
    ...([4, 40].map((offset) => [offset, 4]) as [number, 4][]),
    ...([8, 32, 44, 52, 60, 68, 172, 180, 188].map((offset) => [offset, 8]) as [number, 8][]),
  ],
  node: [
    ...([4, 16, 20, 24, 28].map((offset) => [offset, 4]) as [number, 4][]),
    ...([8, 32, 40, 48, 2048, 2056, 2064, 2720].map((offset) => [offset, 8]) as [number, 8][]),
  ],
  array: [
    ...([4, 8, 12].map((offset) => [offset, 4]) as [number, 4][]),
    ...([16, 24, 4088].map((offset) => [offset, 8]) as [number, 8][]),
  ],
  index: [
    ...([24, 28].map((offset) => [offset, 4]) as [number, 4][]),
    ...([8, 16, 32].map((offset) => [offset, 8]) as [number, 8][]),
  ],
  bitmap: [
    [16, 4],
    [20, 4],
    [8, 8],
  ],
};

const VALUES = [
  ...[
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "10",
    "12",
    "15",
    "16",
    "63",
    "64",
    "251",
    "252",
    "253",
    "336",
    "509",
  ],
  ...[
    "510",
    "1000",
    "4096",
    "16320",
    "65535",
    "2097152",
    "2147483647",
    "2147483648",
    "4294967295",
    "4161600",
    "4161601",
  ],
  ...[
    "4294967296",
    "8589934592",
    "17179869184",
    "274877906944",
    "17592186044415",
    "9007199254740991",
    "9007199254740993",
    "9223372036854775808",
    "18446744073709551615",
  ],
];

function blow(random: SeededRandom, image: MetadataImage): Blow {
  // Blocks in use matter most, and of them the superblock.
  const last = random.oneIn(4) ? image.blockCount - 1 : Math.min(9, image.blockCount - 1);
  const block = random.oneIn(4) ? 0 : random.integer(0, last);
  const type = typeOf(image, block);
  const kind = random.integer(0, 11);
  if (kind === 0) return { kind: "flip", block, bit: random.integer(0, BLOCK * 8 - 1) };
  if (kind === 1) return { kind: "fill", block, byte: random.pick([0, 0xff, 0x55, 0xaa, 1]) };
  if (kind === 2) return { kind: random.pick(["copy", "swap"]), block, other: random.integer(0, image.blockCount - 1) };
  if (kind === 3) return { kind: "cut", length: random.integer(0, image.bytes.length) };
  const [offset, width] =
    type === undefined || random.oneIn(5)
      ? [random.integer(0, BLOCK - 8), random.pick([4, 8] as const)]
      : random.pick(FIELDS[type]);
  const value = random.oneIn(3) ? String(random.integer(0, image.blockCount + 1)) : random.pick(VALUES);
  return { kind: width === 4 ? "u32" : "u64", block, offset, value };
}

function typeOf(image: MetadataImage, number: number): SealedType | undefined {
  const copy = new MetadataImage(image.block(number));
  return (Object.keys(SALT) as SealedType[]).find((type) => {
    copy.seal(0, type, { keepNumber: true });
    return copy.get32(0, 0) === image.get32(number, 0);
  });
}

/** The image with its blows. */
function strike(originals: readonly MetadataImage[], { image: which, seal, number: numbered, blows }: Blows): Buffer {
  const image = new MetadataImage((originals[which % originals.length] as MetadataImage).bytes);
  let end = image.bytes.length;
  for (const hit of blows) {
    if (hit.kind === "cut") {
      end = Math.min(end, hit.length);
      continue;
    }
    const struck = hit.block % image.blockCount;
    const type = seal ? typeOf(image, struck) : undefined;
    strikeBlock(image, struck, hit);
    if (type !== undefined) image.seal(struck, type, { keepNumber: !numbered });
  }
  return image.bytes.subarray(0, end);
}

function strikeBlock(image: MetadataImage, number: number, hit: Exclude<Blow, { kind: "cut" }>): void {
  const block = image.block(number);
  if (hit.kind === "u32") block.writeUInt32LE(Number(BigInt(hit.value) % 2n ** 32n), hit.offset);
  else if (hit.kind === "u64") block.writeBigUInt64LE(BigInt(hit.value), hit.offset);
  else if (hit.kind === "fill") block.fill(hit.byte);
  else if (hit.kind === "flip") {
    const byte = Math.floor(hit.bit / 8);
    block[byte] = (block[byte] as number) ^ (1 << (hit.bit % 8));
  } else {
    const other = image.block(hit.other % image.blockCount);
    const before = Buffer.from(block);
    other.copy(block);
    if (hit.kind === "swap") before.copy(other);
  }
}

function count(ranges: Iterable<RegionRange>): number {
  let regions = 0;
  for (const { start, end } of ranges) regions += end - start;
  return regions;
}

/** What is read from metadata is what a dump of it says. */
async function readAll(device: MemoryDevice): Promise<{ hydrated: number; regions: number }> {
  await using metadata = await CloneMetadata.open(device, { readOnly: true });
  const { geometry } = metadata;
  const store = await DescriptorStore.open(device, { geometry, blockCount: metadata.totalBlocks });
  const hydrated = count(metadata.hydratedRanges());
  mustHold(hydrated === metadata.hydratedCount && hydrated <= metadata.regionCount, `${hydrated} regions are hydrated`);
  if (hydrated < 100_000) {
    const content = { geometry, hydratedRanges: metadata.hydratedRanges(), descriptor: store.read() };
    const dump = JSON.parse([...dumpMetadata(content)].join("")) as { hydrated: [number, number][]; size: number };
    assert.equal(dump.size, geometry.size);
    assert.equal(count(dump.hydrated.map(([start, end]) => ({ start, end }))), hydrated);
  }
  return { hydrated, regions: metadata.regionCount };
}

/** Hydrates a region of metadata that could be opened: what was hydrated still is, and so is the region. */
async function commitOne(device: MemoryDevice): Promise<void> {
  let before: RegionRange[];
  let region: number;
  {
    await using metadata = await CloneMetadata.open(device);
    before = [...metadata.hydratedRanges()];
    region = metadata.nextUnhydrated(0);
    if (region === metadata.regionCount) return;
    metadata.markHydrated({ start: region, end: region + 1 });
    metadata.preCommit();
    await metadata.commit();
  }
  await using after = await CloneMetadata.open(device, { readOnly: true });
  mustHold(after.isHydrated(region), `region ${region} was committed, and is not hydrated`);
  assert.equal(after.hydratedCount, count(before) + 1);
  for (const { start, end } of before)
    mustHold(after.nextUnhydrated(start, end) === end, `regions from ${start} on are lost`);
}

/** Opening, checking, dumping and committing to metadata. */
export const metadata: FuzzTarget = {
  name: "metadata-images",
  weight: 25,
  mostBytes: 16 * 1024 * 1024,
  open() {
    const originals = IMAGES.map((build) => build());
    return {
      generate(random) {
        const image = random.integer(0, originals.length - 1);
        const original = originals[image] as MetadataImage;
        const blows = Array.from({ length: random.oneIn(20) ? 0 : random.integer(1, 3) }, () => blow(random, original));
        const message: Blows = { image, seal: !random.oneIn(4), number: random.oneIn(2), blows };
        return { bytes: Buffer.from(JSON.stringify(message)), isGood: blows.length === 0 };
      },
      async run(message) {
        const content = strike(originals, JSON.parse(message.toString()) as Blows);
        const newDevice = () => new MemoryDevice({ size: content.length, content });
        const device = newDevice();
        const report = await checkMetadata(device);
        const { verdict } = await probeSuperblock(device);
        let read: { hydrated: number } | undefined;
        const outcome = await outcomeOfAsync(async () => {
          read = await readAll(device);
        });
        if (report.verdict === "clean") {
          mustHold(read !== undefined && verdict === "valid", `it is clean, and cannot be opened`);
          assert.equal(report.facts?.hydratedRegions, read.hydrated);
        }
        mustHold(read === undefined || verdict === "valid", `its superblock is ${verdict}, and it can be opened`);
        const commit = await outcomeOfAsync(() => commitOne(newDevice()));
        mustHold(report.verdict !== "clean" || commit === "accepted", "it is clean, and cannot be committed to");
        return outcome;
      },
      async [Symbol.asyncDispose]() {},
    };
  },
};

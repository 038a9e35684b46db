/**
 * A test's own hand on dm-clone metadata: builds images, pokes at them, seals what it changed, and decodes the bits, in
 * the plainest way that the format allows and without any code of src. Sizes of regions and targets are in sectors.
 */
import { crc32c } from "@node-rs/crc32";

export const BLOCK = 4096;
const WORDS = 509;
const PER_BITMAP = 16320;

/** What the checksum of each type of block is made with. */
export const SALT = {
  superblock: 257649492,
  node: 121107,
  array: 595846735,
  index: 160478,
  bitmap: 240779,
} as const;
export type SealedType = keyof typeof SALT;

/** The bytes of a whole metadata device. */
export class MetadataImage {
  readonly bytes: Buffer;

  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes);
  }

  get blockCount(): number {
    return Math.floor(this.bytes.length / BLOCK);
  }

  block(number: number): Buffer {
    return this.bytes.subarray(number * BLOCK, (number + 1) * BLOCK);
  }

  get32(block: number, offset: number): number {
    return this.bytes.readUInt32LE(block * BLOCK + offset);
  }

  get64(block: number, offset: number): number {
    return Number(this.bytes.readBigUInt64LE(block * BLOCK + offset));
  }

  set32(block: number, offset: number, value: number): void {
    this.bytes.writeUInt32LE(value, block * BLOCK + offset);
  }

  set64(block: number, offset: number, value: number | bigint): void {
    this.bytes.writeBigUInt64LE(BigInt(value), block * BLOCK + offset);
  }

  /** Gives a block the checksum of `type`, and its number unless `keepNumber`. */
  seal(number: number, type: SealedType, { keepNumber = false } = {}): void {
    if (!keepNumber) this.set64(number, type === "array" ? 16 : 8, number);
    this.set32(number, 0, (crc32c(this.block(number).subarray(4)) ^ 0xffffffff ^ SALT[type]) >>> 0);
  }

  /** Changes a block and seals it again. */
  edit(number: number, type: SealedType, change: (block: Buffer) => void): void {
    change(this.block(number));
    this.seal(number, type, { keepNumber: true });
  }

  get indexBlock(): number {
    return this.get64(0, 60);
  }

  get referenceCountRoot(): number {
    return this.get64(0, 68);
  }

  get bitsetRoot(): number {
    return this.get64(0, 188);
  }

  bitmapBlock(bitmap: number): number {
    return this.get64(this.indexBlock, 16 + 16 * bitmap);
  }

  /** Overwrites the stored count of one block, and nothing that goes with it. */
  setCount(block: number, count: number): void {
    const bitmap = this.bitmapBlock(Math.floor(block / PER_BITMAP));
    this.edit(bitmap, "bitmap", (bytes) => putCount(bytes, block % PER_BITMAP, count));
  }

  /** The array blocks in key order. */
  arrayBlocks(): number[] {
    const found: number[] = [];
    const visit = (node: number): void => {
      for (let i = 0; i < this.get32(node, 16); i++) {
        const value = this.get64(node, 2048 + 8 * i);
        if (this.get32(node, 4) === 2) found.push(value);
        else visit(value);
      }
    };
    visit(this.bitsetRoot);
    return found;
  }

  /** The hydrated regions as half-open pairs. */
  hydratedRanges(): [number, number][] {
    const regions = Math.ceil(this.get64(0, 180) / this.get64(0, 172));
    const ranges: [number, number][] = [];
    let start = -1;
    const words = this.arrayBlocks().map((block) => this.block(block).subarray(24, 24 + 8 * this.get32(block, 8)));
    const bits = Buffer.concat(words);
    for (let region = 0; region <= regions; region++) {
      const byte = bits[Math.floor(region / 8)] ?? 0;
      if (start === -1 && region % 8 === 0 && byte === 0 && region + 8 <= regions) {
        region += 7;
        continue;
      }
      const set = region < regions && (byte & (1 << (region % 8))) !== 0;
      if (set && start === -1) start = region;
      if (!set && start !== -1) {
        ranges.push([start, region]);
        start = -1;
      }
    }
    return ranges;
  }
}

function putCount(bitmap: Buffer, entry: number, count: number): void {
  const offset = 16 + Math.floor(entry / 4);
  const shift = 2 * (entry % 4);
  const raw = ((count & 1) << 1) | (count >> 1); // the lower bit of the pair is the high one of the count
  bitmap[offset] = ((bitmap[offset] ?? 0) & ~(3 << shift)) | (raw << shift);
}

export interface BuildOptions {
  regionSectors: number;
  targetSectors: number;
  blockCount: number;
  /** Half-open pairs. */
  hydrated?: readonly (readonly [number, number])[];
  /** Entries per leaf of the bitset's tree; with more array blocks than this the tree gets a level more. Default 252. */
  leafEntries?: number;
  /** Bytes behind the managed blocks. */
  trailer?: number;
}

/**
 * A fresh image laid out as format section 7 says: byte-identical to the kernel's for up to 252 array blocks. Wider
 * trees are built bottom-up behind the array blocks, two levels at most.
 */
export function buildMetadata(options: BuildOptions): MetadataImage {
  const { regionSectors, targetSectors, blockCount, hydrated = [], leafEntries = 252, trailer = 0 } = options;
  const image = new MetadataImage(Buffer.alloc(blockCount * BLOCK + trailer));
  const words = Math.ceil(Math.ceil(targetSectors / regionSectors) / 64);
  const arrayCount = Math.ceil(words / WORDS);
  const bitmapCount = Math.ceil(blockCount / PER_BITMAP);
  const root = 3 + bitmapCount;
  const firstArray = root + 1;

  for (let key = 0; key < arrayCount; key++) {
    image.set32(firstArray + key, 4, WORDS);
    image.set32(firstArray + key, 8, Math.min(words - key * WORDS, WORDS));
    image.set32(firstArray + key, 12, 8);
  }
  for (const [start, end] of hydrated) {
    for (let region = start; region < end; region++) {
      const within = region % (64 * WORDS);
      const block = image.block(firstArray + Math.floor(region / (64 * WORDS)));
      block[24 + Math.floor(within / 8)] = (block[24 + Math.floor(within / 8)] ?? 0) | (1 << (within % 8));
    }
  }
  for (let key = 0; key < arrayCount; key++) image.seal(firstArray + key, "array");

  let used = firstArray + arrayCount;
  const entries = Array.from({ length: arrayCount }, (_, key): [number, number] => [key, firstArray + key]);
  if (arrayCount <= leafEntries) {
    writeNode(image, root, 2, entries);
  } else {
    const children: [number, number][] = [];
    for (let key = 0; key < arrayCount; key += leafEntries) {
      writeNode(image, used, 2, entries.slice(key, key + leafEntries));
      children.push([key, used++]);
    }
    writeNode(image, root, 1, children);
  }
  writeReferenceCountLeaf(image, 2, []);

  image.set64(1, 8, 1);
  for (let bitmap = 0; bitmap < bitmapCount; bitmap++) {
    const inUse = Math.max(0, Math.min(used - bitmap * PER_BITMAP, PER_BITMAP));
    for (let entry = 0; entry < inUse; entry++) putCount(image.block(3 + bitmap), entry, 1);
    image.seal(3 + bitmap, "bitmap");
    image.set64(1, 16 + 16 * bitmap, 3 + bitmap);
    image.set32(1, 24 + 16 * bitmap, PER_BITMAP - inUse);
    image.set32(1, 28 + 16 * bitmap, inUse);
  }
  image.seal(1, "index");

  image.set64(0, 32, 0x8af27f64);
  image.set32(0, 40, 1);
  image.set64(0, 44, blockCount);
  image.set64(0, 52, used);
  image.set64(0, 60, 1);
  image.set64(0, 68, 2);
  image.set64(0, 172, regionSectors);
  image.set64(0, 180, targetSectors);
  image.set64(0, 188, root);
  image.seal(0, "superblock");
  return image;
}

/** A node of the bitset's tree. `flags`: 1 internal, 2 leaf. */
export function writeNode(
  image: MetadataImage,
  block: number,
  flags: 1 | 2,
  entries: readonly [number, number][],
): void {
  image.set32(block, 4, flags);
  image.set32(block, 16, entries.length);
  image.set32(block, 20, 252);
  image.set32(block, 24, 8);
  entries.forEach(([key, value], i) => {
    image.set64(block, 32 + 8 * i, key);
    image.set64(block, 2048 + 8 * i, value);
  });
  image.seal(block, "node");
}

/** A leaf of the tree of counts above 2: pairs of block and count. */
export function writeReferenceCountLeaf(
  image: MetadataImage,
  block: number,
  entries: readonly [number, number][],
): void {
  image.set32(block, 4, 2);
  image.set32(block, 16, entries.length);
  image.set32(block, 20, 336);
  image.set32(block, 24, 4);
  entries.forEach(([key, count], i) => {
    image.set64(block, 32 + 8 * i, key);
    image.set32(block, 2720 + 4 * i, count);
  });
  image.seal(block, "node");
}

/** Regions of `twoLevelImage()`. */
export const REGIONS = 5 * 32576 - 30;

/**
 * 5 array blocks under a tree of two levels; the last word is partly used.
 *
 *     0 superblock  1 index  2 reference counts  3 bitmap  4 root  5-9 array blocks  10 11 12 leaves  13-63 free
 */
export function twoLevelImage(): MetadataImage {
  return buildMetadata({
    regionSectors: 8,
    targetSectors: 8 * REGIONS - 3,
    blockCount: 64,
    hydrated: [
      [0, 5],
      [32570, 32600],
      [REGIONS - 1, REGIONS],
    ],
    leafEntries: 2,
  });
}

/** Makes the bookkeeping of a one-bitmap image agree with its bitmap. */
export function recount(image: MetadataImage): void {
  const bitmap = image.block(image.bitmapBlock(0)).subarray(16);
  const entries = Array.from({ length: 16320 }, (_, e) => ((bitmap[Math.floor(e / 4)] ?? 0) >> (2 * (e % 4))) & 3);
  const used = entries.filter((entry) => entry !== 0).length;
  image.edit(image.indexBlock, "index", () => {
    image.set32(image.indexBlock, 24, 16320 - used);
    image.set32(image.indexBlock, 28, entries.indexOf(0));
  });
  image.edit(0, "superblock", () => image.set64(0, 52, used));
}

/** Flips one bit of a block and leaves its checksum as it was. */
export function flipBit(image: MetadataImage, block: number, offset = 2000): void {
  image.block(block)[offset] = (image.block(block)[offset] ?? 0) ^ 0x10;
}

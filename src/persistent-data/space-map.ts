/**
 * Which metadata blocks are in use, the space map's own blocks included.
 *
 *     index block ──► up to 255 bitmap blocks, 16320 two-bit counts each ──► (count 3: see the reference-count btree)
 *
 * The rule that makes commits crash-safe: a block is handed out only if it is free now **and** was free at the last
 * commit. So nothing the committed superblock reaches is overwritten, and the blocks allocated since are exactly those
 * in use now and free then.
 *
 * Bitmap blocks are themselves shadowed: changing a count for the first time in a transaction allocates a new block for
 * its bitmap and frees the old one, two more changes, which may hit another bitmap. They wait in a queue, first in first
 * out (kernel: `dm-space-map-metadata.c`, `sm_metadata_new_block_`, `apply_bops`). The search follows the kernel's cursor,
 * so that images come out byte-identical.
 *
 * All bitmaps are held in memory (1 MiB for the largest space map there is), which makes allocation synchronous.
 */
import assert from "node:assert";
import { CloneError, MetadataError } from "../base/errors.ts";
import { BTree } from "./btree.ts";
import { BLOCK_SIZE, type BlockType, readU64, viewOf, writeU64 } from "./checksum.ts";
import type { BlockSource } from "./transaction-manager.ts";

/** Counts per bitmap block. */
export const ENTRIES_PER_BITMAP = 16320;
/** Blocks that the 255 bitmaps an index has room for can describe (`DM_SM_METADATA_MAX_BLOCKS`). */
export const MAX_METADATA_BLOCKS = 255 * ENTRIES_PER_BITMAP;

const BITMAP_HEADER = 16;
const INDEX_HEADER = 16;
const INDEX_ENTRY = 16;

/** Where the superblock says the space map is. */
export interface SpaceMapRoot {
  /** Blocks that are managed: 0 … blockCount - 1. */
  blockCount: number;
  /** How many of them are in use. */
  allocatedCount: number;
  /** Block number of the index block. */
  indexBlock: number;
  /** Block number of the reference-count btree's root. */
  refCountRoot: number;
}

/** A block of the space map that has to be written. */
export interface SpaceMapBlock {
  block: number;
  type: Extract<BlockType, "index" | "bitmap">;
  bytes: Uint8Array;
}

interface Bitmap {
  block: number;
  freeCount: number;
  /** Every entry below is in use; may be too low, never too high. */
  noneFreeBefore: number;
  bytes: Uint8Array;
  /** As of the last commit; the same array as `bytes` until that is shadowed. */
  committed: Uint8Array;
  shadowed: boolean;
}

/** Bitmap blocks needed for `blockCount` metadata blocks. */
export function bitmapCountOf(blockCount: number): number {
  return Math.ceil(blockCount / ENTRIES_PER_BITMAP);
}

/** The space map of one metadata device, in memory. Block numbers are below `root.blockCount`. */
export class SpaceMap {
  readonly #name: string;
  readonly #root: SpaceMapRoot;
  readonly #bitmaps: Bitmap[];
  /** True counts of the blocks whose entry is 3. */
  readonly #refCounts: ReadonlyMap<number, number>;
  /** What was found inconsistent on loading, and corrected in memory; one sentence each. */
  readonly warnings: string[];
  #indexShadowed = false;
  /** Where the next search starts: one past the last block handed out; not reset by a commit. */
  #cursor = 0;
  readonly #changes: { block: number; delta: 1 | -1 }[] = [];

  private constructor(
    name: string,
    root: SpaceMapRoot,
    bitmaps: Bitmap[],
    refCounts: ReadonlyMap<number, number>,
    warnings: string[],
  ) {
    this.#name = name;
    this.#root = { ...root };
    this.#bitmaps = bitmaps;
    this.#refCounts = refCounts;
    this.warnings = warnings;
  }

  /**
   * A new space map that describes itself: index in block 1, the (still unwritten) reference-count leaf in block 2,
   * bitmaps from block 3 on (`dm_sm_metadata_create`). `name` is the device's, for messages.
   */
  static format(blockCount: number, name: string): SpaceMap {
    assert(blockCount <= MAX_METADATA_BLOCKS);
    const bitmapCount = bitmapCountOf(blockCount);
    const nothing = new Uint8Array(BLOCK_SIZE);
    const bitmaps = Array.from({ length: bitmapCount }, (_, i) => ({
      block: 3 + i,
      freeCount: ENTRIES_PER_BITMAP,
      noneFreeBefore: 0,
      bytes: new Uint8Array(BLOCK_SIZE),
      committed: nothing,
      shadowed: true,
    }));
    const root = { blockCount, allocatedCount: 0, indexBlock: 1, refCountRoot: 2 };
    const map = new SpaceMap(name, root, bitmaps, new Map(), []);
    map.#indexShadowed = true;
    for (let block = 0; block < 3 + bitmapCount; block++) map.#change(block, 1);
    map.#cursor = 3 + bitmapCount;
    return map;
  }

  /**
   * Reads index, bitmaps and, where an entry asks for it, the reference-count btree.
   *
   * @throws {MetadataError} where they are damaged
   */
  static async load(source: BlockSource, root: SpaceMapRoot): Promise<SpaceMap> {
    const { name } = source;
    const index = viewOf(await source.read(root.indexBlock, "index"));
    const bitmaps: Bitmap[] = [];
    for (let i = 0; i < bitmapCountOf(root.blockCount); i++) {
      const entry = INDEX_HEADER + i * INDEX_ENTRY;
      const block = readU64(index, entry);
      if (block === 0 || block >= root.blockCount) {
        throw new MetadataError(`Space map index ${root.indexBlock} of "${name}" names block ${block} as a bitmap`, {
          block: root.indexBlock,
        });
      }
      const bytes = await source.read(block, "bitmap");
      bitmaps.push({
        block,
        freeCount: index.getUint32(entry + 8, true),
        noneFreeBefore: index.getUint32(entry + 12, true),
        bytes,
        committed: bytes,
        shadowed: false,
      });
    }
    const refCounts = new Map<number, number>();
    if (bitmaps.some(({ bytes }) => hasSharedEntries(bytes))) {
      await new BTree(source, { valueSize: 4 }).walk(root.refCountRoot, {
        entry: (block, count) => void refCounts.set(block, count),
      });
    }
    const map = new SpaceMap(name, root, bitmaps, refCounts, []);
    map.#correctStatistics();
    return map;
  }

  /** What the superblock has to say about the space map. */
  get root(): SpaceMapRoot {
    return { ...this.#root };
  }

  get blockCount(): number {
    return this.#root.blockCount;
  }

  /** Blocks in use now. */
  get allocatedCount(): number {
    return this.#root.allocatedCount;
  }

  /** How often `block` is referenced now. */
  count(block: number): number {
    const count = entryAt(this.#bitmapOf(block).bytes, block % ENTRIES_PER_BITMAP);
    return count === 3 ? (this.#refCounts.get(block) ?? 3) : count;
  }

  /** Whether `block` was in use at the last commit. */
  isCommitted(block: number): boolean {
    return entryAt(this.#bitmapOf(block).committed, block % ENTRIES_PER_BITMAP) > 0;
  }

  /** Whether `block` was allocated since the last commit, and so may be changed in place. */
  isNew(block: number): boolean {
    return this.count(block) > 0 && !this.isCommitted(block);
  }

  /** Block numbers of index and bitmaps as they are now. */
  ownBlocks(): number[] {
    return [this.#root.indexBlock, ...this.#bitmaps.map(({ block }) => block)];
  }

  /** Takes a block that is free now and was free at the last commit. @throws {CloneError} when there is none. */
  allocate(): number {
    const block = this.#findFree();
    this.#change(block, 1);
    return block;
  }

  /** Gives back a block in use; it is not handed out again before the next commit. */
  free(block: number): void {
    this.#change(block, -1);
  }

  /**
   * The last step of a transaction: shadows the index and returns the blocks to write. Nothing may be allocated or
   * freed between this and `markCommitted`. The bytes stay the space map's.
   */
  finish(): SpaceMapBlock[] {
    if (!this.#indexShadowed) {
      const old = this.#root.indexBlock;
      this.#root.indexBlock = this.allocate();
      this.#indexShadowed = true;
      this.free(old);
    }
    const blocks: SpaceMapBlock[] = this.#bitmaps
      .filter(({ shadowed }) => shadowed)
      .map(({ block, bytes }) => ({ block, type: "bitmap", bytes }));
    blocks.push({ block: this.#root.indexBlock, type: "index", bytes: this.#encodeIndex() });
    return blocks;
  }

  /** Makes the present state the committed one. */
  markCommitted(): void {
    for (const bitmap of this.#bitmaps) {
      bitmap.committed = bitmap.bytes;
      bitmap.shadowed = false;
    }
    this.#indexShadowed = false;
  }

  /** Searches upward from the cursor, then from 0. */
  #findFree(): number {
    const block = this.#findFreeFrom(this.#cursor) ?? this.#findFreeFrom(0);
    if (block === undefined) {
      throw new CloneError(
        "failed",
        `No block is free in the metadata "${this.#name}" (${this.allocatedCount} of ${this.blockCount} in use)`,
        { hint: "It is smaller than commits need: `clone repair` makes a larger one of it." },
      );
    }
    this.#cursor = block + 1;
    return block;
  }

  #findFreeFrom(start: number): number | undefined {
    for (let block = start; block < this.blockCount; block++) {
      const { bytes, committed } = this.#bitmapOf(block);
      const entry = block % ENTRIES_PER_BITMAP;
      const at = BITMAP_HEADER + Math.floor(entry / 4);
      if (entry % 4 === 0 && (allInUse(bytes[at] as number) || allInUse(committed[at] as number))) {
        block += 3;
        continue;
      }
      if (entryAt(bytes, entry) > 0 || entryAt(committed, entry) > 0) continue;
      // Taken already, but the change still waits in the queue. (The kernel does not look, and can hand out a block
      // twice when exactly one is left.)
      if (this.#changes.some((change) => change.block === block && change.delta === 1)) continue;
      return block;
    }
    return undefined;
  }

  /** Changes a count, and all counts that this changes in turn. */
  #change(block: number, delta: 1 | -1): void {
    this.#changes.push({ block, delta });
    if (this.#changes.length > 1) return; // called from #shadow below: the loop further up the stack gets to it
    for (let change = this.#changes[0]; change !== undefined; change = this.#changes[0]) {
      this.#store(change.block, change.delta);
      this.#changes.shift();
    }
  }

  #store(block: number, delta: 1 | -1): void {
    const bitmap = this.#bitmapOf(block);
    this.#shadow(bitmap);
    const entry = block % ENTRIES_PER_BITMAP;
    const before = entryAt(bitmap.bytes, entry);
    // Whoever loads a map makes sure that nothing is used twice, so one free frees, whatever count a fault left there.
    assert(delta === 1 ? before === 0 : before > 0, `count of block ${block} is ${before}, to be changed by ${delta}`);
    setEntry(bitmap.bytes, entry, delta === 1);
    this.#root.allocatedCount += delta;
    bitmap.freeCount -= delta;
    if (delta === -1) bitmap.noneFreeBefore = Math.min(bitmap.noneFreeBefore, entry);
    else if (bitmap.noneFreeBefore === entry) bitmap.noneFreeBefore = entry + 1;
  }

  #shadow(bitmap: Bitmap): void {
    if (bitmap.shadowed) return;
    bitmap.shadowed = true;
    const old = bitmap.block;
    bitmap.block = this.#findFree();
    bitmap.bytes = Uint8Array.from(bitmap.committed);
    this.#change(bitmap.block, 1);
    this.#change(old, -1);
  }

  #bitmapOf(block: number): Bitmap {
    const bitmap = this.#bitmaps[Math.floor(block / ENTRIES_PER_BITMAP)];
    assert(bitmap !== undefined && block < this.blockCount, `block ${block} outside the space map`);
    return bitmap;
  }

  #encodeIndex(): Uint8Array {
    const bytes = new Uint8Array(BLOCK_SIZE);
    const view = viewOf(bytes);
    this.#bitmaps.forEach(({ block, freeCount, noneFreeBefore }, i) => {
      const entry = INDEX_HEADER + i * INDEX_ENTRY;
      writeU64(view, entry, block);
      view.setUint32(entry + 8, freeCount, true);
      view.setUint32(entry + 12, noneFreeBefore, true);
    });
    return bytes;
  }

  /** Sets right what the bitmaps contradict; the kernel would carry such an error along for ever. */
  #correctStatistics(): void {
    let allocated = 0;
    this.#bitmaps.forEach((bitmap, i) => {
      const { used, firstFree } = statisticsOf(bitmap.bytes);
      let beyond = 0;
      for (let entry = this.blockCount - i * ENTRIES_PER_BITMAP; entry < ENTRIES_PER_BITMAP; entry++) {
        if (entryAt(bitmap.bytes, entry) > 0) beyond++;
      }
      if (beyond > 0) {
        this.warnings.push(`The space map counts ${beyond} blocks as in use that do not exist (bitmap ${i})`);
      }
      allocated += used - beyond;
      if (bitmap.freeCount !== ENTRIES_PER_BITMAP - used || bitmap.noneFreeBefore > firstFree) {
        this.warnings.push(
          `The space map index says ${bitmap.freeCount} entries of bitmap ${i} are free, none before ` +
            `${bitmap.noneFreeBefore}; the bitmap says ${ENTRIES_PER_BITMAP - used}, the first at ${firstFree}`,
        );
        bitmap.freeCount = ENTRIES_PER_BITMAP - used;
        bitmap.noneFreeBefore = Math.min(bitmap.noneFreeBefore, firstFree);
      }
    });
    if (allocated !== this.#root.allocatedCount) {
      this.warnings.push(
        `The superblock says ${this.#root.allocatedCount} metadata blocks are in use; the space map says ${allocated}`,
      );
      this.#root.allocatedCount = allocated;
    }
  }
}

/** A count of 0 … 3. The two bits are swapped on disk: the lower one is the high bit. */
function entryAt(bitmap: Uint8Array, entry: number): number {
  const raw = ((bitmap[BITMAP_HEADER + Math.floor(entry / 4)] as number) >> (2 * (entry % 4))) & 3;
  return ((raw & 1) << 1) | (raw >> 1);
}

/** Sets a count to 1 (raw pair `10`) or 0. */
function setEntry(bitmap: Uint8Array, entry: number, used: boolean): void {
  const at = BITMAP_HEADER + Math.floor(entry / 4);
  const shift = 2 * (entry % 4);
  bitmap[at] = ((bitmap[at] as number) & ~(3 << shift)) | (used ? 2 << shift : 0);
}

/** Whether none of the four entries in a byte is 0. */
function allInUse(byte: number): boolean {
  return ((byte | (byte >> 1)) & 0x55) === 0x55;
}

function hasSharedEntries(bitmap: Uint8Array): boolean {
  return bitmap.some((byte, i) => i >= BITMAP_HEADER && (byte & (byte >> 1) & 0x55) !== 0);
}

function statisticsOf(bitmap: Uint8Array): { used: number; firstFree: number } {
  let used = 0;
  let firstFree = ENTRIES_PER_BITMAP;
  for (let entry = ENTRIES_PER_BITMAP - 1; entry >= 0; entry--) {
    if (entryAt(bitmap, entry) > 0) used++;
    else firstFree = entry;
  }
  return { used, firstFree };
}

/**
 * The space map, as far as a repair wants to know it: which blocks the last commit calls in use. It is needed where
 * the bitset's tree is broken, to find the blocks that the lost part of it pointed to, and to contradict a part that is older;
 * and believed only where all of it can be read, because a count that is missing would make a live block look free.
 */
import { type BlockReader, explainBlock, readUint64 } from "./check-blocks.ts";
import type { BlockReferences } from "./check-references.ts";

const ENTRIES_PER_BITMAP = 16320;

/** Where the space map is, in which blocks, how many it manages, and what the superblock names beside it. */
export interface SpaceMapPlace {
  blockCount: number;
  bitmapRoot: number;
  referenceCountRoot: number;
  bitsetRoot: number;
}

/**
 * The count of each block, or null where index or a bitmap cannot be read, or is not of this commit. Index and bitmaps have no
 * number of their commit: an older one that a lost write left in its place is as sound as ever. It mostly gives itself
 * away, as it
 *
 *     names the root of the bitset as one of its own blocks
 *     does not call all blocks in use that the superblock and the index name
 *     does not fit what the index says: free entries of each bitmap, those beyond the last block too, and where they begin
 *
 * The space map's own blocks are entered into `references`.
 */
export async function readCounts(
  reader: BlockReader,
  references: BlockReferences,
  { blockCount, bitmapRoot, referenceCountRoot, bitsetRoot }: SpaceMapPlace,
): Promise<Uint8Array | null> {
  const index = await readIndex(reader, { blockCount, bitmapRoot });
  if (references.enter(bitmapRoot) !== null || references.enter(referenceCountRoot) !== null || index === null) {
    return null;
  }
  const counts = new Uint8Array(blockCount);
  for (let bitmap = 0; bitmap < index.length; bitmap++) {
    const { place, free, noneFreeBefore } = index[bitmap] as IndexEntry;
    const block = await reader.read(place);
    if (typeof block === "string" || explainBlock(block, "bitmap block") !== null) return null;
    // Only what is a bitmap: an index of another clone must not lay claim to what the tree leads to.
    if (place === bitsetRoot || references.enter(place) !== null) return null;
    const { inUse, firstFree } = readEntries(block.bytes, counts, bitmap * ENTRIES_PER_BITMAP);
    if (inUse + free !== ENTRIES_PER_BITMAP || noneFreeBefore > firstFree) return null;
  }
  const own = [0, bitmapRoot, referenceCountRoot, bitsetRoot, ...index.map(({ place }) => place)];
  return own.every((block) => counts[block] === 1) ? counts : null;
}

/** What the index block says of a bitmap (format section 4). */
export interface IndexEntry {
  /** The bitmap block. */
  place: number;
  /** Entries with a count of 0, those beyond the last managed block too. */
  free: number;
  /** All entries before this one are in use. A hint: more may be. */
  noneFreeBefore: number;
}

/** The entries of all bitmaps, or null where the index is not sound. */
export async function readIndex(
  reader: BlockReader,
  { blockCount, bitmapRoot }: { blockCount: number; bitmapRoot: number },
): Promise<IndexEntry[] | null> {
  if (!(bitmapRoot > 0 && bitmapRoot < blockCount)) return null;
  const index = await reader.read(bitmapRoot);
  if (typeof index === "string" || explainBlock(index, "index block") !== null) return null;
  return Array.from({ length: Math.ceil(blockCount / ENTRIES_PER_BITMAP) }, (_, bitmap) => ({
    place: readUint64(index.view, 16 + 16 * bitmap),
    free: index.view.getUint32(24 + 16 * bitmap, true),
    noneFreeBefore: index.view.getUint32(28 + 16 * bitmap, true),
  }));
}

/**
 * Puts the 2-bit entries of a bitmap block in place; those beyond the end of `counts` are left out. Returns how many of all are
 * not zero, and which is the first that is, counted from 0; as many as there are where none is.
 */
export function readEntries(
  bytes: Uint8Array,
  counts: Uint8Array,
  first: number,
): { inUse: number; firstFree: number } {
  let inUse = 0;
  let firstFree = ENTRIES_PER_BITMAP;
  for (let entry = 0; entry < ENTRIES_PER_BITMAP; entry++) {
    const pair = ((bytes[16 + Math.floor(entry / 4)] as number) >> (2 * (entry % 4))) & 3;
    if (pair !== 0) inUse++;
    else firstFree = Math.min(firstFree, entry);
    if (first + entry < counts.length) counts[first + entry] = ((pair & 1) << 1) | (pair >> 1);
  }
  return { inUse, firstFree };
}

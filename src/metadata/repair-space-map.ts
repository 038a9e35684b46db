/**
 * The space map, as far as a repair wants to know it: which blocks the last commit calls in use. It is needed only where
 * the bitset's tree is broken, to find the blocks that the lost part of it pointed to; and believed only where all of it
 * can be read, because a count that is missing would make a live block look free.
 */
import { type BlockReader, explainBlock, readUint64 } from "./check-blocks.ts";
import type { BlockReferences } from "./check-references.ts";

const ENTRIES_PER_BITMAP = 16320;

/** Where the space map is, in which blocks, and how many it manages. */
export interface SpaceMapPlace {
  blockCount: number;
  bitmapRoot: number;
  referenceCountRoot: number;
}

/**
 * The count of each block, or null where index or a bitmap cannot be read. Its own blocks are entered into `references`.
 */
export async function readCounts(
  reader: BlockReader,
  references: BlockReferences,
  { blockCount, bitmapRoot, referenceCountRoot }: SpaceMapPlace,
): Promise<Uint8Array | null> {
  const bitmaps = await readIndex(reader, { blockCount, bitmapRoot });
  if (references.enter(bitmapRoot) !== null || references.enter(referenceCountRoot) !== null || bitmaps === null) {
    return null;
  }
  const counts = new Uint8Array(blockCount);
  for (let bitmap = 0; bitmap < bitmaps.length; bitmap++) {
    const number = bitmaps[bitmap] as number;
    const block = await reader.read(number);
    if (typeof block === "string" || explainBlock(block, "bitmap block") !== null) return null;
    // Only what is a bitmap: an index of another clone must not lay claim to what the tree leads to.
    if (references.enter(number) !== null) return null;
    readEntries(block.bytes, counts, bitmap * ENTRIES_PER_BITMAP);
  }
  return counts;
}

/** Block numbers of the bitmaps, or null where the index is not sound. */
export async function readIndex(
  reader: BlockReader,
  { blockCount, bitmapRoot }: { blockCount: number; bitmapRoot: number },
): Promise<number[] | null> {
  if (!(bitmapRoot > 0 && bitmapRoot < blockCount)) return null;
  const index = await reader.read(bitmapRoot);
  if (typeof index === "string" || explainBlock(index, "index block") !== null) return null;
  return Array.from({ length: Math.ceil(blockCount / ENTRIES_PER_BITMAP) }, (_, bitmap) =>
    readUint64(index.view, 16 + 16 * bitmap),
  );
}

/** Puts the 2-bit entries of a bitmap block in place; those beyond the end of `counts` are left out. */
export function readEntries(bytes: Uint8Array, counts: Uint8Array, first: number): void {
  const end = Math.min(ENTRIES_PER_BITMAP, counts.length - first);
  for (let entry = 0; entry < end; entry++) {
    const pair = ((bytes[16 + Math.floor(entry / 4)] as number) >> (2 * (entry % 4))) & 3;
    counts[first + entry] = ((pair & 1) << 1) | (pair >> 1);
  }
}

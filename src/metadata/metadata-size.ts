/**
 * How many metadata blocks a clone needs.
 *
 *     in use after any commit   3 + A + N + B      superblock, index, reference-count leaf; A array blocks,
 *                                                  N btree nodes, B bitmap blocks
 *     free for a commit         1 + A + N + B      the worst transaction shadows everything but the first and third
 *     never out of space        4 + 2 (A + N + B)
 *
 * The bound is tight, and below it even a kernel can crash (a clone of 16 regions on 8 blocks), so nothing smaller is ever
 * created.
 */
import assert from "node:assert";
import { bitsetBlockCountOf } from "../persistent-data/bitset.ts";
import { maxEntriesOf } from "../persistent-data/btree-node.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";
import { bitmapCountOf, MAX_METADATA_BLOCKS } from "../persistent-data/space-map.ts";

/** Blocks below which nothing can be metadata (a clone of up to 32576 regions right after its format). */
export const MIN_METADATA_BLOCKS = 6;
/** Slack on top of the minimum: the larger of this many blocks (1 MiB) and a quarter. */
const SLACK_BLOCKS = 256;

/** Bytes that `blockCount` metadata blocks take. */
export function metadataByteLength(blockCount: number): number {
  return blockCount * BLOCK_SIZE;
}

/**
 * The smallest number of blocks with which a clone of `regionCount` regions can never run out of metadata space.
 * `nodeCount` is that of its bitset's btree, where it is known; the default is what the kernel's growth makes.
 */
export function minimumBlockCount(
  regionCount: number,
  nodeCount = bitsetNodeCount(bitsetBlockCountOf(regionCount)),
): number {
  const fixed = bitsetBlockCountOf(regionCount) + nodeCount;
  // The bitmaps describe themselves too, so their number follows from the result.
  for (let bitmaps = 1; ; bitmaps++) {
    const blocks = 2 * (fixed + bitmaps) + 4;
    if (bitmapCountOf(blocks) <= bitmaps) return blocks;
  }
}

/** The number of blocks to create: the minimum and a quarter, at least 1 MiB more, at most what the format can use. */
export function recommendedBlockCount(regionCount: number): number {
  const minimum = minimumBlockCount(regionCount);
  return Math.min(MAX_METADATA_BLOCKS, minimum + Math.max(SLACK_BLOCKS, Math.ceil(minimum / 4)));
}

/**
 * Nodes of the btree that grows when keys 0 … `entryCount` - 1 are inserted in order, as `WritableBTree.insert` and the
 * kernel do: a new entry always goes to the last leaf, so the last two leaves are all that has to be followed.
 */
export function bitsetNodeCount(entryCount: number): number {
  const capacity = maxEntriesOf(8);
  if (entryCount <= capacity) return 1;
  let leaves = 2;
  let previous = capacity / 2;
  let last = capacity / 2;
  let internal = 1;
  /** Children of the rightmost internal node that has leaves below it. */
  let children = 2;
  for (let entry = capacity; entry < entryCount; entry++) {
    if (children === capacity) {
      // Split on the way down as soon as it is full: the root into a root and two; later ones are never reached.
      assert(internal === 1, "more array blocks than 2^31 regions have");
      internal = 3;
      children = capacity / 2;
    }
    if (last === capacity) {
      if (capacity - previous >= 8) {
        const total = previous + last;
        previous = Math.floor(total / 2);
        last = total - previous;
      } else {
        leaves++;
        children++;
        previous = capacity / 2;
        last = capacity / 2;
      }
    }
    last++;
  }
  return leaves + internal;
}

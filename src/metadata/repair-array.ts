/**
 * Array blocks under a repair's eyes (format section 6): which are sound and what bits they hold.
 *
 *     0 csum  4 max_entries  8 nr_entries  12 value_size  16 blocknr  24 … words; region r is bit r mod 64 of word r / 64
 */
import type { Geometry, RegionRange } from "../base/geometry.ts";
import { type Block, explainBlock } from "./check-blocks.ts";

const WORDS_PER_BLOCK = 509;
const HEADER_BYTES = 24;
/** Regions that an array block tells of. */
export const REGIONS_PER_BLOCK = 64 * WORDS_PER_BLOCK;

/** Array blocks that a clone has. */
export function arrayBlockCount({ regionCount }: Geometry): number {
  return Math.ceil(regionCount / REGIONS_PER_BLOCK);
}

/** Words that the block under `key` must say it holds: all it has room for, but in the last one. */
export function wordsUnder(key: number, { regionCount }: Geometry): number {
  return Math.min(Math.ceil(regionCount / 64) - key * WORDS_PER_BLOCK, WORDS_PER_BLOCK);
}

/** The regions that the blocks under the keys `low` … `high` - 1 tell of. */
export function regionsUnder(low: number, high: number, { regionCount }: Geometry): RegionRange {
  return {
    start: Math.min(low * REGIONS_PER_BLOCK, regionCount),
    end: Math.min(high * REGIONS_PER_BLOCK, regionCount),
  };
}

/** How many words a sound array block at its own place says it holds, or 0 where the block is none. */
export function wordsIn(block: Block): number {
  if (explainBlock(block, "array block") !== null) return 0;
  const { view } = block;
  const words = view.getUint32(8, true);
  const isShaped = view.getUint32(4, true) === WORDS_PER_BLOCK && view.getUint32(12, true) === 8;
  return isShaped && words <= WORDS_PER_BLOCK ? words : 0;
}

/** The first `words` words of an array block, 32 bits at a time. Not a copy. */
export function bitsOf({ bytes }: Block, words: number): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset + HEADER_BYTES, 2 * words);
}

/** Zeroes the bits from `regionCount` on, in the words of the last array block. */
export function clearBeyond(bits: Uint32Array, { regionCount }: Geometry, key: number): void {
  const regions = regionCount - key * REGIONS_PER_BLOCK;
  for (let word = Math.floor(regions / 32); word < bits.length; word++) {
    const kept = Math.max(0, regions - word * 32);
    bits[word] = kept === 0 ? 0 : (bits[word] as number) & ((1 << kept) - 1);
  }
}

/** Whether every bit of `a` is one of `b`. */
export function isSubset(a: Uint32Array, b: Uint32Array): boolean {
  for (let i = 0; i < a.length; i++) if (((a[i] as number) & ~(b[i] as number)) !== 0) return false;
  return true;
}

/** Set bits. */
export function countBits(bits: Uint32Array): number {
  let count = 0;
  for (const word of bits) {
    if (word === 0) continue;
    let sum = word - ((word >>> 1) & 0x55555555);
    sum = (sum & 0x33333333) + ((sum >>> 2) & 0x33333333);
    count += Math.imul((sum + (sum >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
  }
  return count;
}

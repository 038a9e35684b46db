/**
 * An array of 64-bit words in blocks of 509, found through a btree whose keys are 0, 1, 2, … without gaps.
 *
 *     0 csum   4 max_entries   8 nr_entries   12 value_size   16 blocknr   24 words, 8 bytes each
 *
 * Word w is in the block under key floor(w / 509), at position w mod 509. All blocks are full but the last. Words are
 * kept as bytes throughout: little-endian packing makes them one plain bitmap. (Kernel: `dm-array.c`.)
 */
import { MetadataError } from "../base/errors.ts";
import { BLOCK_SIZE, viewOf } from "./checksum.ts";

/** Bytes before the first word of an array block. */
export const ARRAY_HEADER_SIZE = 24;
/** Words per array block. */
export const WORDS_PER_ARRAY_BLOCK = Math.floor((BLOCK_SIZE - ARRAY_HEADER_SIZE) / 8);

/** Array blocks needed for `wordCount` words. */
export function arrayBlockCountOf(wordCount: number): number {
  return Math.ceil(wordCount / WORDS_PER_ARRAY_BLOCK);
}

/** Words in the block under `key` of an array of `wordCount` words. */
export function wordsInArrayBlock(key: number, wordCount: number): number {
  return Math.min(WORDS_PER_ARRAY_BLOCK, wordCount - key * WORDS_PER_ARRAY_BLOCK);
}

/** A new array block of zero words; block number and checksum are filled in on writing. */
export function createArrayBlock(entryCount: number): Uint8Array {
  const bytes = new Uint8Array(BLOCK_SIZE);
  const view = viewOf(bytes);
  view.setUint32(4, WORDS_PER_ARRAY_BLOCK, true);
  view.setUint32(8, entryCount, true);
  view.setUint32(12, 8, true);
  return bytes;
}

/** The words of an array block, as bytes. */
export function arrayWords(bytes: Uint8Array, entryCount: number): Uint8Array {
  return bytes.subarray(ARRAY_HEADER_SIZE, ARRAY_HEADER_SIZE + entryCount * 8);
}

/**
 * Checks that a verified array block has the shape that its key asks for.
 *
 * @throws {MetadataError} `block` and `name` (the device's) are for the message
 */
export function validateArrayBlock(bytes: Uint8Array, entryCount: number, block: number, name: string): void {
  const view = viewOf(bytes);
  const refuse = (what: string, actual: number, expected: number): never => {
    throw new MetadataError(
      `Array block ${block} of "${name}" is damaged: ${what} is ${actual} instead of ${expected}`,
      {
        block,
      },
    );
  };
  const maxEntries = view.getUint32(4, true);
  if (maxEntries !== WORDS_PER_ARRAY_BLOCK) refuse("max_entries", maxEntries, WORDS_PER_ARRAY_BLOCK);
  const valueSize = view.getUint32(12, true);
  if (valueSize !== 8) refuse("value_size", valueSize, 8);
  const entries = view.getUint32(8, true);
  if (entries !== entryCount) refuse("nr_entries", entries, entryCount);
}

/**
 * A bitset on an array of 64-bit words: bit b is bit b mod 64 of word floor(b / 64).
 *
 * Bits are only ever set. A change goes through the array blocks in ascending order, and through each once: its words are
 * read, the bits ORed in, the result written elsewhere, and the btree told. That streams through the block manager's
 * bounded buffer, so that setting 2^31 bits takes no more memory than setting one. (Kernel: `dm-bitset.c`.)
 */

import { MetadataError } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import {
  arrayBlockCountOf,
  arrayWords,
  createArrayBlock,
  validateArrayBlock,
  WORDS_PER_ARRAY_BLOCK,
  wordsInArrayBlock,
} from "./array.ts";
import type { BlockManager } from "./block-manager.ts";
import { BTree, WritableBTree } from "./btree.ts";
import { BLOCK_SIZE } from "./checksum.ts";
import type { BlockSource, TransactionManager } from "./transaction-manager.ts";

/** Bits per array block. */
export const BITS_PER_ARRAY_BLOCK = WORDS_PER_ARRAY_BLOCK * 64;
/** Array blocks read ahead while bits are set: 1 MiB. */
const BATCH_BLOCKS = 256;

/** 64-bit words that hold `bitCount` bits. */
export function wordCountOf(bitCount: number): number {
  return Math.ceil(bitCount / 64);
}

/** Array blocks that hold `bitCount` bits. */
export function bitsetBlockCountOf(bitCount: number): number {
  return arrayBlockCountOf(wordCountOf(bitCount));
}

/** The blocks of a bitset, as its btree tells. */
export interface BitsetLayout {
  /** Btree nodes, parents first. */
  nodes: number[];
  /** Array blocks in the order of their keys. */
  arrayBlocks: Uint32Array;
}

/**
 * Walks the btree of a bitset of `bitCount` bits without reading the array blocks.
 *
 * @throws {MetadataError} where the tree is damaged, the keys are not exactly 0, 1, 2, …, or a block is named twice
 */
export async function readBitsetLayout(source: BlockSource, root: number, bitCount: number): Promise<BitsetLayout> {
  const { name } = source;
  const count = bitsetBlockCountOf(bitCount);
  const arrayBlocks = new Uint32Array(count);
  const nodes: number[] = [];
  const seen = new Uint8Array(source.blockCount);
  let nextKey = 0;
  await new BTree(source, { valueSize: 8 }).walk(root, {
    node: (block) => {
      nodes.push(block);
      seen[block] = 1;
    },
    entry: (key, block, leaf) => {
      const refuse = (why: string): never => {
        throw new MetadataError(`Btree node ${leaf} of "${name}" is damaged: ${why}`, { block: leaf });
      };
      if (key !== nextKey || key >= count)
        refuse(`it has key ${key} where the bitset of ${count} array blocks has none`);
      if (block === 0 || block >= source.blockCount) refuse(`it names block ${block} as array block ${key}`);
      if (seen[block] === 1) refuse(`it names block ${block} as array block ${key}, which has another use`);
      seen[block] = 1;
      arrayBlocks[nextKey++] = block;
    },
  });
  if (nextKey !== count) {
    throw new MetadataError(`The bitset of "${name}" ends after ${nextKey} of ${count} array blocks`, { block: root });
  }
  return { nodes, arrayBlocks };
}

/**
 * Reads all words of a bitset, in few and large requests. `visit` gets them block by block in any order, as bytes that are
 * 8-byte aligned and valid only during the call, with the index of the first bit they hold.
 *
 * @throws {MetadataError | DeviceError}
 */
export async function readBitsetWords(
  blocks: BlockManager,
  { arrayBlocks }: BitsetLayout,
  bitCount: number,
  visit: (firstBit: number, words: Uint8Array) => void,
  signal?: AbortSignal,
): Promise<void> {
  const wordCount = wordCountOf(bitCount);
  await blocks.readMany(
    arrayBlocks,
    "array",
    (key, bytes, block) => {
      const entries = wordsInArrayBlock(key, wordCount);
      validateArrayBlock(bytes, entries, block, blocks.device.name);
      visit(key * BITS_PER_ARRAY_BLOCK, arrayWords(bytes, entries));
    },
    signal,
  );
}

/**
 * Creates a bitset of `bitCount` bits as `dm_bitset_empty` and `dm_bitset_resize` do, and returns its root. `fill` is given
 * the words of each array block, ascending, as zeroed bytes, with the index of the first bit they hold; what it puts there
 * must be zero from `bitCount` on.
 *
 * @throws {DeviceError}
 */
export async function createBitset(
  transaction: TransactionManager,
  bitCount: number,
  fill: (firstBit: number, words: Uint8Array) => void,
): Promise<number> {
  const tree = new WritableBTree(transaction);
  const wordCount = wordCountOf(bitCount);
  let root = tree.createEmpty();
  for (let key = 0; key < arrayBlockCountOf(wordCount); key++) {
    const entries = wordsInArrayBlock(key, wordCount);
    const bytes = createArrayBlock(entries);
    fill(key * BITS_PER_ARRAY_BLOCK, arrayWords(bytes, entries));
    const block = transaction.spaceMap.allocate();
    await transaction.blocks.write(block, "array", bytes);
    root = await tree.insert(root, key, block);
  }
  return root;
}

/**
 * Sets the bits of `ranges` (sorted, disjoint, within `bitCount`) and returns the new root. Other bits stay as they are on
 * disk. At most once per transaction.
 *
 * @throws {MetadataError | DeviceError | CloneError} the transaction is then to be thrown away
 */
export async function setBits(
  transaction: TransactionManager,
  root: number,
  bitCount: number,
  ranges: readonly RegionRange[],
): Promise<number> {
  const tree = new WritableBTree(transaction);
  const wordCount = wordCountOf(bitCount);
  const { blocks } = transaction;
  let newRoot = root;
  let range = 0;
  let contents = new Uint8Array(0); // the first batch is the largest
  for (const keys of batchesOfKeys(ranges)) {
    const olds = new Uint32Array(keys.length);
    for (let i = 0; i < keys.length; i++) {
      const block = await tree.lookup(newRoot, keys[i] as number);
      if (block === undefined || block === 0 || block >= blocks.blockCount) {
        throw new MetadataError(`The bitset of "${transaction.name}" has no array block ${keys[i]}`, {
          block: newRoot,
        });
      }
      olds[i] = block;
    }
    if (contents.length === 0) contents = new Uint8Array(keys.length * BLOCK_SIZE);
    await blocks.readMany(olds, "array", (i, bytes, block) => {
      validateArrayBlock(bytes, wordsInArrayBlock(keys[i] as number, wordCount), block, transaction.name);
      contents.set(bytes, i * BLOCK_SIZE);
    });

    for (let i = 0; i < keys.length; i++) {
      const key = keys[i] as number;
      const bytes = contents.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
      const block = transaction.relocate(olds[i] as number);
      newRoot = await tree.insert(newRoot, key, block);

      const words = arrayWords(bytes, wordsInArrayBlock(key, wordCount));
      const first = key * BITS_PER_ARRAY_BLOCK;
      const end = first + words.length * 8;
      for (; range < ranges.length; range++) {
        const { start, end: rangeEnd } = ranges[range] as RegionRange;
        if (start >= first + BITS_PER_ARRAY_BLOCK) break;
        setBitRange(words, Math.max(start, first) - first, Math.min(rangeEnd, end) - first);
        if (rangeEnd > first + BITS_PER_ARRAY_BLOCK) break; // goes on in the next block
      }
      await blocks.write(block, "array", bytes);
    }
  }
  return newRoot;
}

/** The keys of the array blocks that sorted ranges touch, ascending, some at a time. */
function* batchesOfKeys(ranges: readonly RegionRange[]): Generator<number[]> {
  let batch: number[] = [];
  let next = 0;
  for (const { start, end } of ranges) {
    const last = Math.floor((end - 1) / BITS_PER_ARRAY_BLOCK);
    for (let key = Math.max(next, Math.floor(start / BITS_PER_ARRAY_BLOCK)); key <= last; key++) {
      batch.push(key);
      next = key + 1;
      if (batch.length === BATCH_BLOCKS) {
        yield batch;
        batch = [];
      }
    }
  }
  if (batch.length > 0) yield batch;
}

/** Sets bits `start` … `end` - 1 of a bitmap of bytes. (Within one array block, so 32-bit operators are safe.) */
function setBitRange(bytes: Uint8Array, start: number, end: number): void {
  const firstByte = start >> 3;
  const lastByte = (end - 1) >> 3;
  const head = (0xff << (start & 7)) & 0xff;
  const tail = 0xff >> (7 - ((end - 1) & 7));
  if (firstByte === lastByte) {
    bytes[firstByte] = (bytes[firstByte] as number) | (head & tail);
    return;
  }
  bytes[firstByte] = (bytes[firstByte] as number) | head;
  bytes.fill(0xff, firstByte + 1, lastByte);
  bytes[lastByte] = (bytes[lastByte] as number) | tail;
}

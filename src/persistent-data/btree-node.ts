/**
 * One node of a btree, and the moves of entries between nodes that the kernel makes.
 *
 *     0  csum      4  flags (1 internal, 2 leaf)     8  blocknr
 *     16 nr_entries   20 max_entries   24 value_size   28 padding
 *     32                     keys, u64 each, room for max_entries
 *     32 + 8 * max_entries   values, value_size each
 *
 * Entries behind nr_entries keep whatever was there before. They are covered by the checksum, so byte-identical output
 * needs the kernel's very moves (`dm-btree.c`: `copy_entries`, `move_entries`, `redistribute2`, `redistribute3`), not
 * merely the same result.
 */
import assert from "node:assert";
import { MetadataError } from "../base/errors.ts";
import { BLOCK_SIZE, readU64, viewOf, writeU64 } from "./checksum.ts";

/** Bytes of a value: 8 = block number (and every internal node), 4 = reference count. */
export type ValueSize = 4 | 8;

const INTERNAL_NODE = 1;
const LEAF_NODE = 2;
const HEADER_SIZE = 32;
const KEY_SIZE = 8;

/** Entries a node has room for (`calc_max_entries`): 252 for 8-byte values, 336 for 4-byte ones. */
export function maxEntriesOf(valueSize: ValueSize): number {
  return 3 * Math.floor(Math.floor((BLOCK_SIZE - HEADER_SIZE) / (KEY_SIZE + valueSize)) / 3);
}

/** A view of a node's bytes; it owns nothing. Indexes are of entries. */
export class BTreeNode {
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = viewOf(bytes);
  }

  /** Turns zeroed bytes into an empty node. */
  static format(bytes: Uint8Array, { leaf, valueSize }: { leaf: boolean; valueSize: ValueSize }): BTreeNode {
    const node = new BTreeNode(bytes);
    node.#setHeader(leaf ? LEAF_NODE : INTERNAL_NODE, valueSize);
    return node;
  }

  get isLeaf(): boolean {
    return this.#view.getUint32(4, true) === LEAF_NODE;
  }

  get entryCount(): number {
    return this.#view.getUint32(16, true);
  }

  set entryCount(count: number) {
    this.#view.setUint32(16, count, true);
  }

  get maxEntries(): number {
    return this.#view.getUint32(20, true);
  }

  get valueSize(): number {
    return this.#view.getUint32(24, true);
  }

  key(index: number): number {
    return readU64(this.#view, HEADER_SIZE + index * KEY_SIZE);
  }

  setKey(index: number, key: number): void {
    writeU64(this.#view, HEADER_SIZE + index * KEY_SIZE, key);
  }

  /** Value of an entry, of either size. */
  value(index: number): number {
    const offset = this.#valueOffset(index);
    return this.valueSize === 8 ? readU64(this.#view, offset) : this.#view.getUint32(offset, true);
  }

  setValue(index: number, value: number): void {
    const offset = this.#valueOffset(index);
    if (this.valueSize === 8) writeU64(this.#view, offset, value);
    else this.#view.setUint32(offset, value, true);
  }

  /** Index of the last key that is not above `key`, or -1 (`lower_bound`). */
  lowerBound(key: number): number {
    let low = -1;
    let high = this.entryCount;
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if (this.key(middle) <= key) low = middle;
      else high = middle;
    }
    return low;
  }

  /** Puts an entry at `index`, moving those behind up by one (`insert_at`). The node must not be full. */
  insertAt(index: number, key: number, value: number): void {
    const count = this.entryCount;
    assert(count < this.maxEntries && index <= count, `no room for entry ${index} beside ${count}`);
    copyEntries(this, index + 1, this, index, count - index);
    this.setKey(index, key);
    this.setValue(index, value);
    this.entryCount = count + 1;
  }

  /** Makes this an internal node with two children; entries behind them stay as they are (`btree_split_beneath`). */
  becomeParentOf(left: { key: number; block: number }, right: { key: number; block: number }): void {
    this.#setHeader(INTERNAL_NODE, 8);
    this.entryCount = 2;
    [left, right].forEach(({ key, block }, i) => {
      this.setKey(i, key);
      this.setValue(i, block);
    });
  }

  /**
   * Checks what the format promises of a node, before anything in it is used.
   *
   * @throws {MetadataError} `block` and `name` (the device's) are for the message
   */
  validate(leafValueSize: ValueSize, block: number, name: string): void {
    const refuse = (why: string): never => {
      throw new MetadataError(`Btree node ${block} of "${name}" is damaged: ${why}`, { block });
    };
    const flags = this.#view.getUint32(4, true);
    if (flags !== INTERNAL_NODE && flags !== LEAF_NODE) refuse(`its flags are ${flags}`);
    const valueSize = flags === LEAF_NODE ? leafValueSize : 8;
    if (this.valueSize !== valueSize) refuse(`its values have ${this.valueSize} bytes instead of ${valueSize}`);
    const room = maxEntriesOf(valueSize);
    if (this.maxEntries !== room) refuse(`it has room for ${this.maxEntries} entries instead of ${room}`);
    if (this.entryCount > room) refuse(`it has ${this.entryCount} entries and room for ${room}`);
    if (flags === INTERNAL_NODE && this.entryCount === 0) refuse("it is internal and has no children");
    for (let i = 1; i < this.entryCount; i++) {
      if (this.key(i) <= this.key(i - 1)) refuse(`key ${this.key(i)} follows ${this.key(i - 1)}`);
    }
  }

  /** Byte offset of entry `index`'s value. */
  #valueOffset(index: number): number {
    return HEADER_SIZE + this.maxEntries * KEY_SIZE + index * this.valueSize;
  }

  #setHeader(flags: number, valueSize: ValueSize): void {
    this.#view.setUint32(4, flags, true);
    this.#view.setUint32(20, maxEntriesOf(valueSize), true);
    this.#view.setUint32(24, valueSize, true);
  }

  /** The bytes of `count` keys and of `count` values from entry `index` on. */
  entryBytes(index: number, count: number): [keys: Uint8Array, values: Uint8Array] {
    assert(
      index >= 0 && count >= 0 && index + count <= this.maxEntries,
      `entries ${index} + ${count} outside the node`,
    );
    const values = this.#valueOffset(index);
    return [
      this.bytes.subarray(HEADER_SIZE + index * KEY_SIZE, HEADER_SIZE + (index + count) * KEY_SIZE),
      this.bytes.subarray(values, values + count * this.valueSize),
    ];
  }
}

/** Copies entries, also within one node; entry counts stay as they are (`copy_entries`, `move_entries`). */
export function copyEntries(to: BTreeNode, toIndex: number, from: BTreeNode, fromIndex: number, count: number): void {
  const [keys, values] = from.entryBytes(fromIndex, count);
  const [toKeys, toValues] = to.entryBytes(toIndex, count);
  toKeys.set(keys); // set() copes with overlapping ranges of one buffer
  toValues.set(values);
}

/** Evens out two neighbours: left gets floor(total / 2) (`redistribute2`). */
export function redistribute2(left: BTreeNode, right: BTreeNode): void {
  const leftCount = left.entryCount;
  const rightCount = right.entryCount;
  const targetLeft = Math.floor((leftCount + rightCount) / 2);
  if (leftCount < targetLeft) {
    const delta = targetLeft - leftCount;
    copyEntries(left, leftCount, right, 0, delta);
    copyEntries(right, 0, right, delta, rightCount - delta);
  } else if (leftCount > targetLeft) {
    const delta = leftCount - targetLeft;
    copyEntries(right, delta, right, 0, rightCount);
    copyEntries(right, 0, left, targetLeft, delta);
  }
  left.entryCount = targetLeft;
  right.entryCount = leftCount + rightCount - targetLeft;
}

/**
 * Spreads two neighbours over three, `center` being empty (`redistribute3`). Both are nearly full, so that a third of what
 * they hold together is less than either, and less than two thirds; the kernel's other two cases cannot occur.
 */
export function redistribute3(left: BTreeNode, center: BTreeNode, right: BTreeNode): void {
  const leftCount = left.entryCount;
  const rightCount = right.entryCount;
  const total = leftCount + rightCount;
  const targetLeft = Math.floor(total / 3);
  const targetCenter = Math.floor((total - targetLeft) / 2);
  const targetRight = total - targetLeft - targetCenter;
  const toCenter = leftCount - targetLeft;
  assert(center.entryCount === 0 && toCenter >= 0 && toCenter < targetCenter, `${leftCount} and ${rightCount} entries`);

  copyEntries(center, 0, left, targetLeft, toCenter);
  copyEntries(center, toCenter, right, 0, targetCenter - toCenter);
  copyEntries(right, 0, right, rightCount - targetRight, targetRight);
  left.entryCount = targetLeft;
  center.entryCount = targetCenter;
  right.entryCount = targetRight;
}

/**
 * A copy-on-write btree from 64-bit keys to block numbers (or 32-bit counts).
 *
 * Inserting shadows every node on the way down. A node without room is dealt with on the way, before the step below it,
 * so that its parent always has room for one more child:
 *
 *     the root:      two new children take its entries, and it becomes their parent, keeping its block
 *     any other:     even out with the left neighbour if that has 8 entries free, else with the right one,
 *                    else split in two (first or last child, or a parent of two), else make two neighbours three
 *
 * A full leaf is left alone when the key is there already; a full internal node never is. Byte-identical images need
 * exactly these rules, and each allocation where the kernel makes it (`dm-btree.c`: `btree_insert_raw`,
 * `rebalance_or_split`).
 */
import assert from "node:assert";
import { MetadataError } from "../base/errors.ts";
import { BTreeNode, copyEntries, redistribute2, redistribute3, type ValueSize } from "./btree-node.ts";
import type { BlockSource, OpenBlock, TransactionManager } from "./transaction-manager.ts";

/** Free entries that make evening out worth while (`SPACE_THRESHOLD`). */
const SPACE_THRESHOLD = 8;
/** No tree of 2^22 blocks with at least 126 entries per node comes near this depth. */
const MAX_DEPTH = 8;

interface OpenNode extends OpenBlock {
  node: BTreeNode;
}

/** What a walk reports. */
export interface BTreeVisitor {
  /** Each entry of each leaf, in ascending order of keys. */
  entry?(key: number, value: number, leaf: number): void;
  /** Each node, parents first. */
  node?(block: number, depth: number): void;
}

/** Reads a btree; the root is handed to each call, since every change moves it. */
export class BTree {
  readonly #source: BlockSource;
  readonly #valueSize: ValueSize;
  /** Buffers found to hold valid nodes: each is checked once, not on every step through it. */
  readonly #valid = new WeakSet<Uint8Array>();

  /** `valueSize` is that of the leaves: 8 for block numbers, 4 for counts. */
  constructor(source: BlockSource, { valueSize }: { valueSize: ValueSize }) {
    this.#source = source;
    this.#valueSize = valueSize;
  }

  /** The value stored under `key`, or undefined. @throws {MetadataError} where a node on the way is damaged. */
  async lookup(root: number, key: number): Promise<number | undefined> {
    let block = root;
    for (let depth = 0; depth < MAX_DEPTH; depth++) {
      const node = await this.readNode(block);
      const index = node.lowerBound(key);
      if (index < 0) return undefined;
      if (node.isLeaf) return node.key(index) === key ? node.value(index) : undefined;
      block = this.childOf(node, index, block);
    }
    throw this.#tooDeep(block);
  }

  /**
   * Visits the whole tree, and checks what only the whole shows: that keys lie within their parent's range, all leaves at
   * one depth, and no node is reached twice.
   *
   * @throws {MetadataError} where it is damaged
   */
  async walk(root: number, visitor: BTreeVisitor): Promise<void> {
    const visited = new Set<number>();
    let leafDepth: number | undefined;
    const visit = async (block: number, depth: number, low: number, high: number): Promise<void> => {
      if (visited.has(block)) throw this.#damaged(block, "it is reached twice");
      visited.add(block);
      const node = await this.readNode(block);
      visitor.node?.(block, depth);
      const count = node.entryCount;
      if (count > 0 && (node.key(0) < low || node.key(count - 1) >= high)) {
        throw this.#damaged(block, `its keys are not within ${low} … ${high}`);
      }
      if (node.isLeaf) {
        leafDepth ??= depth;
        if (depth !== leafDepth)
          throw this.#damaged(block, `it is a leaf at depth ${depth}, others are at ${leafDepth}`);
        for (let i = 0; i < count; i++) visitor.entry?.(node.key(i), node.value(i), block);
        return;
      }
      if (depth + 1 === MAX_DEPTH) throw this.#tooDeep(block);
      for (let i = 0; i < count; i++) {
        const end = i + 1 < count ? node.key(i + 1) : high;
        await visit(this.childOf(node, i, block), depth + 1, node.key(i), end);
      }
    };
    await visit(root, 0, 0, Number.POSITIVE_INFINITY);
  }

  /** A validated node, to be read only. */
  async readNode(block: number): Promise<BTreeNode> {
    const node = new BTreeNode(await this.#source.read(block, "node"));
    if (!this.#valid.has(node.bytes)) {
      node.validate(this.#valueSize, block, this.#source.name);
      this.#valid.add(node.bytes);
    }
    return node;
  }

  /** The block number of child `index`, within the device. */
  childOf(node: BTreeNode, index: number, block: number): number {
    const child = node.value(index);
    if (child === 0 || child >= this.#source.blockCount)
      throw this.#damaged(block, `it names block ${child} as a child`);
    return child;
  }

  #tooDeep(block: number): MetadataError {
    return this.#damaged(block, `it lies deeper than ${MAX_DEPTH} levels`);
  }

  #damaged(block: number, why: string): MetadataError {
    return new MetadataError(`Btree node ${block} of "${this.#source.name}" is damaged: ${why}`, { block });
  }
}

/** Changes a btree of block numbers within a transaction. */
export class WritableBTree extends BTree {
  readonly #transaction: TransactionManager;

  constructor(transaction: TransactionManager) {
    super(transaction, { valueSize: 8 });
    this.#transaction = transaction;
  }

  /** An empty tree: one leaf. Returns its root. */
  createEmpty(): number {
    const { block, bytes } = this.#transaction.newNode();
    BTreeNode.format(bytes, { leaf: true, valueSize: 8 });
    return block;
  }

  /**
   * Stores `value` under `key`, replacing what is there, and returns the new root. Freeing a block that a replaced value
   * named is the caller's part.
   */
  async insert(root: number, key: number, value: number): Promise<number> {
    let current = await this.#shadow(root);
    const newRoot = current.block;
    if (!hasRoom(current.node, key)) this.#splitBeneath(current.node);

    for (let depth = 1; !current.node.isLeaf; depth++) {
      assert(depth < MAX_DEPTH);
      const parent = current;
      let index = parent.node.lowerBound(key);
      if (index < 0) {
        parent.node.setKey(0, key);
        index = 0;
      }
      current = await this.#shadow(this.childOf(parent.node, index, parent.block));
      parent.node.setValue(index, current.block);
      if (!hasRoom(current.node, key)) current = await this.#makeRoom(parent.node, index, current, key);
    }

    const { node } = current;
    const index = node.lowerBound(key);
    if (index >= 0 && node.key(index) === key) node.setValue(index, value);
    else node.insertAt(index + 1, key, value);
    return newRoot;
  }

  /** `btree_split_beneath`: the root keeps its block, and stale entries behind its two children. */
  #splitBeneath(root: BTreeNode): void {
    const count = root.entryCount;
    const leftCount = Math.floor(count / 2);
    const left = this.#newSibling(root);
    const right = this.#newSibling(root);
    copyInto(left.node, root, 0, leftCount);
    copyInto(right.node, root, leftCount, count - leftCount);
    root.becomeParentOf({ key: left.node.key(0), block: left.block }, { key: right.node.key(0), block: right.block });
  }

  /** `rebalance_or_split`. Returns the node that `key` now belongs to. */
  async #makeRoom(parent: BTreeNode, index: number, current: OpenNode, key: number): Promise<OpenNode> {
    const siblings = parent.entryCount;
    if (index > 0 && (await this.#freeEntries(parent, index - 1)) >= SPACE_THRESHOLD) {
      return this.#evenOut(parent, index, await this.#shadowChild(parent, index - 1), current, key);
    }
    if (index < siblings - 1 && (await this.#freeEntries(parent, index + 1)) >= SPACE_THRESHOLD) {
      return this.#evenOut(parent, index + 1, current, await this.#shadowChild(parent, index + 1), key);
    }
    if (siblings <= 2 || index === 0 || index + 1 === siblings) return this.#splitInTwo(parent, index, current, key);
    return this.#twoIntoThree(parent, index, await this.#shadowChild(parent, index - 1), current, key);
  }

  /** `rebalance_left` and `rebalance_right`; `rightIndex` is where `right` is in the parent. */
  #evenOut(parent: BTreeNode, rightIndex: number, left: OpenNode, right: OpenNode, key: number): OpenNode {
    redistribute2(left.node, right.node);
    parent.setKey(rightIndex, right.node.key(0));
    return key < right.node.key(0) ? left : right;
  }

  /** `split_one_into_two`. */
  #splitInTwo(parent: BTreeNode, index: number, left: OpenNode, key: number): OpenNode {
    const right = this.#newSibling(left.node);
    redistribute2(left.node, right.node);
    parent.insertAt(index + 1, right.node.key(0), right.block);
    return key < right.node.key(0) ? left : right;
  }

  /** `split_two_into_three`; `rightIndex` is where `right` is in the parent before. */
  #twoIntoThree(parent: BTreeNode, rightIndex: number, left: OpenNode, right: OpenNode, key: number): OpenNode {
    const middle = this.#newSibling(left.node);
    redistribute3(left.node, middle.node, right.node);
    parent.setKey(rightIndex, right.node.key(0));
    parent.insertAt(rightIndex, middle.node.key(0), middle.block);
    if (key < middle.node.key(0)) return left;
    return key < right.node.key(0) ? middle : right;
  }

  async #shadow(block: number): Promise<OpenNode> {
    await this.readNode(block); // validates before anything is copied
    const shadow = await this.#transaction.shadowNode(block);
    return { ...shadow, node: new BTreeNode(shadow.bytes) };
  }

  async #shadowChild(parent: BTreeNode, index: number): Promise<OpenNode> {
    const child = await this.#shadow(parent.value(index));
    parent.setValue(index, child.block);
    return child;
  }

  #newSibling(of: BTreeNode): OpenNode {
    const created = this.#transaction.newNode();
    return { ...created, node: BTreeNode.format(created.bytes, { leaf: of.isLeaf, valueSize: 8 }) };
  }

  async #freeEntries(parent: BTreeNode, index: number): Promise<number> {
    const sibling = await this.readNode(parent.value(index));
    return sibling.maxEntries - sibling.entryCount;
  }
}

function hasRoom(node: BTreeNode, key: number): boolean {
  if (node.entryCount < node.maxEntries) return true;
  const index = node.lowerBound(key);
  return node.isLeaf && index >= 0 && node.key(index) === key;
}

/** Fills an empty node with entries of another. */
function copyInto(to: BTreeNode, from: BTreeNode, fromIndex: number, count: number): void {
  copyEntries(to, 0, from, fromIndex, count);
  to.entryCount = count;
}

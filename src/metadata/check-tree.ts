/**
 * The walk of one B-tree, as the checker reads it (format section 5). Depth first, so that memory is bounded by the
 * depth; each block is entered once, so that a cycle ends.
 *
 *     0 csum  4 flags (1 internal, 2 leaf)  8 blocknr  16 nr_entries  20 max_entries  24 value_size  28 padding
 *     32 keys (8 bytes each, room for max_entries)    32 + 8 * max_entries  values (value_size each)
 *
 * An internal node's value i is the child that holds the keys from key i up to key i + 1.
 */
import { type Block, type BlockReader, explainBlock, readUint64 } from "./check-blocks.ts";
import type { BlockReferences } from "./check-references.ts";
import type { CheckedStructure, FindingList } from "./check-report.ts";

const INTERNAL = 1;
const LEAF = 2;
/** The kernel's cursor holds no more (DM_BTREE_CURSOR_MAX_DEPTH); a tree of 2^31 regions is 3 deep. */
const MAX_DEPTH = 16;
/** A tree with more unusable nodes is a ruin; walking on could take as long as its author likes. */
const MAX_UNUSABLE_NODES = 1000;

/** What to walk and whom to tell. Key ranges are half-open; `high` may be Infinity. */
export interface TreeWalk {
  structure: CheckedStructure;
  root: number;
  /** Bytes of a value in a leaf: 8 in the bitset's tree, 4 in that of the reference counts. */
  leafValueSize: 4 | 8;
  /** Called for every entry of a sound leaf, keys ascending. `offset` is where its value stands in `leaf`. */
  onEntry(key: number, leaf: Block, offset: number): void;
  /** Called for every range of keys that cannot be looked at. */
  onLost(low: number, high: number): void;
  /** What a loss of these keys means, appended to the finding. */
  describeLoss(low: number, high: number): string;
}

interface Place {
  block: number;
  low: number;
  high: number;
  depth: number;
}

/** How many entries a node has room for, given the bytes of a value. */
function maxEntriesFor(valueSize: number): number {
  return 3 * Math.floor(Math.floor((4096 - 32) / (8 + valueSize)) / 3);
}

/** Walks one tree, once. */
export class TreeChecker {
  readonly #reader: BlockReader;
  readonly #references: BlockReferences;
  readonly #fatal: FindingList;
  readonly #walk: TreeWalk;
  #leafDepth: number | null = null;
  #unusable = 0;
  /** Nodes entered that were sound. */
  nodeCount = 0;

  constructor(reader: BlockReader, references: BlockReferences, fatal: FindingList, walk: TreeWalk) {
    this.#reader = reader;
    this.#references = references;
    this.#fatal = fatal;
    this.#walk = walk;
  }

  async run(): Promise<void> {
    const { root, structure } = this.#walk;
    const refused = this.#references.enter(root);
    if (refused !== null) {
      this.#fatal.add("superblock", 0, `root of the tree of ${structure}s: ${refused}`);
      this.#lose(0, Number.POSITIVE_INFINITY);
      return;
    }
    await this.#visit({ block: root, low: 0, high: Number.POSITIVE_INFINITY, depth: 1 });
  }

  async #visit(place: Place): Promise<void> {
    const { structure, leafValueSize, onEntry } = this.#walk;
    if (this.#unusable >= MAX_UNUSABLE_NODES) return this.#lose(place.low, place.high);
    const node = await this.#reader.read(place.block);
    const problem =
      typeof node === "string" ? node : (explainBlock(node, "btree node") ?? this.#explainNode(node, place));
    if (typeof node === "string" || problem !== null) {
      this.#unusable++;
      const more =
        this.#unusable === MAX_UNUSABLE_NODES ? "; too many such nodes, the rest of the tree is not checked" : "";
      this.#fatal.add(structure, place.block, `${problem}${this.#walk.describeLoss(place.low, place.high)}${more}`);
      return this.#lose(place.low, place.high);
    }
    this.nodeCount++;
    const isLeaf = node.view.getUint32(4, true) === LEAF;
    const entries = node.view.getUint32(16, true);
    const valueSize = isLeaf ? leafValueSize : 8;
    const firstValue = 32 + 8 * maxEntriesFor(valueSize);
    for (let i = 0; i < entries; i++) {
      const key = readUint64(node.view, 32 + 8 * i);
      if (isLeaf) onEntry(key, node, firstValue + i * valueSize);
      else await this.#descend(node, i, entries, place, readUint64(node.view, firstValue + 8 * i));
    }
  }

  async #descend(node: Block, i: number, entries: number, { high, depth }: Place, child: number): Promise<void> {
    const childLow = readUint64(node.view, 32 + 8 * i);
    const childHigh = i + 1 < entries ? readUint64(node.view, 40 + 8 * i) : high;
    const refused = this.#references.enter(child);
    if (refused === null) return this.#visit({ block: child, low: childLow, high: childHigh, depth: depth + 1 });
    const loss = this.#walk.describeLoss(childLow, childHigh);
    this.#fatal.add(this.#walk.structure, node.number, `entry ${i}: ${refused}${loss}`);
    this.#lose(childLow, childHigh);
  }

  #lose(low: number, high: number): void {
    this.#references.complete = false;
    this.#walk.onLost(low, high);
  }

  /** Why a node whose checksum is right cannot be used, or null. */
  #explainNode({ view }: Block, { low, high, depth }: Place): string | null {
    const flags = view.getUint32(4, true);
    const entries = view.getUint32(16, true);
    if (flags !== INTERNAL && flags !== LEAF) return `flags are ${flags}, neither 1 (internal) nor 2 (leaf)`;
    const expectedSize = flags === LEAF ? this.#walk.leafValueSize : 8;
    const valueSize = view.getUint32(24, true);
    if (valueSize !== expectedSize) return `value size is ${valueSize}, not ${expectedSize}`;
    const maxEntries = view.getUint32(20, true);
    const expectedMax = maxEntriesFor(expectedSize);
    if (maxEntries !== expectedMax) return `room for ${maxEntries} entries is claimed, not ${expectedMax}`;
    if (entries > maxEntries) return `${entries} entries are claimed where ${maxEntries} have room`;
    if (flags === INTERNAL && entries === 0) return "an internal node without entries";
    if (flags === INTERNAL && depth === MAX_DEPTH) return `the tree is more than ${MAX_DEPTH} levels deep`;
    for (let i = 0, previous = -1; i < entries; i++) {
      const key = readUint64(view, 32 + 8 * i);
      if (key <= previous) return `keys are not ascending: ${previous} is followed by ${key}`;
      const named = Number.isFinite(key) ? `key ${key}` : "a key beyond 2^53";
      if (key < low || key >= high) return `${named} is outside the parent's range from ${low} to ${high - 1}`;
      previous = key;
    }
    if (flags === LEAF) {
      this.#leafDepth ??= depth;
      if (depth !== this.#leafDepth) return `a leaf at level ${depth} where others are at level ${this.#leafDepth}`;
    }
    return null;
  }
}

/**
 * Nodes of the bitset's tree under a repair's eyes (format section 5), each by itself.
 *
 *     4 flags (1 internal, 2 leaf)  16 nr_entries  20 max_entries  24 value_size  32 … keys  2048 … values
 */
import { type Block, readUint64 } from "./check-blocks.ts";

const INTERNAL = 1;
const LEAF = 2;
/** Entries that a node has room for, where values take 8 bytes. */
const MAX_ENTRIES = 252;

/** Keys, and the array block that the node names under each, where it is a leaf of the bitset; else none. */
export function leafEntriesOf({ view }: Block): [key: number, block: number][] {
  const isLeaf = view.getUint32(4, true) === LEAF && view.getUint32(20, true) === MAX_ENTRIES;
  return isLeaf && view.getUint32(24, true) === 8 ? entriesOf(view) : [];
}

/** The nodes that an internal node points to; of any other, none. */
export function childrenOf({ view }: Block): number[] {
  return view.getUint32(4, true) === INTERNAL ? entriesOf(view).map(([, child]) => child) : [];
}

function entriesOf(view: DataView): [key: number, value: number][] {
  const entries = view.getUint32(16, true);
  if (entries > MAX_ENTRIES) return [];
  return Array.from({ length: entries }, (_, i) => [readUint64(view, 32 + 8 * i), readUint64(view, 2048 + 8 * i)]);
}

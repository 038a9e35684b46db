/**
 * Keys of which tree and space map tell different tales. Nodes have no number of their commit either: where the write of one was
 * lost, an older one may stand in its place, as sound as ever, whose array blocks are other keys' by now. The space map
 * of the commit gives that away: what such a node points to is free by now, and as many blocks at least are in use that
 * nothing leads to. A count that is wrong by itself, or a leak, does not look so.
 *
 * It may be the space map that is the older one, of a time when the blocks that it is in were in use, too: nothing in the
 * format tells the two apart. So neither is believed, for all keys of the leaves that lead astray.
 */
import type { BlockReferences } from "./check-references.ts";
import type { ProvenBits } from "./repair-bitset.ts";

/** Keys that seem to be known, and are not. `counts` are those of the space map, of this commit as far as that tells. */
export function contradictedKeys(counts: Uint8Array, references: BlockReferences, proven: ProvenBits): number[] {
  let free = 0;
  let unreached = 0;
  counts.forEach((count, block) => {
    const isReached = references.counts[block] !== 0;
    if (isReached && count === 0) free++;
    if (!isReached && count !== 0) unreached++;
  });
  if (free === 0 || unreached < free) return [];
  return proven.keysOfLeaves((block) => counts[block] === 0);
}

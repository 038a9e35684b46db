/**
 * Keys of leaves that the rest contradicts. Nodes have no number of their commit: where the write of one was lost, an older
 * one may stand in its place, as sound as ever, whose array blocks are other keys' by now, or other structures' altogether.
 * The rest gives that away:
 *
 *     a block that it names is also something else, or    then none of its keys is believed
 *     is not there at all
 *     a block that it names is free in the space map,     likewise; a count that is wrong by itself, or a leak, does not
 *     and as many at least are in use that nothing        look so
 *     leads to
 *
 * In the second case it may be the space map that is older, of a time when the blocks that it is in were in use, too.
 * Where the descriptor's list of free blocks does not tell (`settled-witness.ts`) nothing tells the two apart. And where writes of
 * both were lost, they may be of one older commit, and agree.
 */
import type { BlockReferences } from "./check-references.ts";
import type { ProvenBits } from "./repair-bitset.ts";

/** Keys that seem to be known, and are not. `counts` are those of the space map; null where that is not to be believed. */
export function contradictedKeys(counts: Uint8Array | null, references: BlockReferences, proven: ProvenBits): number[] {
  const isTwice = (block: number) => (references.counts[block] as number) > 1;
  let astray = 0;
  let unreached = 0;
  counts?.forEach((count, block) => {
    const isReached = references.counts[block] !== 0;
    if (isReached && (count === 0 || isTwice(block))) astray++;
    if (!isReached && count !== 0) unreached++;
  });
  const isOlder = (block: number) => counts?.[block] === 0 && unreached >= astray;
  return proven.keysOfLeaves((block) => isTwice(block) || isOlder(block));
}

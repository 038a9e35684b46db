/**
 * What the last commit itself says of keys that no sound leaf leads to.
 *
 * The space map calls in use exactly the blocks of the last commit. Those of them that the walk did not reach were
 * pointed to by what is lost of the tree: its array blocks for the unreached keys and, where an inner node is lost, the
 * nodes below. This holds only where the counts add up: everything reached is in use, nothing twice; as many sound array
 * blocks as unreached keys are not reached, and nothing else but nodes below a lost one, which leads to two at least in trees of the kernel and ours. (A
 * leaked block, one that is damaged, or the root of an older commit spoils that, and then nothing is
 * concluded.) So these array blocks are the live ones; what is lost is which is whose. It is known again
 *
 *     exactly     where the leaves among the nodes name each of the keys and of the blocks once
 *     exactly     where only one block can be a key's: the last key's by its number of words, or a single one that is left
 *     in part     otherwise: a bit that all of them have is set whichever is whose, one that none has is clear
 */
import { type Block, type BlockReader, explainBlock } from "./check-blocks.ts";
import type { BlockReferences } from "./check-references.ts";
import type { RegionBitmap } from "./region-bitmap.ts";
import { bitsOf, clearBeyond, REGIONS_PER_BLOCK, regionsUnder, wordsIn, wordsUnder } from "./repair-array.ts";
import type { ProvenBits } from "./repair-bitset.ts";
import { childrenOf, leafEntriesOf } from "./repair-node.ts";

/** More keys than this are not known in part: what they have in common is little, and told in many small ranges. */
const MOST_PARTLY_KNOWN = 64;

/** Blocks that the last commit has in use and the walk did not reach. */
interface Unreached {
  /** Nodes that no other of them points to. */
  topCount: number;
  /** Sound array blocks, and the words that each holds. */
  arrays: Map<number, number>;
  /** Array block by key, as the leaves among them say; null where they contradict each other. */
  named: Map<number, number> | null;
}

/** What was found out. */
export interface InUseFindings {
  /** Keys whose block is known again. */
  exactKeys: number[];
  /** Keys of which some bits are. */
  partlyKnownKeys: number[];
}

/**
 * Finds out what it can of the keys that no sound leaf leads to, and adds it to `proven`; regions whose bit is still not
 * known stay in `unknown`.
 */
export async function findInUse(
  reader: BlockReader,
  {
    counts,
    references,
    proven,
    unknown,
  }: {
    counts: Uint8Array;
    references: BlockReferences;
    proven: ProvenBits;
    unknown: RegionBitmap;
  },
): Promise<InUseFindings> {
  const found: InUseFindings = { exactKeys: [], partlyKnownKeys: [] };
  const keys = proven.unreachedKeys;
  if (keys.length === 0) return found;
  const unreached = await surveyUnreached(reader, counts, references);
  if (unreached === null || unreached.arrays.size !== keys.length) return found;
  const { arrays, named, topCount } = unreached;
  if (topCount === 1) return found;

  const settle = async (key: number, number: number): Promise<void> => {
    const block = await reader.read(number);
    if (typeof block === "string") return; // it could be read a moment ago
    proven.settle(key, block);
    unknown.clearRange(regionsUnder(key, key + 1, proven.geometry));
    found.exactKeys.push(key);
  };
  if (
    named?.size === keys.length &&
    keys.every((key) => arrays.get(named.get(key) ?? -1) === wordsUnder(key, proven.geometry))
  ) {
    for (const key of keys) await settle(key, named.get(key) as number);
    return found;
  }
  // Only the last key's block can have fewer words than the others.
  for (const words of new Set(keys.map((key) => wordsUnder(key, proven.geometry)))) {
    const whose = keys.filter((key) => wordsUnder(key, proven.geometry) === words);
    const blocks = [...arrays].filter(([, held]) => held === words).map(([block]) => block);
    if (blocks.length !== whose.length) continue;
    if (whose.length === 1) await settle(whose[0] as number, blocks[0] as number);
    else if (whose.length <= MOST_PARTLY_KNOWN)
      found.partlyKnownKeys.push(...(await settleCommon(reader, blocks, whose, proven, unknown)));
  }
  return found;
}

async function surveyUnreached(
  reader: BlockReader,
  counts: Uint8Array,
  references: BlockReferences,
): Promise<Unreached | null> {
  const numbers: number[] = [];
  for (let block = 0; block < counts.length; block++) {
    const [count, reached] = [counts[block] as number, references.counts[block] as number];
    // An older bitmap, which a lost write left in its place, gives itself away by what is in use since.
    if (count > 1 || reached > 1 || (count === 0 && reached > 0)) return null;
    if (count === 1 && reached === 0) numbers.push(block);
  }
  const arrays = new Map<number, number>();
  let named: Map<number, number> | null = new Map();
  const tops = new Set<number>();
  const children = new Set<number>();
  let isWhole = true;
  await reader.each(numbers, (block) => {
    if (typeof block === "string") {
      isWhole = false;
      return;
    }
    const words = wordsIn(block);
    if (words > 0) arrays.set(block.number, words);
    else if (explainBlock(block, "btree node") === null) {
      tops.add(block.number);
      const below = childrenOf(block);
      for (const child of below) children.add(child);
      if (below.length === 0 && leafEntriesOf(block).length === 0) isWhole = false; // of no use to a tree
      named = named && addNames(block, named);
    } else isWhole = false;
  });
  for (const child of children) tops.delete(child);
  return isWhole ? { topCount: tops.size, arrays, named } : null;
}

/** What a leaf of the bitset's tree says, added to what others say; null where one key or block is named twice. */
function addNames(node: Block, named: Map<number, number>): Map<number, number> | null {
  for (const [key, block] of leafEntriesOf(node)) {
    if (named.has(key)) return null;
    named.set(key, block);
  }
  return new Set(named.values()).size === named.size ? named : null;
}

/** Sets what all blocks have in common under each key, and keeps as unknown only what not all agree on. */
async function settleCommon(
  reader: BlockReader,
  blocks: number[],
  keys: number[],
  proven: ProvenBits,
  unknown: RegionBitmap,
): Promise<number[]> {
  const words = wordsUnder(keys[0] as number, proven.geometry);
  const inAll = new Uint32Array(2 * words).fill(0xffffffff);
  const inAny = new Uint32Array(2 * words);
  let read = 0;
  await reader.each(
    blocks.sort((a, b) => a - b),
    (block) => {
      if (typeof block === "string") return;
      read++;
      bitsOf(block, words).forEach((bits, i) => {
        inAll[i] = (inAll[i] as number) & bits;
        inAny[i] = (inAny[i] as number) | bits;
      });
    },
  );
  if (read < blocks.length) return [];
  const disputed = inAny.map((bits, i) => bits & ~(inAll[i] as number));
  for (const key of keys) {
    const common = inAll.slice();
    clearBeyond(common, proven.geometry, key);
    proven.prove(key, common);
    unknown.clearRange(regionsUnder(key, key + 1, proven.geometry));
    addBits(unknown, key * REGIONS_PER_BLOCK, disputed);
  }
  return keys;
}

/** Adds bits to a set, region by region: they are few, or the set is small. */
function addBits(set: RegionBitmap, firstRegion: number, bits: Uint32Array): void {
  bits.forEach((word, i) => {
    for (let bit = 0; word !== 0 && bit < 32; bit++) {
      const region = firstRegion + i * 32 + bit;
      if (((word >>> bit) & 1) === 1 && region < set.size) set.setRange({ start: region, end: region + 1 });
    }
  });
}

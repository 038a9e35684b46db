/**
 * Bits from older blocks that are still in free space.
 *
 * Bits are only ever set, and an array block is written only after its regions' data was made durable: so whatever bits an
 * older array block of this clone has for these regions, are true. But it says neither whose it is nor of which regions,
 * and to be wrong about that is to call a region hydrated that is not. So of a lost key all of this is asked:
 *
 *  1. The metadata was blank when it was formatted. Otherwise any number of sound blocks of an earlier clone may be left,
 *     trees, space maps and all, and nothing tells them apart.
 *  2. The older block can be no other key's. Of the keys whose blocks are as long, all others are known, and each lacks a
 *     bit that the older block has; an older block of theirs would lack none. (A place is used again for other keys, so that
 *     an old leaf named it, proves nothing; but no leaf may name it under another key, and one has to under this.)
 *  3. Two different ones have the bit. A single block may have come from elsewhere, by a write that went to the wrong
 *     place. Of all that are found each holds all the bits of the one before, or none of them is believed.
 */
import type { Geometry } from "../base/geometry.ts";
import type { BlockReader } from "./check-blocks.ts";
import type { BlockReferences } from "./check-references.ts";
import type { RegionBitmap } from "./region-bitmap.ts";
import {
  bitsOf,
  clearBeyond,
  countBits,
  isSubset,
  REGIONS_PER_BLOCK,
  regionsUnder,
  wordsUnder,
} from "./repair-array.ts";
import type { ProvenBits } from "./repair-bitset.ts";
import { leafEntriesOf } from "./repair-node.ts";
import type { BlockSurvey } from "./repair-survey.ts";

/** Older blocks of one key that are looked at: 4 MB. */
const MOST_VERSIONS = 1024;
/** Comparisons of an older block with a known one, so that a large device full of them ends. */
const MOST_COMPARISONS = 2 ** 22;
/** In place of the key that a leaf names a block under. */
const UNNAMED = -1;
const DISPUTED = -2;

/** What a repair knows by the time that older blocks are looked at. */
interface Known {
  proven: ProvenBits;
  unknown: RegionBitmap;
  /** Blocks of the last commit, as far as the tree leads to them. */
  references: BlockReferences;
}

/** Takes what is proved of lost keys from older blocks. Returns the keys of which it found something. */
export async function salvageOlder(reader: BlockReader, survey: BlockSurvey, known: Known): Promise<number[]> {
  const { proven, unknown } = known;
  const { geometry } = proven;
  const lost = proven.lostKeys.filter((key) => isAllUnknown(unknown, key, geometry));
  const budget = { comparisons: MOST_COMPARISONS };
  const salvaged: number[] = [];
  let names: Int32Array | undefined;
  for (const key of lost) {
    const words = wordsUnder(key, geometry);
    // Another lost key of the same length could be the one that the block is of.
    if (proven.lostKeys.some((other) => other !== key && wordsUnder(other, geometry) === words)) continue;
    names ??= await readNames(reader, survey);
    const bits = agreed(await versionsOf(key, { reader, survey, known, names, budget }));
    if (bits === null) continue;
    takeBits(known, key, bits);
    salvaged.push(key);
  }
  return salvaged;
}

function isAllUnknown(unknown: RegionBitmap, key: number, geometry: Geometry): boolean {
  const { start, end } = regionsUnder(key, key + 1, geometry);
  return unknown.nextUnset(start, end) === end;
}

/** The key that surviving leaves name each block under. */
async function readNames(reader: BlockReader, survey: BlockSurvey): Promise<Int32Array> {
  const names = new Int32Array(survey.blockCount).fill(UNNAMED);
  await reader.each(survey.blocksOf("btree node"), (node) => {
    if (typeof node === "string") return;
    for (const [key, block] of leafEntriesOf(node)) {
      if (!(block < names.length)) continue;
      const before = names[block];
      names[block] = before === UNNAMED || before === key ? Math.min(key, 2 ** 31 - 1) : DISPUTED;
    }
  });
  return names;
}

/** Older array blocks that can be no other key's. Copies of their bits. */
async function versionsOf(
  key: number,
  {
    reader,
    survey,
    known: { proven, references },
    names,
    budget,
  }: { reader: BlockReader; survey: BlockSurvey; known: Known; names: Int32Array; budget: { comparisons: number } },
): Promise<Uint32Array[]> {
  const { geometry } = proven;
  const words = wordsUnder(key, geometry);
  const places = survey
    .blocksOf("array block")
    .filter((block) => survey.wordsOf(block) === words && names[block] === key && references.counts[block] === 0);
  const rivals = proven.knownKeys.filter((other) => wordsUnder(other, geometry) === words);
  const versions: Uint32Array[] = [];
  const theirs = new Uint32Array(2 * words);
  await reader.each(places.slice(0, MOST_VERSIONS), (block) => {
    if (typeof block === "string") return;
    const bits = bitsOf(block, words).slice();
    clearBeyond(bits, geometry, key);
    for (const rival of rivals) {
      if (budget.comparisons-- <= 0) return;
      proven.hydrated.store(rival * REGIONS_PER_BLOCK, new Uint8Array(theirs.buffer));
      if (isSubset(bits, theirs)) return;
    }
    versions.push(bits);
  });
  return versions;
}

/** The bits that two different versions have; null where there are none, or they cannot all be of one block's history. */
function agreed(versions: Uint32Array[]): Uint32Array | null {
  const byCount = versions.map((bits) => ({ bits, count: countBits(bits) })).sort((a, b) => a.count - b.count);
  const history: Uint32Array[] = [];
  for (const { bits } of byCount) {
    const last = history.at(-1);
    if (last !== undefined && !isSubset(last, bits)) return null;
    if (last === undefined || !isSubset(bits, last)) history.push(bits);
  }
  const bits = history.at(-2);
  return bits === undefined || countBits(bits) === 0 ? null : bits;
}

function takeBits({ proven, unknown }: Known, key: number, bits: Uint32Array): void {
  proven.prove(key, bits);
  const { start, end } = regionsUnder(key, key + 1, proven.geometry);
  for (let from = proven.hydrated.nextSet(start, end); from < end; ) {
    const range = { start: from, end: proven.hydrated.nextUnset(from, end) };
    unknown.clearRange(range);
    from = proven.hydrated.nextSet(range.end, end);
  }
}

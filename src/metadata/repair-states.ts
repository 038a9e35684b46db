/**
 * The states of a clone that are whole on the device: an index block, the bitmaps it names, and exactly the blocks that
 * these call in use, which are one tree with all of its array blocks, and an empty tree of reference counts.
 *
 * The last commit is among them where nothing but the superblock is lost. Which one it is they do not tell: there are no
 * numbers or times. Nor is an older one to be believed: its freed blocks may hold other keys' bits by now.
 */
import type { Geometry } from "../base/geometry.ts";
import { sealBlock } from "../persistent-data/checksum.ts";
import { type Block, type BlockReader, readUint64 } from "./check-blocks.ts";
import { BlockReferences } from "./check-references.ts";
import { FindingList } from "./check-report.ts";
import { TreeChecker } from "./check-tree.ts";
import { arrayBlockCount, wordsUnder } from "./repair-array.ts";
import { childrenOf } from "./repair-node.ts";
import { readEntries, readIndex } from "./repair-space-map.ts";
import type { BlockSurvey } from "./repair-survey.ts";
import { encodeSuperblock } from "./superblock.ts";

const ENTRIES_PER_BITMAP = 16320;
/** Counts looked at in all, so that a device full of index blocks ends. */
const MOST_COUNTS = 2 ** 28;

/** A state that is whole. */
export interface WholeState {
  bitmapRoot: number;
  referenceCountRoot: number;
  bitsetRoot: number;
  /** The superblock that the commit of this state wrote, checksum included. */
  superblock: Uint8Array;
}

/** The clone whose states are looked for. */
interface StatePlace {
  geometry: Geometry;
  blockCount: number;
}

/** Every whole state of a clone of this geometry; of very many, only some. @throws the signal's reason */
export async function wholeStates(reader: BlockReader, survey: BlockSurvey, place: StatePlace): Promise<WholeState[]> {
  const states: WholeState[] = [];
  const most = Math.max(1, Math.floor(MOST_COUNTS / place.blockCount));
  for (const bitmapRoot of survey.blocksOf("index block", most)) {
    if (bitmapRoot >= place.blockCount) continue;
    const state = await stateOf(reader, survey, place, bitmapRoot);
    if (state !== null) states.push(state);
  }
  return states;
}

async function stateOf(
  reader: BlockReader,
  survey: BlockSurvey,
  place: StatePlace,
  bitmapRoot: number,
): Promise<WholeState | null> {
  const used = await usedBlocks(reader, survey, place, bitmapRoot);
  if (used === null) return null;
  const { nodes, arrays, allocated } = used;
  if (arrays !== arrayBlockCount(place.geometry)) return null;
  const trees = await findRoots(reader, nodes);
  if (trees === null) return null;
  const { bitsetRoot, referenceCountRoot } = trees;
  if (!(await leadsToAll(reader, survey, place, { bitsetRoot, nodes: nodes.length - 1 }))) return null;
  const { geometry, blockCount } = place;
  const superblock = encodeSuperblock({
    geometry,
    spaceMap: { blockCount, allocatedCount: allocated, indexBlock: bitmapRoot, refCountRoot: referenceCountRoot },
    bitsetRoot,
  });
  sealBlock(superblock, "superblock", 0);
  return { bitmapRoot, referenceCountRoot, bitsetRoot, superblock };
}

/** What an index block calls in use, or null where that cannot be a state. */
async function usedBlocks(
  reader: BlockReader,
  survey: BlockSurvey,
  { blockCount }: StatePlace,
  bitmapRoot: number,
): Promise<{ nodes: number[]; arrays: number; allocated: number } | null> {
  const bitmaps = (await readIndex(reader, { blockCount, bitmapRoot }))?.map(({ place }) => place);
  if (bitmaps === undefined || new Set(bitmaps).size < bitmaps.length) return null;
  const counts = new Uint8Array(blockCount);
  for (let i = 0; i < bitmaps.length; i++) {
    const number = bitmaps[i] as number;
    if (!(number < blockCount) || survey.kindOf(number) !== "bitmap block") return null;
    const block = await reader.read(number);
    if (typeof block === "string") return null;
    readEntries(block.bytes, counts, i * ENTRIES_PER_BITMAP);
  }
  if (counts[0] !== 1 || counts[bitmapRoot] !== 1 || bitmaps.some((number) => counts[number] !== 1)) return null;
  const nodes: number[] = [];
  let arrays = 0;
  let allocated = 0;
  for (let block = 0; block < blockCount; block++) {
    if (counts[block] === 0) continue;
    if (counts[block] !== 1) return null;
    allocated++;
    const kind = survey.kindOf(block);
    if (kind === "btree node") nodes.push(block);
    else if (kind === "array block") arrays++;
  }
  const others = 2 + bitmaps.length; // the superblock, whatever is left of it, and the index
  return allocated === others + nodes.length + arrays ? { nodes, arrays, allocated } : null;
}

/** The one empty leaf of reference counts, and the one node that no other points to. */
async function findRoots(
  reader: BlockReader,
  nodes: number[],
): Promise<{ bitsetRoot: number; referenceCountRoot: number } | null> {
  const roots = new Set<number>();
  const children = new Set<number>();
  let referenceCountRoot: number | null = null;
  let isSound = true;
  await reader.each(nodes, (node) => {
    if (typeof node === "string") isSound = false;
    else if (isEmptyCounts(node)) {
      isSound &&= referenceCountRoot === null;
      referenceCountRoot = node.number;
    } else {
      roots.add(node.number);
      for (const child of childrenOf(node)) children.add(child);
    }
  });
  for (const child of children) roots.delete(child);
  const [bitsetRoot] = roots;
  if (!isSound || referenceCountRoot === null || bitsetRoot === undefined || roots.size > 1) return null;
  return { bitsetRoot, referenceCountRoot };
}

function isEmptyCounts({ view }: Block): boolean {
  return view.getUint32(4, true) === 2 && view.getUint32(16, true) === 0 && view.getUint32(24, true) === 4;
}

/** Whether a tree of that many nodes has every key, each with an array block of the right length. */
async function leadsToAll(
  reader: BlockReader,
  survey: BlockSurvey,
  { geometry, blockCount }: StatePlace,
  { bitsetRoot, nodes }: { bitsetRoot: number; nodes: number },
): Promise<boolean> {
  const findings = new FindingList();
  const references = new BlockReferences(blockCount);
  let nextKey = 0;
  let isWhole = true;
  const tree = new TreeChecker(reader, references, findings, {
    structure: "bitset node",
    root: bitsetRoot,
    leafValueSize: 8,
    onEntry: (key, leaf, offset) => {
      const block = readUint64(leaf.view, offset);
      const fits = key === nextKey && references.enter(block) === null;
      isWhole &&= fits && survey.wordsOf(block) === wordsUnder(key, geometry);
      nextKey++;
    },
    onLost: () => {
      isWhole = false;
    },
    describeLoss: () => "",
  });
  await tree.run();
  return isWhole && nextKey === arrayBlockCount(geometry) && tree.nodeCount === nodes;
}

/**
 * Whether anybody has committed since a clone was left. The superblock alone cannot tell: it has no number of its transaction,
 * and blocks are used again, so that a kernel that goes on may come back to the very same block 0, byte by byte, with other
 * bits.
 *
 * But whoever opens the metadata looks for free blocks from the first one on, so that the first commit of a session writes into
 * the lowest free blocks: an array block before all others, then nodes, a bitmap, the index. So a few of the lowest free blocks are
 * recorded when the clone is left:
 *
 *     "7 8 9 12 … 30 <SHA-256>"     their numbers, ascending; over number (u64, little-endian) and content of each
 *
 * As long as these and the superblock are what they were, there has been no commit. Once they are not, nothing is proved: it was
 * a commit, one that was cut off, or damage to what is free. Nor is anything where they were not recorded.
 */
import { createHash } from "node:crypto";
import type { BlockDevice } from "../device/block-device.ts";
import { BlockReader, explainBlock, readUint64 } from "./check-blocks.ts";
import type { SettledState } from "./descriptor-json.ts";
import { type IndexEntry, readEntries, readIndex } from "./repair-space-map.ts";

/** Free blocks that are recorded, or all where there are fewer. A commit takes four at least. */
export const MOST_FREE = 16;
const ENTRIES_PER_BITMAP = 16320;
const RECORD = /^((?:\d{1,7} ){1,16})([0-9a-f]{64})$/;

/**
 * What to record of the free blocks of sound metadata that nobody writes to: nothing where they cannot be read, there are none,
 * or the next commit would look for them elsewhere.
 */
export async function recordFree(device: BlockDevice): Promise<Pick<SettledState, "free">> {
  return await recordBlocks(device, (await lowestFree(new BlockReader(device, undefined))) ?? []);
}

/** What to record where these blocks, ascending, are the lowest that are free. */
export async function recordBlocks(
  device: BlockDevice,
  blocks: readonly number[],
): Promise<Pick<SettledState, "free">> {
  const recorded = blocks.slice(0, MOST_FREE);
  if (recorded.length === 0) return {};
  const digest = await digestOf(new BlockReader(device, undefined), recorded);
  return digest === null ? {} : { free: `${recorded.join(" ")} ${digest}` };
}

/** What has become of the metadata since a clone was left. */
export type SinceLeft =
  /** Nobody has committed. */
  | "nothing"
  /** It is not as it was. */
  | "changed"
  /** It cannot be read, or was not recorded. */
  | "unknown";

/** Whether anybody has committed since: whether block 0 and the free blocks are those that were recorded. */
export async function sinceLeft(device: BlockDevice, settled: SettledState): Promise<SinceLeft> {
  const first = await new BlockReader(device, undefined).read(0);
  if (typeof first === "string") return "unknown";
  if (checksumText(first.bytes) !== settled.superblock) return "changed";
  return await freeSinceLeft(device, settled);
}

/** Whether nobody has committed since, for certain. */
export async function isAsLeft(device: BlockDevice, settled: SettledState): Promise<boolean> {
  return (await sinceLeft(device, settled)) === "nothing";
}

/** The same of the free blocks alone, where block 0 is lost. */
export async function areFreeAsLeft(device: BlockDevice, settled: SettledState): Promise<boolean> {
  return (await freeSinceLeft(device, settled)) === "nothing";
}

async function freeSinceLeft(device: BlockDevice, { free }: SettledState): Promise<SinceLeft> {
  const [, numbers = "", digest] = RECORD.exec(free ?? "") ?? [];
  if (digest === undefined) return "unknown";
  const now = await digestOf(new BlockReader(device, undefined), numbers.trim().split(" ").map(Number));
  if (now === null) return "unknown";
  return now === digest ? "nothing" : "changed";
}

/** Whether a space map calls free what was recorded as the lowest free blocks, and nothing else below; so it is, too, where none were. */
export function areCountsAsLeft(counts: Uint8Array, { free }: SettledState): boolean {
  const [, numbers = ""] = RECORD.exec(free ?? "") ?? [];
  const blocks = new Set(
    numbers
      .split(" ", MOST_FREE)
      .filter((number) => number !== "")
      .map(Number),
  );
  const end = Math.max(...blocks) + 1;
  return counts.subarray(0, end).every((count, block) => (count === 0) === blocks.has(block));
}

/** A superblock's checksum as the descriptor records it. */
export function checksumText(superblock: Uint8Array): string {
  return Buffer.from(superblock.subarray(0, 4)).toString("hex");
}

/** Null where one cannot be read. */
async function digestOf(reader: BlockReader, blocks: readonly number[]): Promise<string | null> {
  const hash = createHash("sha256");
  for (const number of blocks) {
    const block = await reader.read(number);
    if (typeof block === "string") return null;
    const name = Buffer.alloc(8);
    name.writeBigUInt64LE(BigInt(number));
    hash.update(name).update(block.bytes);
  }
  return hash.digest("hex");
}

/** The blocks that a commit would take first; null where that cannot be told. */
async function lowestFree(reader: BlockReader): Promise<number[] | null> {
  const superblock = await reader.read(0);
  if (typeof superblock === "string" || explainBlock(superblock, "superblock") !== null) return null;
  const place = { blockCount: readUint64(superblock.view, 44), bitmapRoot: readUint64(superblock.view, 60) };
  const index = await readIndex(reader, place);
  if (index === null) return null;
  const free: number[] = [];
  for (let i = 0; i < index.length && free.length < MOST_FREE; i++) {
    const bitmap = index[i] as IndexEntry;
    const block = await reader.read(bitmap.place);
    if (typeof block === "string" || explainBlock(block, "bitmap block") !== null) return null;
    const first = i * ENTRIES_PER_BITMAP;
    const counts = new Uint8Array(Math.min(ENTRIES_PER_BITMAP, place.blockCount - first));
    const { firstFree } = readEntries(block.bytes, counts, 0);
    if (firstFree >= counts.length) continue;
    // What says that a bitmap is full, or that nothing is free before an entry, is believed without a look at it.
    if (bitmap.free === 0 || bitmap.noneFreeBefore > firstFree) return null;
    counts.forEach((count, entry) => {
      if (count === 0) free.push(first + entry);
    });
  }
  return free;
}

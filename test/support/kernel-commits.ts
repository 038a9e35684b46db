/**
 * The commits that made a metadata image, read from the blocks that each left behind.
 *
 * As long as allocation has not wrapped round, blocks lie in the order of their allocation: the format, then commit by
 * commit array blocks and nodes, the index last. So a run of blocks up to an index is a commit; the node in it that no
 * other node of it points to is its root, which names the array block of every key; and what an array block has more
 * than its predecessor is what the commit set. Decodes by itself, without code of src.
 */
import assert from "node:assert";
import { crc32c } from "@node-rs/crc32";
import { SALT, type SealedType } from "./metadata-image.ts";

const BLOCK = 4096;
const BITS_PER_BLOCK = 509 * 64;

/** Half-open range of regions. */
interface Range {
  start: number;
  end: number;
}

/** The ranges that each commit set, in order. */
export function kernelCommits(bytes: Buffer): Range[][] {
  const blockCount = bytes.length / BLOCK;
  const typeOf = (block: number): SealedType | undefined => {
    const content = bytes.subarray(block * BLOCK, (block + 1) * BLOCK);
    const salt = (content.readUInt32LE(0) ^ crc32c(content.subarray(4)) ^ 0xffffffff) >>> 0;
    return (Object.keys(SALT) as SealedType[]).find((type) => SALT[type] === salt);
  };
  const u64 = (block: number, offset: number): number => Number(bytes.readBigUInt64LE(block * BLOCK + offset));
  const u32 = (block: number, offset: number): number => bytes.readUInt32LE(block * BLOCK + offset);

  /** Array blocks by key below a node. */
  const arrayBlocksBelow = (node: number): number[] =>
    Array.from({ length: u32(node, 16) }, (_, i) => u64(node, 2048 + 8 * i)).flatMap((child) =>
      u32(node, 4) === 2 ? [child] : arrayBlocksBelow(child),
    );

  const bitmaps = Math.ceil(u64(0, 44) / 16320);
  let current: number[] | undefined;
  const commits: Range[][] = [];
  let nodes: number[] = [];
  const finish = (): void => {
    const children = new Set(
      nodes
        .filter((node) => u32(node, 4) === 1)
        .flatMap((node) => Array.from({ length: u32(node, 16) }, (_, i) => u64(node, 2048 + 8 * i))),
    );
    const roots = nodes.filter((node) => !children.has(node));
    assert(roots.length === 1, `${roots.length} roots in one commit`);
    const arrays = arrayBlocksBelow(roots[0] as number);
    if (current !== undefined) {
      const before = current;
      commits.push(
        arrays.flatMap((block, key) =>
          block === before[key] ? [] : newBits(bytes, before[key] as number, block, key),
        ),
      );
    }
    current = arrays;
    nodes = [];
  };

  // The format wrote its index first; its nodes end where its array blocks do, all of them empty and unchanged since.
  const formatEnd = u64(0, 52);
  for (let block = 3 + bitmaps; block < blockCount; block++) {
    const type = typeOf(block);
    if (block === formatEnd) finish();
    if (type === undefined) break;
    if (type === "node") nodes.push(block);
    if (type === "index") finish();
  }
  return commits;
}

/** The runs of bits set in array block `to` and not in `from`. */
function newBits(bytes: Buffer, from: number, to: number, key: number): Range[] {
  const ranges: Range[] = [];
  for (let bit = 0; bit < BITS_PER_BLOCK; bit++) {
    const at = 24 + Math.floor(bit / 8);
    const added = (bytes[to * BLOCK + at] as number) & ~(bytes[from * BLOCK + at] as number) & (1 << (bit % 8));
    if (added === 0) continue;
    const region = key * BITS_PER_BLOCK + bit;
    const last = ranges.at(-1);
    if (last?.end === region) last.end++;
    else ranges.push({ start: region, end: region + 1 });
  }
  return ranges;
}

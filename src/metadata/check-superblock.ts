/**
 * The first block, as the checker reads it: superblock of a clone, blank, or something else altogether. Format
 * sections 3 and 10; offsets are bytes.
 *
 *     0 csum  4 flags  8 blocknr  16 uuid  32 magic  40 version  44 space map root (32 used of 128)
 *     172 region_size  180 target_size  188 bitset_root  196 … 4095 unused
 */
import {
  BLOCK_SIZE,
  type Block,
  type BlockReader,
  explainBlock,
  identifyBlock,
  isZero,
  MAX_BLOCK_COUNT,
  readUint64,
} from "./check-blocks.ts";
import type { CheckVerdict, FindingList } from "./check-report.ts";
import { beginsSlot } from "./descriptor-slot.ts";
import { CONTENT_SAMPLE_BYTES, describeContent } from "./foreign-content.ts";

const MAGIC = 0x8af27f64;
const MIN_BLOCK_COUNT = 6;
const MAX_REGION_COUNT = 2 ** 31;
/** Blocks looked at for remains of metadata. A format fills the device from its start, so they would be here. */
const SURVEY_BLOCKS = 4096;

/** The superblock's fields. Sizes in 512-byte sectors, as stored; unchecked but for what `null` says. */
export interface Superblock {
  /** Null where region_size, target_size or their quotient are impossible. */
  regions: number | null;
  regionSectors: number;
  targetSectors: number;
  /** Null where it is impossible. */
  blockCount: number | null;
  allocated: number;
  bitmapRoot: number;
  referenceCountRoot: number;
  bitsetRoot: number;
}

interface Findings {
  fatal: FindingList;
  warnings: FindingList;
}

/** Checks the first block. Where it is no readable superblock, a verdict and a finding say what it is instead. */
export async function checkSuperblock(
  reader: BlockReader,
  deviceSize: number,
  findings: Findings,
): Promise<Superblock | CheckVerdict> {
  const { fatal } = findings;
  if (reader.blocksOnDevice < MIN_BLOCK_COUNT) {
    const held = deviceSize === 0 ? "it is empty" : `it has ${deviceSize} bytes`;
    const least = `${MIN_BLOCK_COUNT * BLOCK_SIZE} bytes (${MIN_BLOCK_COUNT} blocks of ${BLOCK_SIZE})`;
    const cut =
      reader.blocksOnDevice > 0 && (await startsWithMagic(reader)) ? "; it starts as one, so it was cut off" : "";
    fatal.add("device", null, `${held}, the smallest metadata has ${least}${cut}`);
    return "too-short";
  }
  const block = await reader.read(0);
  if (typeof block === "string") {
    fatal.add("superblock", 0, block);
    return "damaged";
  }
  if (isZero(block.bytes)) {
    fatal.add("superblock", 0, `not formatted: the first block is all zero; ${await survey(reader, "blank")}`);
    return "not-formatted";
  }
  if (readUint64(block.view, 32) !== MAGIC) {
    const { type } = identifyBlock(block.bytes, block.view);
    const kind = type === null ? ((await recogniseKind(reader)) ?? "another kind of data") : `a valid ${type}`;
    const looks =
      type === "superblock"
        ? "its checksum is a superblock's but its magic number is not"
        : `the first block holds ${kind}`;
    fatal.add("superblock", 0, `no dm-clone metadata: ${looks}; ${await survey(reader, "foreign")}`);
    return "foreign";
  }
  const problem = explainBlock(block, "superblock");
  if (problem !== null) {
    fatal.add("superblock", 0, `${problem}; nothing that it points to can be trusted, and there is no second copy`);
    return "damaged";
  }
  const version = block.view.getUint32(40, true);
  if (version !== 1) {
    fatal.add("superblock", 0, `format version ${version} is unknown, only version 1 exists`);
    return "damaged";
  }
  checkSpareBytes(block, findings.warnings);
  return readFields(block, deviceSize, findings);
}

async function startsWithMagic(reader: BlockReader): Promise<boolean> {
  const block = await reader.read(0);
  return typeof block !== "string" && readUint64(block.view, 32) === MAGIC;
}

function readFields({ view }: Block, deviceSize: number, { fatal, warnings }: Findings): Superblock {
  const regionSectors = readUint64(view, 172);
  const targetSectors = readUint64(view, 180);
  const goodRegionSize = regionSectors >= 8 && regionSectors <= 2 ** 21 && Number.isInteger(Math.log2(regionSectors));
  if (!goodRegionSize) {
    fatal.add("superblock", 0, `region size of ${text(regionSectors)} sectors is no power of two from 8 to 2097152`);
  }
  if (targetSectors === 0) fatal.add("superblock", 0, "target size is 0");
  let regions = goodRegionSize && targetSectors > 0 ? Math.ceil(targetSectors / regionSectors) : null;
  if (regions !== null && regions > MAX_REGION_COUNT) {
    fatal.add(
      "superblock",
      0,
      `${text(targetSectors)} sectors make ${text(regions)} regions, more than the possible 2^31`,
    );
    regions = null;
  }
  if (regions !== null && targetSectors * 512 > Number.MAX_SAFE_INTEGER) {
    warnings.add("superblock", 0, "target size is beyond 2^53 bytes: valid for the kernel, too large for this program");
  }
  const storedCount = readUint64(view, 44);
  const goodCount = storedCount >= MIN_BLOCK_COUNT && storedCount <= MAX_BLOCK_COUNT;
  if (!goodCount) {
    fatal.add(
      "superblock",
      0,
      `${text(storedCount)} managed blocks are not from ${MIN_BLOCK_COUNT} to ${MAX_BLOCK_COUNT}`,
    );
  } else if (storedCount * BLOCK_SIZE > deviceSize) {
    const sizes = `${storedCount} blocks (${storedCount * BLOCK_SIZE} bytes) are managed but the device has ${deviceSize} bytes`;
    fatal.add("superblock", 0, `${sizes}: cut off, or copied incompletely`);
  }
  return {
    regions,
    regionSectors,
    targetSectors,
    blockCount: goodCount ? storedCount : null,
    allocated: readUint64(view, 52),
    bitmapRoot: readUint64(view, 60),
    referenceCountRoot: readUint64(view, 68),
    bitsetRoot: readUint64(view, 188),
  };
}

/** The kernel accepts anything in these bytes, and zeroes them with its first commit. */
function checkSpareBytes({ bytes, view }: Block, warnings: FindingList): void {
  const erased = "the kernel ignores this and zeroes it with its next commit";
  if (view.getUint32(4, true) !== 0) warnings.add("superblock", 0, `flags are not zero; ${erased}`);
  if (!isZero(bytes, 16, 32)) warnings.add("superblock", 0, `uuid is not zero; ${erased}`);
  if (!isZero(bytes, 76, 172))
    warnings.add("superblock", 0, `spare bytes of the space map root are not zero; ${erased}`);
  if (!isZero(bytes, 196)) warnings.add("superblock", 0, `bytes behind the last field are not zero; ${erased}`);
}

/** Whether the device once held metadata, told by valid blocks that know their own number, or a descriptor. */
async function survey(reader: BlockReader, first: "blank" | "foreign"): Promise<string> {
  const candidates = Array.from({ length: Math.min(SURVEY_BLOCKS, reader.blocksOnDevice) - 1 }, (_, i) => i + 1);
  let found = 0;
  let unreadable = 0;
  await reader.each(candidates, (block) => {
    if (typeof block === "string") {
      unreadable++;
      return;
    }
    if (beginsSlot(block.bytes)) found++;
    const { type, blockNumber } = identifyBlock(block.bytes, block.view);
    if (type !== null && blockNumber === block.number) found++;
  });
  if (found === 0 && unreadable > 0) {
    return `whether metadata blocks stand behind it is not known: ${unreadable} of them cannot be read`;
  }
  if (found === 0) {
    return first === "blank"
      ? "no metadata blocks stand behind it: a new device"
      : "no metadata blocks stand behind it";
  }
  const remains = `${found} valid metadata block${found === 1 ? " stands" : "s stand"} behind it`;
  return first === "blank"
    ? `but ${remains}: the superblock was wiped. Using it would silently start the clone over`
    : `but ${remains}: the superblock was overwritten`;
}

/** What the device holds instead of metadata, by its first bytes. */
async function recogniseKind(reader: BlockReader): Promise<string | null> {
  const sample = await reader.readStart(CONTENT_SAMPLE_BYTES);
  if (/^\s*\{\s*"format"/.test(Buffer.from(sample.subarray(0, 64)).toString("latin1")))
    return "a dump of metadata as text";
  return describeContent(sample) ?? null;
}

function text(value: number): string {
  return Number.isFinite(value) ? String(value) : "more than 2^53";
}

/**
 * Block 0: the only block that is ever overwritten in place, and the root of everything else.
 *
 *     0 csum   4 flags   8 blocknr (0)   16 uuid   32 magic   40 version
 *     44 space map root: nr_blocks, nr_allocated, bitmap_root, ref_count_root (u64 each), 96 bytes spare
 *     172 region_size   180 target_size (both in sectors)   188 bitset_root   196 unused
 *
 * It is built from zeroes on every commit, as the kernel does (`__prepare_superblock`), so nothing else can be kept in it.
 */
import { DeviceError, MetadataError } from "../base/errors.ts";
import { Geometry, isRegionSize, MAX_REGION_COUNT, SECTOR_SIZE } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { arrayBlockCountOf } from "../persistent-data/array.ts";
import { BLOCK_SIZE, classifyBlock, readU64, verifyBlock, viewOf, writeU64 } from "../persistent-data/checksum.ts";
import { MAX_METADATA_BLOCKS, type SpaceMapRoot } from "../persistent-data/space-map.ts";
import { beginsSlot } from "./descriptor-slot.ts";
import { CONTENT_SAMPLE_BYTES, describeContent } from "./foreign-content.ts";
import { MIN_METADATA_BLOCKS, metadataByteLength } from "./metadata-size.ts";
import { readMark } from "./repair-in-place.ts";

const MAGIC = 0x8af27f64;
const VERSION = 1;
/** Blocks looked at where the first is none of a clone, to tell something else from a clone that is damaged. */
const BLOCKS_SEARCHED = 1024;

/** What the superblock says. */
export interface Superblock {
  geometry: Geometry;
  spaceMap: SpaceMapRoot;
  /** Block number of the root of the bitset's btree. */
  bitsetRoot: number;
}

/** What was found where a superblock is looked for. Only `valid` can be opened; `error` says why the others cannot. */
export type SuperblockVerdict =
  | { verdict: "valid"; superblock: Superblock; bytes: Uint8Array }
  /** Shorter than any metadata, or than its superblock says. `left` is what is there of that. */
  | { verdict: "truncated"; left: "superblock" | "zeros" | "nothing"; error: MetadataError }
  /** The first block is all zero. `orphans` says whether valid metadata blocks lie behind it. */
  | { verdict: "unformatted"; orphans: boolean; error: MetadataError }
  /** Something other than clone metadata. `content` names it where it was recognised. */
  | { verdict: "foreign"; content: string | undefined; error: MetadataError }
  | { verdict: "damaged"; error: MetadataError };

/** Whether bytes from the start of a device begin like clone metadata, sound or not. */
export function hasSuperblockMagic(bytes: Uint8Array): boolean {
  return bytes.length >= 40 && readU64(viewOf(bytes), 32) === MAGIC;
}

/** One block, without checksum and block number: `BlockManager.writeSuperblock` fills those in. */
export function encodeSuperblock({ geometry, spaceMap, bitsetRoot }: Superblock): Uint8Array {
  const bytes = new Uint8Array(BLOCK_SIZE);
  const view = viewOf(bytes);
  writeU64(view, 32, MAGIC);
  view.setUint32(40, VERSION, true);
  writeU64(view, 44, spaceMap.blockCount);
  writeU64(view, 52, spaceMap.allocatedCount);
  writeU64(view, 60, spaceMap.indexBlock);
  writeU64(view, 68, spaceMap.refCountRoot);
  writeU64(view, 172, geometry.regionSize / SECTOR_SIZE);
  writeU64(view, 180, geometry.size / SECTOR_SIZE);
  writeU64(view, 188, bitsetRoot);
  return bytes;
}

/**
 * Looks at block 0 of a device and says what it is; where it is no superblock, at those behind it too.
 *
 * @throws {DeviceError} where it cannot be read. Behind a superblock anything may be unreadable, since metadata has free space;
 *   elsewhere only if it is known all the same what this is, for metadata might lie in what cannot be read
 */
export async function probeSuperblock(device: BlockDevice): Promise<SuperblockVerdict> {
  const bytes = new Uint8Array(Math.min(device.size, BLOCK_SIZE));
  await device.read(0, bytes);
  const { name } = device;
  const backup = readMark(bytes);
  if (backup !== undefined) {
    const message = `A repair of "${name}" in place was cut off: it holds no clone`;
    const kept = backup === "" ? "the backup" : JSON.stringify(backup);
    const hint = `What it held is kept in ${kept}: \`clone repair\` that, or write it back first.`;
    return { verdict: "damaged", error: notMetadata(message, hint) };
  }
  if (!hasSuperblockMagic(bytes)) return await probeOther(device, bytes);
  if (device.size < metadataByteLength(MIN_METADATA_BLOCKS)) return tooShort(device, "superblock");
  try {
    verifyBlock(bytes, "superblock", 0, name);
    const superblock = decodeSuperblock(bytes, name);
    const needed = metadataByteLength(superblock.spaceMap.blockCount);
    if (needed > device.size) {
      const message = `"${name}" is truncated: its metadata has ${needed} bytes, of which ${device.size} are there`;
      return { verdict: "truncated", left: "superblock", error: notMetadata(message) };
    }
    return { verdict: "valid", superblock, bytes };
  } catch (caught) {
    if (!(caught instanceof MetadataError)) throw caught;
    return { verdict: "damaged", error: caught };
  }
}

/** What a device is whose first block, `bytes`, is no superblock. @throws {DeviceError} where that cannot be known */
async function probeOther(device: BlockDevice, bytes: Uint8Array): Promise<SuperblockVerdict> {
  const { name } = device;
  const { bytes: seen, failure } = await readWhatCanBe(device, BLOCKS_SEARCHED * BLOCK_SIZE);
  const content = describeContent(seen.subarray(0, CONTENT_SAMPLE_BYTES));
  if (content !== undefined) {
    return {
      verdict: "foreign",
      content,
      error: notMetadata(`"${name}" is not clone metadata: it looks like ${content}`),
    };
  }
  const isZeroed = bytes.every((byte) => byte === 0);
  if (isZeroed && device.size < metadataByteLength(MIN_METADATA_BLOCKS)) {
    return tooShort(device, device.size === 0 ? "nothing" : "zeros");
  }
  if (hasMetadataBlocks(seen)) {
    if (!isZeroed) {
      const message = `The superblock of "${name}" is damaged: its magic number is wrong, but metadata blocks follow it`;
      return { verdict: "damaged", error: notMetadata(message) };
    }
    const message = `The first block of "${name}" is zeroed, but metadata blocks follow it`;
    const hint =
      "It held a clone whose superblock was lost. Do not create a new clone on it before `clone repair` was tried.";
    return { verdict: "unformatted", orphans: true, error: notMetadata(message, hint) };
  }
  if (failure !== undefined) throw failure;
  if (!isZeroed) {
    return { verdict: "foreign", content: undefined, error: notMetadata(`"${name}" is not clone metadata`) };
  }
  const message = `"${name}" is not formatted: its first block is all zero`;
  return { verdict: "unformatted", orphans: false, error: notMetadata(message) };
}

function tooShort({ name, size }: BlockDevice, left: "superblock" | "zeros" | "nothing"): SuperblockVerdict {
  const message = `"${name}" is too short for clone metadata: ${size} bytes`;
  const hint =
    left === "superblock"
      ? "Too little is left of it to be repaired: `clone delete` gives the clone up."
      : "Nothing of a clone is left in it: where none is known that it could belong to, remove it.";
  return { verdict: "truncated", left, error: notMetadata(message, hint) };
}

/** The error for a first block that cannot be opened. */
function notMetadata(message: string, hint?: string): MetadataError {
  return new MetadataError(message, hint === undefined ? { block: 0 } : { block: 0, hint });
}

/**
 * Reads a superblock that can be opened, and its bytes. @throws {MetadataError | DeviceError}
 */
export async function readSuperblock(device: BlockDevice): Promise<{ superblock: Superblock; bytes: Uint8Array }> {
  const probed = await probeSuperblock(device);
  if (probed.verdict !== "valid") throw probed.error;
  return probed;
}

/** Takes a verified block apart and checks every field's range. @throws {MetadataError} */
function decodeSuperblock(bytes: Uint8Array, name: string): Superblock {
  const view = viewOf(bytes);
  const check = (holds: boolean, what: string): void => {
    if (!holds) throw new MetadataError(`The superblock of "${name}" is damaged: ${what}`, { block: 0 });
  };
  const version = view.getUint32(40, true);
  if (version !== VERSION) {
    throw new MetadataError(`"${name}" has clone metadata of version ${version}; only version ${VERSION} is known`, {
      block: 0,
    });
  }
  const regionSectors = readU64(view, 172);
  const targetSectors = readU64(view, 180);
  const regionSize = regionSectors * SECTOR_SIZE;
  const size = targetSectors * SECTOR_SIZE;
  check(isRegionSize(regionSize), `region_size is ${regionSectors} sectors`);
  check(targetSectors > 0 && Number.isSafeInteger(size), `target_size is ${targetSectors} sectors`);
  const regionCount = Math.ceil(size / regionSize);
  check(regionCount <= MAX_REGION_COUNT, `it has ${regionCount} regions, more than ${MAX_REGION_COUNT}`);

  const blockCount = readU64(view, 44);
  check(
    blockCount >= MIN_METADATA_BLOCKS && blockCount <= MAX_METADATA_BLOCKS,
    `nr_blocks is ${blockCount}, not from ${MIN_METADATA_BLOCKS} to ${MAX_METADATA_BLOCKS}`,
  );
  // Before memory is taken for the regions: their bits fill blocks of their own.
  const arrayBlocks = arrayBlockCountOf(Math.ceil(regionCount / 64));
  check(arrayBlocks < blockCount, `the bits of ${regionCount} regions do not fit ${blockCount} blocks`);
  const root = (offset: number, field: string): number => {
    const block = readU64(view, offset);
    check(block > 0 && block < blockCount, `${field} is block ${block} of ${blockCount}`);
    return block;
  };
  return {
    geometry: new Geometry({ size, regionSize }),
    spaceMap: {
      blockCount,
      allocatedCount: readU64(view, 52),
      indexBlock: root(60, "bitmap_root"),
      refCountRoot: root(68, "ref_count_root"),
    },
    bitsetRoot: root(188, "bitset_root"),
  };
}

/** Whether metadata blocks, or a descriptor, lie behind the first block. `bytes` begins with that. */
function hasMetadataBlocks(bytes: Uint8Array): boolean {
  for (let at = BLOCK_SIZE; at + BLOCK_SIZE <= bytes.length; at += BLOCK_SIZE) {
    const block = bytes.subarray(at, at + BLOCK_SIZE);
    if (classifyBlock(block) !== undefined || beginsSlot(block)) return true;
  }
  return false;
}

/**
 * The first `length` bytes of a device, or all of a shorter one. Blocks that cannot be read are zero, and `failure` says why
 * the first of them could not.
 * @throws {DeviceError} where the device is away
 */
async function readWhatCanBe(
  device: BlockDevice,
  length: number,
): Promise<{ bytes: Uint8Array; failure: DeviceError | undefined }> {
  const bytes = new Uint8Array(Math.min(device.size, length));
  const readPart = async (at: number, part: Uint8Array): Promise<DeviceError | undefined> => {
    try {
      await device.read(at, part);
      return undefined;
    } catch (error) {
      if (!(error instanceof DeviceError) || error.away) throw error;
      return error;
    }
  };
  let failure: DeviceError | undefined;
  if ((await readPart(0, bytes)) === undefined) return { bytes, failure };
  for (let at = 0; at < bytes.length; at += BLOCK_SIZE) {
    const block = bytes.subarray(at, at + BLOCK_SIZE);
    const reason = await readPart(at, block);
    if (reason === undefined) continue;
    block.fill(0);
    failure ??= reason;
  }
  return { bytes, failure };
}

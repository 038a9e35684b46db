/**
 * The envelope of every metadata block: a checksum over bytes 4 … 4095 and the block's own number, so that damage,
 * a block of another type and a block that turns up at the wrong place are told apart.
 *
 *     csum (bytes 0 … 3) = CRC-32C register over bytes 4 … 4095, started at 0xFFFFFFFF, not inverted at the end, XOR K
 *
 * K differs by block type, so a block of unknown type can be classified from its bytes alone. (Kernel: `dm_bm_checksum`
 * and the validators of `dm-btree-spine.c`, `dm-array.c`, `dm-space-map-common.c`, `dm-clone-metadata.c`.)
 */
import { crc32c } from "@node-rs/crc32";
import { MetadataError } from "../base/errors.ts";

/** Bytes per metadata block (`DM_CLONE_METADATA_BLOCK_SIZE`). */
export const BLOCK_SIZE = 4096;

/** What a block can be. */
export type BlockType = "superblock" | "node" | "array" | "index" | "bitmap";

interface Envelope {
  /** What the checksum is XORed with. */
  k: number;
  /** Byte offset of the 64-bit block number. */
  blockOffset: number;
  /** How messages call the type, with its article. */
  label: string;
}

const ENVELOPES: Readonly<Record<BlockType, Envelope>> = {
  superblock: { k: 257649492, blockOffset: 8, label: "a clone superblock" },
  node: { k: 121107, blockOffset: 8, label: "a btree node" },
  array: { k: 595846735, blockOffset: 16, label: "an array block" },
  index: { k: 160478, blockOffset: 8, label: "a space map index" },
  bitmap: { k: 240779, blockOffset: 8, label: "a space map bitmap" },
};

const TYPE_OF_K = new Map<number, BlockType>(
  (Object.keys(ENVELOPES) as BlockType[]).map((type) => [ENVELOPES[type].k, type]),
);

/** The type with its article, for messages: `an array block`. */
export function describeBlockType(type: BlockType): string {
  return ENVELOPES[type].label;
}

/** A view of all of `bytes`, whatever buffer they lie in. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * A little-endian u64 as a number: exact to 2^53 - 1, and only approximate above, which is still larger than anything
 * valid, so a range check on the result is enough. (bigint would cost ten times as much in the loops this is used in.)
 */
export function readU64(view: DataView, offset: number): number {
  return view.getUint32(offset + 4, true) * 2 ** 32 + view.getUint32(offset, true);
}

/** Stores an exact non-negative integer as a little-endian u64. */
export function writeU64(view: DataView, offset: number, value: number): void {
  view.setUint32(offset, value % 2 ** 32, true);
  view.setUint32(offset + 4, Math.floor(value / 2 ** 32), true);
}

/** The checksum that `bytes` (one block) must carry to be of `type`. */
export function checksumOf(bytes: Uint8Array, type: BlockType): number {
  return (rawChecksum(bytes) ^ ENVELOPES[type].k) >>> 0;
}

/** The type whose checksum `bytes` (one block) carry, or undefined where they are no valid block of any type. */
export function classifyBlock(bytes: Uint8Array): BlockType | undefined {
  return TYPE_OF_K.get((viewOf(bytes).getUint32(0, true) ^ rawChecksum(bytes)) >>> 0);
}

/** The block number that `bytes`, a block of `type`, say they belong at. */
export function storedBlockNumber(bytes: Uint8Array, type: BlockType): number {
  return readU64(viewOf(bytes), ENVELOPES[type].blockOffset);
}

/** Fills in block number and checksum, in place: the last thing done to a block before it is written. */
export function sealBlock(bytes: Uint8Array, type: BlockType, block: number): void {
  const view = viewOf(bytes);
  writeU64(view, ENVELOPES[type].blockOffset, block);
  view.setUint32(0, checksumOf(bytes, type), true);
}

/**
 * Checks that `bytes` are an undamaged block of `type` that belongs at `block`.
 *
 * @throws {MetadataError} saying which of the three ways it is wrong: damaged, of another type, or misplaced. `name` is
 *   the device's, for the message.
 */
export function verifyBlock(bytes: Uint8Array, type: BlockType, block: number, name: string): void {
  if (viewOf(bytes).getUint32(0, true) === checksumOf(bytes, type)) {
    const stored = storedBlockNumber(bytes, type);
    if (stored === block) return;
    throw new MetadataError(
      `Block ${block} of "${name}" is misplaced: it holds ${describeBlockType(type)} that belongs at block ${stored}`,
      { block },
    );
  }
  const expected = describeBlockType(type);
  const actual = classifyBlock(bytes);
  throw new MetadataError(
    actual === undefined
      ? `Block ${block} of "${name}" is damaged: the checksum of ${expected} does not match`
      : `Block ${block} of "${name}" holds ${describeBlockType(actual)} where ${expected} is expected`,
    { block },
  );
}

/** CRC-32C of bytes 4 … 4095 without the final inversion. */
function rawChecksum(bytes: Uint8Array): number {
  return ~crc32c(bytes.subarray(4)) >>> 0;
}

/**
 * One slot of the descriptor, 64 KiB, little-endian:
 *
 *     offset  size
 *          0     8  magic "dmclone" and a zero byte
 *          8     4  CRC-32C (the standard one) of bytes 12 … 63 + length
 *         12     2  major version, 1: another one cannot be read
 *         14     2  minor version: a higher one only adds fields to the payload
 *         16     8  sequence number, 1 or more; of two valid slots the higher one counts
 *         24     8  target_size  ┐ of the metadata that the descriptor belongs to,
 *         32     8  region_size  ├ as its superblock has them (sectors, sectors, blocks);
 *         40     8  nr_blocks    ┘ in any other place the slot is void
 *         48     4  length of the payload, bytes
 *         52    12  zero
 *         64        payload: a JSON object in UTF-8; the rest of the slot is zero
 */
import { crc32c } from "@node-rs/crc32";
import { type Geometry, SECTOR_SIZE } from "../base/geometry.ts";

/** Bytes of a slot. */
export const SLOT_BYTES = 65536;
const HEADER_BYTES = 64;
/** Bytes of JSON that a slot has room for. */
export const MAX_PAYLOAD_BYTES = SLOT_BYTES - HEADER_BYTES;
/** The version that this program writes. */
export const MINOR_VERSION = 0;
const MAJOR_VERSION = 1;
const MAGIC = Buffer.from("dmclone\0", "latin1");

/** The metadata that a descriptor belongs to. */
export interface DescriptorPlace {
  geometry: Geometry;
  /** nr_blocks of the metadata: the descriptor stands right behind. */
  blockCount: number;
}

/** What a valid slot holds. */
export interface SlotContent {
  sequence: number;
  minorVersion: number;
  /** JSON, not looked at yet. */
  payload: string;
}

/** What was found where a slot belongs. `reason` is a sentence's end: `slot 1 …`. */
export type Slot =
  | { kind: "empty" }
  | { kind: "unusable"; reason: string }
  /** Of a major version that must not be overwritten. */
  | { kind: "newer"; reason: string }
  | ({ kind: "valid" } & SlotContent);

/** Whether bytes are the beginning of a slot that was written once. */
export function beginsSlot(bytes: Uint8Array): boolean {
  return MAGIC.compare(bytes, 0, MAGIC.length) === 0;
}

/**
 * How much of a slot says anything, bytes, as far as its first sector tells: the rest is zeros that nobody needs to read. `sequence` is
 * what it claims, unchecked; 0 where no slot begins there.
 */
export function slotExtent(sector: Uint8Array): { length: number; sequence: number } {
  if (!beginsSlot(sector)) return { length: HEADER_BYTES, sequence: 0 };
  const head = Buffer.from(sector.buffer, sector.byteOffset, HEADER_BYTES);
  const length = Math.min(SLOT_BYTES, HEADER_BYTES + head.readUInt32LE(48));
  return { length, sequence: Number(head.readBigUInt64LE(16)) };
}

/** A whole slot, ready to be written. @throws {RangeError} if the payload is too long */
export function encodeSlot({ geometry, blockCount }: DescriptorPlace, content: SlotContent): Uint8Array {
  const payload = Buffer.from(content.payload);
  if (payload.length > MAX_PAYLOAD_BYTES) throw new RangeError(`${payload.length} bytes do not fit a descriptor`);
  const slot = Buffer.alloc(SLOT_BYTES);
  MAGIC.copy(slot);
  slot.writeUInt16LE(MAJOR_VERSION, 12);
  slot.writeUInt16LE(content.minorVersion, 14);
  slot.writeBigUInt64LE(BigInt(content.sequence), 16);
  slot.writeBigUInt64LE(BigInt(geometry.size / SECTOR_SIZE), 24);
  slot.writeBigUInt64LE(BigInt(geometry.regionSize / SECTOR_SIZE), 32);
  slot.writeBigUInt64LE(BigInt(blockCount), 40);
  slot.writeUInt32LE(payload.length, 48);
  payload.copy(slot, HEADER_BYTES);
  slot.writeUInt32LE(crc32c(slot.subarray(12, HEADER_BYTES + payload.length)), 8);
  return slot;
}

/** Looks at the 64 KiB where a slot belongs. Never throws, whatever they hold. */
export function decodeSlot({ geometry, blockCount }: DescriptorPlace, bytes: Uint8Array): Slot {
  const slot = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  if (!slot.subarray(0, 8).equals(MAGIC)) {
    return slot.every((byte) => byte === 0) ? { kind: "empty" } : { kind: "unusable", reason: "holds no descriptor" };
  }
  const length = slot.readUInt32LE(48);
  const sound =
    length <= MAX_PAYLOAD_BYTES && crc32c(slot.subarray(12, HEADER_BYTES + length)) === slot.readUInt32LE(8);
  if (!sound) return { kind: "unusable", reason: "has a wrong checksum (an interrupted write, or damage)" };
  const major = slot.readUInt16LE(12);
  if (major !== MAJOR_VERSION)
    return { kind: "newer", reason: `has version ${major}, this program knows ${MAJOR_VERSION}` };
  const belongs =
    slot.readBigUInt64LE(24) === BigInt(geometry.size / SECTOR_SIZE) &&
    slot.readBigUInt64LE(32) === BigInt(geometry.regionSize / SECTOR_SIZE) &&
    slot.readBigUInt64LE(40) === BigInt(blockCount);
  if (!belongs)
    return { kind: "unusable", reason: "belongs to another clone (size, region size or block count differ)" };
  const sequence = slot.readBigUInt64LE(16);
  if (sequence < 1n || sequence >= BigInt(Number.MAX_SAFE_INTEGER)) {
    return { kind: "unusable", reason: `has the impossible sequence number ${sequence}` };
  }
  return {
    kind: "valid",
    sequence: Number(sequence),
    minorVersion: slot.readUInt16LE(14),
    payload: slot.toString("utf8", HEADER_BYTES, HEADER_BYTES + length),
  };
}

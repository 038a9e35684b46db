/**
 * A superblock that is lost: zeroed, torn, overwritten. There is no second copy, but a checksum is as good as one: of the
 * states that are whole on the device, the one whose superblock would have this checksum is the state that was meant.
 *
 *     block 0 itself     where the checksum in it survived, or all of its fields did and somebody else vouches for the size
 *     the descriptor     records the superblock's checksum when the program let go of the clone, and the lowest free blocks:
 *                        where these are as they were, nobody has committed since
 *
 * A checksum covers the geometry, too. Without one nothing tells which state was the last, and no bit is proved.
 */
import type { Geometry } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { BLOCK_SIZE, type BlockReader, MAX_BLOCK_COUNT, readUint64 } from "./check-blocks.ts";
import { DESCRIPTOR_BYTES, type Descriptor } from "./descriptor.ts";
import { MIN_METADATA_BLOCKS } from "./metadata-size.ts";
import { arrayBlockCount } from "./repair-array.ts";
import { findDescriptors, geometryOf } from "./repair-descriptor.ts";
import { readMark } from "./repair-in-place.ts";
import type { RefusedRepair, ToldGeometry } from "./repair-plan.ts";
import { type WholeState, wholeStates } from "./repair-states.ts";
import { BlockSurvey } from "./repair-survey.ts";
import { areFreeAsLeft, checksumText } from "./settled-witness.ts";

const MAGIC = 0x8af27f64;
/** Bytes of the superblock that have a meaning. */
const FIELDS_END = 196;

/** A clone that the lost superblock may have been of. */
interface Candidate {
  geometry: Geometry;
  blockCount: number;
  descriptor: Descriptor | null;
  /** Whether anything but what is left of block 0 says so. */
  isVouchedFor: boolean;
}

/** What takes the place of the lost superblock. */
export interface RecoveredSuperblock {
  geometry: Geometry;
  blockCount: number;
  descriptor: Descriptor | null;
  /** The last state; null where nothing tells which it was. */
  state: WholeState | null;
  /** Whether that is the one that the descriptor records, and nobody has committed since (`settled-witness.ts`). */
  isAsLeft: boolean;
}

/**
 * Finds out what the lost superblock said.
 * @throws the signal's reason
 */
export async function recoverSuperblock(
  device: BlockDevice,
  reader: BlockReader,
  told: ToldGeometry | undefined,
): Promise<RecoveredSuperblock | Pick<RefusedRepair, "reason" | "hint">> {
  const first = await reader.read(0);
  const left = typeof first === "string" ? new Uint8Array(BLOCK_SIZE) : first.bytes;
  const backup = readMark(left);
  if (backup !== undefined) return interrupted(backup);

  const survey = await BlockSurvey.take(reader, Math.min(reader.blocksOnDevice, MAX_BLOCK_COUNT));
  if (survey.blocksOf("array block", 1).length === 0) return { reason: "it is no clone's metadata" };
  const candidates = await findCandidates(device, reader, left, told);
  const settled: RecoveredSuperblock[] = [];
  for (const candidate of candidates) {
    const states = await wholeStates(reader, survey, candidate);
    const current = states.find(({ superblock }) => isWitness(left, superblock, candidate));
    const state = await findSettled(device, candidate, states);
    if (current !== undefined) return { ...candidate, state: current, isAsLeft: current === state };
    if (state !== null) settled.push({ ...candidate, state, isAsLeft: true });
  }
  const vouched = candidates.filter(({ isVouchedFor }) => isVouchedFor);
  const [candidate, another] = settled.length > 0 ? settled : vouched.map(withoutState);
  if (candidate === undefined) return NOTHING_VOUCHES;
  if (another === undefined || another.descriptor === null) return candidate;
  return {
    reason: "its superblock is lost, and there are descriptors of two clones",
    hint: told === undefined ? "Tell which by --size and --region-size." : "Both are of the size that was given.",
  };
}

const NOTHING_VOUCHES = {
  reason: "its superblock is lost, and nothing tells the size of the clone",
  hint: "--size and --region-size do, where you know them: that of the destination, and that of the table or of `clone create`.",
};

function withoutState(candidate: Candidate): RecoveredSuperblock {
  return { ...candidate, state: null, isAsLeft: false };
}

function interrupted(backup: string): Pick<RefusedRepair, "reason" | "hint"> {
  const named = backup === "" ? "the backup" : JSON.stringify(backup);
  return {
    reason: "an earlier repair in place was cut off",
    hint: `What it was to replace is in ${named}: repair that with --output, or write it back first.`,
  };
}

async function findCandidates(
  device: BlockDevice,
  reader: BlockReader,
  left: Uint8Array,
  told: ToldGeometry | undefined,
): Promise<Candidate[]> {
  const found = await findDescriptors(device, reader);
  const candidates: Candidate[] = found
    .filter(({ place }) => hasRoomForBits(place))
    .filter(({ place }) => told === undefined || isSameSize(place.geometry, told))
    .map(({ place, descriptor }) => ({ ...place, descriptor, isVouchedFor: true }));
  const remains = readRemains(left);
  const geometry = told === undefined ? null : geometryOf(told);
  if (geometry !== null) {
    // As many as block 0 says, as fill the device, or as leave room for a descriptor.
    const possible = [
      remains?.blockCount,
      reader.blocksOnDevice,
      reader.blocksOnDevice - DESCRIPTOR_BYTES / BLOCK_SIZE,
    ];
    for (const blocks of possible) {
      const blockCount = Math.min(blocks ?? 0, MAX_BLOCK_COUNT);
      if (blockCount >= MIN_METADATA_BLOCKS) {
        candidates.push({ geometry, blockCount, descriptor: null, isVouchedFor: true });
      }
    }
  }
  if (remains !== null && (told === undefined || isSameSize(remains.geometry, told))) candidates.push(remains);
  return candidates;
}

/** Else it would take memory for bits that are nowhere; what the user tells is believed. */
function hasRoomForBits({ geometry, blockCount }: Pick<Candidate, "geometry" | "blockCount">): boolean {
  return arrayBlockCount(geometry) < blockCount;
}

function isSameSize(geometry: Geometry, told: ToldGeometry): boolean {
  return geometry.size === told.size && geometry.regionSize === told.regionSize;
}

/** What is left of block 0, where it is possible at all. */
function readRemains(left: Uint8Array): Candidate | null {
  const view = new DataView(left.buffer, left.byteOffset, left.length);
  const geometry = geometryOf({ size: readUint64(view, 180) * 512, regionSize: readUint64(view, 172) * 512 });
  const blockCount = readUint64(view, 44);
  const isPossible = blockCount >= MIN_METADATA_BLOCKS && blockCount <= MAX_BLOCK_COUNT;
  if (readUint64(view, 32) !== MAGIC || geometry === null || !isPossible) return null;
  if (!hasRoomForBits({ geometry, blockCount })) return null;
  return { geometry, blockCount, descriptor: null, isVouchedFor: false };
}

/** The state that the descriptor records, where nobody has committed since: then it is the last. */
async function findSettled(
  device: BlockDevice,
  { descriptor }: Candidate,
  states: readonly WholeState[],
): Promise<WholeState | null> {
  const settled = descriptor?.destination.settled;
  const state = states.find(({ superblock }) => checksumText(superblock) === settled?.superblock);
  if (settled == null || state === undefined) return null;
  return (await areFreeAsLeft(device, settled)) ? state : null;
}

/** Whether what is left of block 0 tells that this is what stood there. */
function isWitness(left: Uint8Array, superblock: Uint8Array, { isVouchedFor }: Candidate): boolean {
  if (Buffer.compare(left.subarray(0, 4), superblock.subarray(0, 4)) === 0) return true;
  return isVouchedFor && Buffer.compare(left.subarray(4, FIELDS_END), superblock.subarray(4, FIELDS_END)) === 0;
}

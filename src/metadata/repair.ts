/**
 * Repair: new metadata from what damaged metadata still proves. Nothing is changed here; the plan is written elsewhere.
 *
 * What has to be known of a clone is its geometry and one bit for each region. Everything else (counts, hints, leaked
 * blocks, the tree, spare bytes) follows from that, and is made anew. So this is about what proves a bit:
 *
 *  1. It stands in a sound array block, reached from a sound superblock through sound nodes under its key. Sound: checksum,
 *     own number, shape. This is all that the kernel itself goes by.
 *     And the space map does not contradict the leaf (`repair-contradicted.ts`).
 *  2. The space map of the same commit calls the array block in use, the counts add up, and it cannot be another key's
 *     (`repair-in-use.ts`).
 *  3. The descriptor's digest of the bits of this very state demands it (`repair-digest.ts`); where it does not fit, nothing
 *     is believed.
 *  4. Two older blocks of metadata that was blank when formatted have it, which can be no other key's (`repair-older.ts`).
 *  5. The finalize record says that the destination is complete, but for unreadable regions.
 *
 * A region without such proof is unknown, and is never called hydrated by itself: it would read as whatever the destination
 * held before. Nor is it called unhydrated by itself, since it would be copied again over what a client may have written,
 * unless descriptor and destination prove that no client ever did (`repair-decide.ts`). What is left is for `compare` to find
 * equal on both sides, when it may be called either, and for the user to decide.
 *
 * No proof by itself, however sound it looks, is what lies in free space: formatting does not wipe a device, array blocks do not say
 * whose and for which regions they are, and their places are used again.
 */

import { UsageError } from "../base/errors.ts";
import type { Geometry } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { checkMetadata } from "./check.ts";
import { BlockReader } from "./check-blocks.ts";
import { BlockReferences } from "./check-references.ts";
import { type CheckReport, FindingList } from "./check-report.ts";
import { checkSuperblock } from "./check-superblock.ts";
import { goneOn } from "./describe-anew.ts";
import type { Descriptor } from "./descriptor.ts";
import { writeFormatted } from "./format-image.ts";
import { minimumBlockCount, recommendedBlockCount } from "./metadata-size.ts";
import { RegionBitmap } from "./region-bitmap.ts";
import { arrayBlockCount, regionsUnder } from "./repair-array.ts";
import { ProvenBits } from "./repair-bitset.ts";
import { contradictedKeys } from "./repair-contradicted.ts";
import { decideUnknown } from "./repair-decide.ts";
import { geometryOf, readDescriptor } from "./repair-descriptor.ts";
import { type DigestRequest, type DigestVerdict, proveByDigest } from "./repair-digest.ts";
import { findInUse } from "./repair-in-use.ts";
import { salvageOlder } from "./repair-older.ts";
import type {
  PlannedRepair,
  RefusedRepair,
  RepairAccount,
  RepairPlan,
  RepairRequest,
  ToldGeometry,
} from "./repair-plan.ts";
import { readCounts, type SpaceMapPlace } from "./repair-space-map.ts";
import { recoverSuperblock } from "./repair-superblock.ts";
import { BlockSurvey } from "./repair-survey.ts";
import { describeFindings, noBits } from "./repair-words.ts";
import { areCountsAsLeft, isAsLeft } from "./settled-witness.ts";

export type {
  Assumption,
  ComparedState,
  CompareRegions,
  PlannedRepair,
  RefusedRepair,
  RepairAccount,
  RepairPlan,
  RepairRequest,
  ToldGeometry,
} from "./repair-plan.ts";

const LOST_DESCRIPTOR =
  "The descriptor, which names source and destination, cannot be read: name them from now on with --source and --destination";

const LOST_SLOT =
  "One of the two slots of the descriptor, perhaps the newer one: what was recorded last may be missing";

/** The state of the clone at its last commit, as far as it can be found. */
interface LiveState {
  geometry: Geometry;
  blockCount: number;
  descriptor: Descriptor | null;
  /** Where the tree and the space map begin; null where the superblock is lost and nothing tells. */
  roots: Omit<SpaceMapPlace, "blockCount"> | null;
  /** Whether nobody has committed since the program let go of the clone, as far as that can be proved (`settled-witness.ts`). */
  isAsLeft: boolean;
}

/**
 * Finds out what can be made of damaged metadata, reading it only. Sound metadata is no error: the plan is then the same
 * content anew. Memory is bounded by the regions and managed blocks, whatever the damage.
 *
 * @param device the whole metadata file or device, descriptor included
 * @throws {UsageError} where the geometry that is told is impossible, or a sound superblock says another one
 * @throws the signal's reason once it is aborted, and what `compare` throws
 */
export async function planRepair(device: BlockDevice, request: RepairRequest = {}): Promise<RepairPlan> {
  const { signal, geometry: told } = request;
  if (told !== undefined && geometryOf(told) === null) {
    throw new UsageError(
      `Cannot repair "${device.name}": no clone has ${told.size} bytes in regions of ${told.regionSize}`,
    );
  }
  const before = await checkMetadata(device, signal === undefined ? {} : { signal });
  const account = newAccount(before);
  const reader = new BlockReader(device, signal);
  const live = await findLive(device, reader, account, request);
  if ("reason" in live) return { ok: false, ...account, ...live };
  const { warnings } = await readDescriptor(device, live);
  if (warnings.length > 0) account.lost.push(live.descriptor === null ? LOST_DESCRIPTOR : LOST_SLOT);

  const { geometry } = live;
  const { proven, unknown } = await findBits(reader, live, account);
  account.exact.push(...describeFindings(before));
  const isExact = unknown.nextSet(0) === unknown.size;
  if (!isExact) await decideUnknown({ ...live, hydrated: proven.hydrated, unknown }, account, request);
  account.unknown = [...unknown.ranges()]; // not pushed: they may be more than a call takes arguments
  if (account.unknown.length > 0) return { ok: false, ...account, ...noBits(account.unknown, request) };
  const blockCount = enoughBlocks(live.blockCount, geometry, account);
  const descriptor = describeRepaired(live, isExact);
  return { ok: true, ...account, geometry, blockCount, bits: proven.hydrated, descriptor };
}

/**
 * Writes repaired metadata as the kernel would format it with these bits, block 0 last, and the descriptor; durable on
 * return. What else the device holds behind stays. `isBlank`: whether the device is known to be all zero before.
 *
 * @throws {UsageError | RangeError} where the device is too small
 * @throws {DeviceError} after which the device holds no clone
 */
export async function writeRepaired(
  { geometry, blockCount, bits, descriptor }: Pick<PlannedRepair, "geometry" | "blockCount" | "bits" | "descriptor">,
  device: BlockDevice,
  { isBlank = false }: { isBlank?: boolean } = {},
): Promise<void> {
  await writeFormatted(device, { geometry, blockCount, bits, descriptor, isBlank });
}

function newAccount(before: CheckReport): RepairAccount {
  return {
    before,
    exact: [],
    salvaged: [],
    unknown: [],
    compared: null,
    copiedAgain: [],
    assumed: null,
    lost: [],
  };
}

async function findLive(
  device: BlockDevice,
  reader: BlockReader,
  account: RepairAccount,
  { geometry: told }: RepairRequest,
): Promise<LiveState | Pick<RefusedRepair, "reason" | "hint">> {
  const ignored = { fatal: new FindingList(), warnings: new FindingList() };
  const superblock = await checkSuperblock(reader, device.size, ignored);
  if (typeof superblock === "string") return await withoutSuperblock(device, reader, account, told);
  const geometry = geometryOf({ size: superblock.targetSectors * 512, regionSize: superblock.regionSectors * 512 });
  const { blockCount, bitmapRoot, referenceCountRoot, bitsetRoot } = superblock;
  // Bits that no metadata of that size has room for are not worth the memory that they would take.
  if (geometry === null || blockCount === null || arrayBlockCount(geometry) >= blockCount) {
    return await withoutSuperblock(device, reader, account, told);
  }
  if (told !== undefined && (told.size !== geometry.size || told.regionSize !== geometry.regionSize)) {
    const { size, regionSize } = geometry;
    throw new UsageError(
      `Cannot repair "${device.name}": its superblock is sound and says ${size} bytes in regions of ${regionSize}, which is not what --size and --region-size say`,
    );
  }
  const { descriptor } = await readDescriptor(device, { geometry, blockCount });
  const settled = descriptor?.destination.settled;
  const unchanged = settled != null && (await isAsLeft(device, settled));
  const roots = { bitmapRoot, referenceCountRoot, bitsetRoot };
  return { geometry, blockCount, descriptor, roots, isAsLeft: unchanged };
}

async function withoutSuperblock(
  device: BlockDevice,
  reader: BlockReader,
  account: RepairAccount,
  told: ToldGeometry | undefined,
): Promise<LiveState | Pick<RefusedRepair, "reason" | "hint">> {
  const recovered = await recoverSuperblock(device, reader, told);
  if ("reason" in recovered) return recovered;
  const { geometry, blockCount, descriptor, state } = recovered;
  account.exact.push(
    state === null
      ? "The superblock: its sizes are known, but not which of the states found is the last one"
      : "The superblock: its checksum tells which of the states found is the last one",
  );
  return { geometry, blockCount, descriptor, roots: state, isAsLeft: recovered.isAsLeft };
}

/** Everything that is proved, and the regions of which nothing is. */
async function findBits(
  reader: BlockReader,
  live: LiveState,
  account: RepairAccount,
): Promise<{ proven: ProvenBits; unknown: RegionBitmap }> {
  const { geometry, blockCount, roots, descriptor } = live;
  const references = new BlockReferences(blockCount);
  const proven = new ProvenBits(geometry);
  const settled = descriptor?.destination.settled;
  let counts = roots && (await readCounts(reader, references, { blockCount, ...roots }));
  if (counts !== null && settled != null && live.isAsLeft && !areCountsAsLeft(counts, settled)) counts = null;
  if (roots !== null) await proven.read(reader, references, roots.bitsetRoot);

  const unknown = new RegionBitmap(geometry.regionCount);
  for (const key of proven.lostKeys) unknown.setRange(regionsUnder(key, key + 1, geometry));
  if (counts !== null && proven.lostKeys.length > 0) {
    const { exactKeys, partlyKnownKeys } = await findInUse(reader, { counts, references, proven, unknown });
    if (exactKeys.length > 0) account.exact.push("The tree over the array blocks: made anew from the blocks in use");
    if (partlyKnownKeys.length > 0) {
      account.salvaged.push(
        "What all array blocks in use have in common to which the lost part of the tree may have led",
      );
    }
  }
  let taken: Promise<BlockSurvey> | undefined;
  const survey = (): Promise<BlockSurvey> => {
    taken ??= BlockSurvey.take(reader, Math.min(blockCount, reader.blocksOnDevice));
    return taken;
  };
  const verdict = await askDigest(reader, live, { proven, unknown, survey }, account);
  if (verdict === "nothing") {
    for (const key of contradictedKeys(counts, references, proven)) {
      proven.lose(key);
      unknown.setRange(regionsUnder(key, key + 1, geometry));
    }
  }
  if (verdict !== "refuted" && descriptor?.blank === true && proven.lostKeys.length > 0) {
    for (const key of await salvageOlder(reader, await survey(), { proven, unknown, references })) {
      const { start, end } = regionsUnder(key, key + 1, geometry);
      account.salvaged.push(
        `Regions hydrated by earlier commits, of ${start} to ${end - 1}: two older blocks agree on them`,
      );
    }
  }
  return { proven, unknown };
}

/** Lets the digest that the descriptor records decide, where it is of this very state. */
async function askDigest(
  reader: BlockReader,
  { descriptor, geometry, isAsLeft }: LiveState,
  { proven, unknown, survey }: Pick<DigestRequest, "proven" | "unknown" | "survey">,
  account: RepairAccount,
): Promise<DigestVerdict> {
  const settled = descriptor?.destination.settled;
  if (settled == null || !isAsLeft) return "nothing";
  const verdict = await proveByDigest(reader, { settled, proven, unknown, survey });
  if (verdict === "exact") account.exact.push("An array block: its bits are those that the recorded digest demands");
  if (verdict === "refuted") unknown.setRange({ start: 0, end: geometry.regionCount });
  return verdict;
}

/**
 * The descriptor for the new metadata, above all what it records of the destination when the clone was left:
 *
 *     nobody has gone on since     it is so with the new metadata, if that has the same bits (`describe-anew.ts`)
 *     somebody has                 stays so; of bits that may be fewer now, nothing is said
 *     not known                    as after a run that was cut off
 */
function describeRepaired({ descriptor, isAsLeft, roots }: LiveState, isExact: boolean): Descriptor | null {
  const settled = descriptor?.destination.settled;
  if (descriptor === null || settled == null || isAsLeft) return descriptor;
  const state = roots === null ? null : goneOn(settled, { isOlder: !isExact });
  return { ...descriptor, destination: { ...descriptor.destination, settled: state } };
}

/** As many blocks as before, or more where these were too few for a clone of this size. */
function enoughBlocks(blockCount: number, { regionCount }: Geometry, account: RepairAccount): number {
  if (blockCount >= minimumBlockCount(regionCount)) return blockCount;
  const enough = recommendedBlockCount(regionCount);
  account.exact.push(`The number of metadata blocks: ${blockCount} were too few to be safe, there are ${enough} now`);
  return enough;
}

/**
 * Repair: new metadata from what damaged metadata still proves. Nothing is changed here; the plan is written elsewhere.
 *
 * What has to be known of a clone is its geometry and one bit for each region. Everything else (counts, hints, leaked
 * blocks, the tree, spare bytes) follows from that, and is made anew. So this is about what proves a bit:
 *
 *  1. It stands in a sound array block, reached from a sound superblock through sound nodes under its key. Sound: checksum,
 *     own number, shape. This is all that the kernel itself goes by.
 *  2. The space map of the same commit calls the array block in use, the counts add up, and it cannot be another key's
 *     (`repair-in-use.ts`).
 *  3. The finalize record says that the destination is complete.
 *
 * A region without such proof is unknown, and is never called hydrated by itself: it would read as whatever the destination
 * held before. Nor is it called unhydrated by itself, since it would be copied again over what a client may have written,
 * unless the descriptor proves that no client ever did. What is left is for `compare` to find equal on both sides, when it
 * may be called either, and for the user to decide.
 *
 * Not proof, however sound it looks, is what lies in free space: formatting does not wipe a device, array blocks do not say
 * whose and for which regions they are, and their places are used again.
 */

import type { Geometry, RegionRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { checkMetadata } from "./check.ts";
import { BlockReader } from "./check-blocks.ts";
import { BlockReferences } from "./check-references.ts";
import { type CheckReport, FindingList } from "./check-report.ts";
import { checkSuperblock } from "./check-superblock.ts";
import type { Descriptor } from "./descriptor.ts";
import { writeFormatted } from "./format-image.ts";
import { minimumBlockCount, recommendedBlockCount } from "./metadata-size.ts";
import { RegionBitmap } from "./region-bitmap.ts";
import { regionsUnder } from "./repair-array.ts";
import { ProvenBits } from "./repair-bitset.ts";
import { geometryOf, readDescriptor } from "./repair-descriptor.ts";
import { findInUse } from "./repair-in-use.ts";
import type { PlannedRepair, RefusedRepair, RepairAccount, RepairPlan, RepairRequest } from "./repair-plan.ts";
import { readCounts } from "./repair-space-map.ts";
import { describeFindings, noBits } from "./repair-words.ts";

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

/** The state of the clone at its last commit, as far as it can be found. */
interface LiveState {
  geometry: Geometry;
  blockCount: number;
  bitmapRoot: number;
  referenceCountRoot: number;
  bitsetRoot: number;
  descriptor: Descriptor | null;
}

/**
 * Finds out what can be made of damaged metadata, reading it only. Sound metadata is no error: the plan is then the same
 * content anew. Memory is bounded by the regions and managed blocks, whatever the damage.
 *
 * @param device the whole metadata file or device, descriptor included
 * @throws the signal's reason once it is aborted, and what `compare` throws
 */
export async function planRepair(device: BlockDevice, request: RepairRequest = {}): Promise<RepairPlan> {
  const { signal } = request;
  const before = await checkMetadata(device, signal === undefined ? {} : { signal });
  const account = newAccount(before);
  const reader = new BlockReader(device, signal);
  const live = await findLive(device, reader, account, request);
  if ("reason" in live) return { ok: false, ...account, ...live };

  const { geometry, descriptor } = live;
  const { proven, unknown } = await findBits(reader, live, account);
  account.exact.push(...describeFindings(before));
  if (unknown.nextSet(0) < unknown.size) await decide({ proven, unknown, live }, account, request);
  account.unknown.push(...unknown.ranges());
  if (account.unknown.length > 0) return { ok: false, ...account, ...noBits(account.unknown, request) };
  return {
    ok: true,
    ...account,
    geometry,
    blockCount: enoughBlocks(live.blockCount, geometry, account),
    bits: proven.hydrated,
    descriptor,
  };
}

/**
 * Writes repaired metadata as the kernel would format it with these bits, block 0 last, and the descriptor; durable on
 * return. What else the device holds behind stays.
 *
 * @throws {UsageError | RangeError} where the device is too small
 * @throws {DeviceError} after which the device holds no clone
 */
export async function writeRepaired(
  { geometry, blockCount, bits, descriptor }: Pick<PlannedRepair, "geometry" | "blockCount" | "bits" | "descriptor">,
  device: BlockDevice,
): Promise<void> {
  await writeFormatted(device, { geometry, blockCount, bits, descriptor });
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
  if (typeof superblock === "string") return { reason: "its superblock is lost" };
  const geometry = geometryOf({ size: superblock.targetSectors * 512, regionSize: superblock.regionSectors * 512 });
  if (geometry === null || superblock.blockCount === null) return { reason: "its superblock holds impossible values" };
  if (told !== undefined && (told.size !== geometry.size || told.regionSize !== geometry.regionSize)) {
    return {
      reason: `its superblock is sound and says ${geometry.size} bytes in regions of ${geometry.regionSize}, which is not what was given`,
    };
  }
  const { blockCount, bitmapRoot, referenceCountRoot, bitsetRoot } = superblock;
  const { descriptor, warnings } = await readDescriptor(device, { geometry, blockCount });
  if (descriptor === null && warnings.length > 0) {
    account.lost.push(
      "The descriptor, which names source and destination, cannot be read: name them from now on with --source and --destination",
    );
  }
  return { geometry, blockCount, bitmapRoot, referenceCountRoot, bitsetRoot, descriptor };
}

/** Everything that is proved, and the regions of which nothing is. */
async function findBits(
  reader: BlockReader,
  live: LiveState,
  account: RepairAccount,
): Promise<{ proven: ProvenBits; unknown: RegionBitmap }> {
  const { geometry, blockCount, bitsetRoot } = live;
  const references = new BlockReferences(blockCount);
  const proven = new ProvenBits(geometry);
  const counts = await readCounts(reader, references, live);
  await proven.read(reader, references, bitsetRoot);

  const lost = proven.lostKeys;
  const unknown = new RegionBitmap(lost.length === 0 ? 0 : geometry.regionCount);
  for (const key of lost) unknown.setRange(regionsUnder(key, key + 1, geometry));
  if (counts === null || lost.length === 0) return { proven, unknown };
  const { exactKeys, partlyKnownKeys } = await findInUse(reader, { counts, references, proven, unknown });
  if (exactKeys.length > 0) {
    account.exact.push("The tree over the array blocks: it follows from which blocks the space map calls in use");
  }
  if (partlyKnownKeys.length > 0) {
    account.salvaged.push(
      "Regions that are the same in all array blocks in use to which the lost part of the tree may have pointed",
    );
  }
  return { proven, unknown };
}

/** Decides on what nothing in the metadata proves; what it cannot decide stays unknown. */
async function decide(
  { proven, unknown, live }: { proven: ProvenBits; unknown: RegionBitmap; live: LiveState },
  account: RepairAccount,
  { compare, assume }: RepairRequest,
): Promise<void> {
  const { geometry, blockCount, descriptor } = live;
  const { hydrated } = proven;
  const take = (ranges: Iterable<RegionRange>, isHydrated: boolean): RegionRange[] => {
    const taken = [...ranges];
    for (const range of taken) {
      if (isHydrated) hydrated.setRange(range);
      unknown.clearRange(range);
    }
    return taken;
  };
  if (descriptor?.finalized) {
    take(unknown.ranges(), true);
    account.exact.push("Regions whose array block is damaged: the clone was finalized, so all of them are hydrated");
    return;
  }
  if (compare !== undefined) {
    account.compared = take(await compare({ geometry, blockCount, hydrated, descriptor }, unknown.ranges()), true);
  }
  if (assume !== undefined) {
    const regions = take(unknown.ranges(), assume === "hydrated");
    if (regions.length > 0) account.assumed = { as: assume, regions };
  }
}

/** As many blocks as before, or more where these were too few for a clone of this size. */
function enoughBlocks(blockCount: number, { regionCount }: Geometry, account: RepairAccount): number {
  if (blockCount >= minimumBlockCount(regionCount)) return blockCount;
  const enough = recommendedBlockCount(regionCount);
  account.exact.push(`The number of metadata blocks: ${blockCount} were too few to be safe, there are ${enough} now`);
  return enough;
}

/** What becomes of the regions of which nothing in the metadata proves whether they are hydrated. */
import { countRegions, type Geometry, type RegionRange } from "../base/geometry.ts";
import type { Descriptor } from "./descriptor.ts";
import type { RegionBitmap } from "./region-bitmap.ts";
import type { RepairAccount, RepairRequest } from "./repair-plan.ts";
import { countOf } from "./repair-words.ts";

/** The clone that is decided on. */
interface Undecided {
  geometry: Geometry;
  blockCount: number;
  descriptor: Descriptor | null;
  /** Whether nobody has committed since the program let go of the clone, as far as that can be proved. */
  isAsLeft: boolean;
  /** The regions that are proved to be hydrated, and those of which nothing is. */
  hydrated: RegionBitmap;
  unknown: RegionBitmap;
}

/** Decides, and says so in the account; what it cannot decide stays unknown. @throws what `compare` throws */
export async function decideUnknown(
  { geometry, blockCount, descriptor, isAsLeft, hydrated, unknown }: Undecided,
  account: RepairAccount,
  { compare, assume, isDestinationAsLeft }: RepairRequest,
): Promise<void> {
  const take = (ranges: Iterable<RegionRange>, isHydrated: boolean): RegionRange[] => {
    const taken = [...ranges];
    for (const range of taken) {
      if (isHydrated) hydrated.setRange(range);
      unknown.clearRange(range);
    }
    return taken;
  };
  if (descriptor?.finalized) {
    account.exact.push(decideFinalized(descriptor, { unknown, take }));
    if (unknown.nextSet(0) === unknown.size) return;
  }
  if (compare !== undefined) {
    account.compared = take(await compare({ geometry, blockCount, hydrated, descriptor }, unknown.ranges()), true);
  } else if (isAsLeft && isNeverServed(descriptor) && (await isDestinationAsLeft?.(descriptor)) === true) {
    account.copiedAgain = take(unknown.ranges(), false);
    return;
  }
  if (assume !== undefined) {
    const regions = take(unknown.ranges(), assume === "hydrated");
    if (regions.length === 0) return;
    account.assumed = { as: assume, regions };
    account.lost.push(
      assume === "unhydrated"
        ? `What clients may have written to the ${countOf(regions)} called unhydrated: the source is copied over it`
        : `Those of the ${countOf(regions)} called hydrated that were not: they hold what the destination held before, not the source`,
    );
  }
}

/** A finalized clone is complete but for the regions that were given up as unreadable. */
function decideFinalized(
  { finalized, unreadable }: Descriptor,
  { unknown, take }: { unknown: RegionBitmap; take: (ranges: Iterable<RegionRange>, isHydrated: boolean) => void },
): string {
  const given = [...within(unknown, unreadable.ranges)];
  for (const range of unreadable.ranges) unknown.clearRange(range);
  take(unknown.ranges(), true);
  for (const range of given) unknown.setRange(range);
  const what = "Regions whose array block is damaged: the clone was finalized, so all of them are hydrated";
  if (unreadable.ranges.length === 0) return what;
  // Where there were too many to be listed, some in the list could be read.
  const isExact = !unreadable.inexact && countRegions(unreadable.ranges) === finalized?.unreadableRegions;
  if (isExact) take(given, false);
  return `${what} but those that ${isExact ? "were" : "may have been"} unreadable`;
}

/** The parts of ranges that are in a set. */
function* within(set: RegionBitmap, ranges: readonly RegionRange[]): Generator<RegionRange> {
  for (const { start, end } of ranges) {
    for (let from = set.nextSet(start, end); from < end; ) {
      const until = set.nextUnset(from, end);
      yield { start: from, end: until };
      from = set.nextSet(until, end);
    }
  }
}

/**
 * Whether no client can have written through this program, which records that; nor anybody else before the clone was last
 * left. The kernel since then would have left a commit where it wrote to a region for the first time; where the region was hydrated,
 * only the destination tells.
 */
function isNeverServed(descriptor: Descriptor | null): descriptor is Descriptor {
  return descriptor?.served === false && descriptor.alone === true && descriptor.destination.touched !== true;
}

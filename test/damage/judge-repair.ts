/**
 * Judges repairs of a damaged image by the truth, in both directions:
 *
 *     called hydrated, and is not    never, but where a sealed block says so, or the user does
 *     hydrated, and not called so    only where that is told: copied again, which no client may ever have written to, or by the
 *                                    word of the user; or where a sealed block says so
 *     refused                        never where nothing but counts, hints, leaks and free space was struck; such metadata is
 *                                    repaired exactly, unless a space map of another time contradicts it
 *
 * What the user can be asked for is tried too: both assumptions, and a comparison, for which the truth stands in.
 */
import { checkMetadata, formatFinding } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES } from "../../src/metadata/descriptor.ts";
import { MIN_METADATA_BLOCKS, metadataByteLength } from "../../src/metadata/metadata-size.ts";
import {
  type PlannedRepair,
  planRepair,
  type RepairPlan,
  type RepairRequest,
  writeRepaired,
} from "../../src/metadata/repair.ts";
import { BLOCK, merged, type Range, type Role } from "./base-image.ts";
import { DamagedDevice } from "./damaged-device.ts";
import { bound, type Evidence, rangesOf, same, Violation, without } from "./evidence.ts";

/** What a repair that asks nothing makes of an image. */
export const REPAIR_OUTCOMES = ["sound to repair", "repaired exactly", "repaired partly", "refused by repair"] as const;
export type RepairOutcome = (typeof REPAIR_OUTCOMES)[number];

/** Decisions of a repair, and what tells from its account that it came to them. A campaign of some size meets all. */
export const DECISIONS: Readonly<Record<string, (plan: RepairPlan) => boolean>> = {
  "trees made anew": ({ exact }) => exact.some((line) => /^The tree over/.test(line)),
  "known in common": ({ salvaged }) => salvaged.some((line) => /have in common/.test(line)),
  "proved by the digest": ({ exact }) => exact.some((line) => /recorded digest/.test(line)),
  "salvaged from older blocks": ({ salvaged }) => salvaged.some((line) => /two older blocks/.test(line)),
  "last states found": ({ exact }) => exact.some((line) => /^The superblock: its checksum/.test(line)),
  "finalized, so hydrated": ({ exact }) => exact.some((line) => /was finalized/.test(line)),
  "copied again": ({ copiedAgain }) => copiedAgain.length > 0,
  compared: ({ compared }) => compared !== null && compared.length > 0,
  "assumed hydrated": ({ assumed }) => assumed?.as === "hydrated" && assumed.regions.length > 0,
  "assumed unhydrated": ({ assumed }) => assumed?.as === "unhydrated" && assumed.regions.length > 0,
};

/** Nothing that these say is needed where all the others are sound. */
const SPARE: ReadonlySet<Role> = new Set<Role>(["index", "reference counts", "bitmap"]);
/** Regions of one repair that are looked at one by one. */
const MOST_REGIONS = 20_000;

/** Bytes of the largest image that a repair writes here. */
const MOST_WRITTEN = 2 ** 28;

/** Repairs one image in all ways. */
export class RepairJudgement {
  readonly #evidence: Evidence;
  readonly #count: (decision: string) => void;

  /** @param count is told of each decision that a repair comes to */
  constructor(evidence: Evidence, count: (decision: string) => void) {
    this.#evidence = evidence;
    this.#count = count;
  }

  /** @throws {Violation} */
  async judge(): Promise<RepairOutcome> {
    const { truth } = this.#evidence.base;
    const before = await checkMetadata(this.#evidence.device());
    const plan = await this.#repair({});
    // Where something is unknown, the user is asked.
    if (plan === null || !same(plan, truth)) {
      await this.#repair({ compare: async (_, unknown) => this.#equal(unknown) });
      await this.#repair({ assume: "unhydrated" });
      await this.#repair({ assume: "hydrated" });
    }
    if (plan === null) return "refused by repair";
    if (before.ok && before.warnings.length === 0) return "sound to repair";
    return same(plan, truth) ? "repaired exactly" : "repaired partly";
  }

  /** Regions that are the same on both sides: what is hydrated, where no client has written, and nothing else. */
  #equal(unknown: Iterable<{ start: number; end: number }>): { start: number; end: number }[] {
    const asked = merged([...unknown].map(({ start, end }): Range => [start, end]));
    const unequal = without(asked, this.#evidence.base.truth);
    return without(asked, unequal).map(([start, end]) => ({ start, end }));
  }

  /** The hydrated regions of what a repair writes, or null where it refuses. */
  async #repair(asked: RepairRequest): Promise<Range[] | null> {
    // The destination is as it was left, unless somebody has written to it besides the program.
    const { isDestinationAsLeft } = this.#evidence.base.story;
    const request = { isDestinationAsLeft: async () => isDestinationAsLeft, ...asked };
    const device = this.#evidence.device();
    const plan = await planRepair(device, request);
    bound("repair", device);
    for (const [decision, isIn] of Object.entries(DECISIONS)) if (isIn(plan)) this.#count(decision);
    const { struck, damage } = this.#evidence;
    // Less than the smallest metadata is taken for none at all, whatever is in it.
    const isWhole = damage.size >= MIN_METADATA_BLOCKS * BLOCK;
    const isSpare =
      isWhole && [...struck.values()].every((role) => SPARE.has(role)) && !this.#evidence.isAnotherSpaceMap;
    if (!plan.ok) {
      if (plan.reason === "" || /\n/.test(plan.reason))
        throw new Violation(`a repair is refused with "${plan.reason}"`);
      if (isSpare) throw new Violation(`a repair that needs nothing of what was struck is refused: ${plan.reason}`);
      if (request.assume !== undefined && plan.unknown.length > 0)
        throw new Violation(`regions are unknown still, told to call them ${request.assume}`);
      return null;
    }
    const ranges = await this.#written(plan);
    this.#judgeAccount(plan, request);
    this.#judgeBits(plan, ranges);
    if (isSpare && !same(ranges, this.#evidence.base.truth)) throw new Violation("a repair is not exact that can be");
    return ranges;
  }

  async #written(plan: PlannedRepair): Promise<Range[]> {
    const size = metadataByteLength(plan.blockCount) + DESCRIPTOR_BYTES;
    // A superblock that was forged and sealed may ask for gigabytes, which are left unwritten.
    if (size > MOST_WRITTEN) return [...plan.bits.ranges()].map(({ start, end }): Range => [start, end]);
    const repaired = new DamagedDevice(Buffer.alloc(size), new Map(), { readOnly: false });
    await writeRepaired(plan, repaired);
    const { verdict, fatal, warnings } = await checkMetadata(repaired);
    const findings = [...fatal, ...warnings].map(formatFinding);
    // What an older superblock has cost stays lost, and stays to be told.
    const isOlder =
      verdict === "warnings" && findings.length === 1 && /when the clone was left/.test(findings[0] ?? "");
    if (verdict !== "clean" && !isOlder)
      throw new Violation(`what repair writes is ${verdict}: ${findings.join(" | ")}`);
    return rangesOf(await CloneMetadata.open(repaired, { readOnly: true }));
  }

  /** What a repair says of itself. */
  #judgeAccount(
    { unknown, copiedAgain, assumed, lost, compared }: PlannedRepair,
    { assume, compare }: RepairRequest,
  ): void {
    if (unknown.length > 0) throw new Violation("a repair goes on though regions are unknown");
    if (copiedAgain.length > 0 && !this.#evidence.base.story.isNeverWritten)
      throw new Violation("regions are copied again that a client may have written to");
    if (copiedAgain.length > 0 && compare !== undefined)
      throw new Violation("regions are copied again that a comparison has found different");
    if (assumed !== null && assumed.as !== assume) throw new Violation("regions are assumed that nobody said to");
    if (assumed !== null && lost.length === 0) throw new Violation("what is lost by assuming is not said");
    if (compared !== null && compare === undefined) throw new Violation("regions are compared that nobody said to");
  }

  #judgeBits({ copiedAgain, assumed }: PlannedRepair, ranges: readonly Range[]): void {
    const { truth } = this.#evidence.base;
    const listed = merged([...copiedAgain, ...(assumed?.regions ?? [])].map(({ start, end }): Range => [start, end]));
    const byUser = merged(assumed?.as === "hydrated" ? listed : []);
    this.#explain(without(without(ranges, truth), byUser), true);
    this.#explain(without(without(truth, ranges), listed), false);
  }

  /** @throws {Violation} where nothing but the repair itself says so */
  #explain(wrong: readonly Range[], isHydrated: boolean): void {
    let left = MOST_REGIONS;
    for (const [start, end] of wrong) {
      for (let region = start; region < end && left > 0; region++, left--) {
        if (this.#evidence.isMisled(region) || this.#evidence.isSaidByArray(region, isHydrated)) continue;
        const what = isHydrated ? "calls hydrated" : "loses, without a word,";
        throw new Violation(
          `repair ${what} region ${region}, which is read from ${this.#evidence.describePath(region)}`,
        );
      }
    }
  }
}

/** What a repair says of what it found, in plain words. */
import { countRegions, type RegionRange } from "../base/geometry.ts";
import type { CheckedStructure, CheckReport } from "./check-report.ts";
import type { RefusedRepair, RepairRequest } from "./repair-plan.ts";

/** What is made anew where a part has findings; of the bitset the bits themselves decide. */
const MADE_ANEW: Partial<Record<CheckedStructure, string>> = {
  "index block": "The index of the space map: made anew",
  "bitmap block": "The counts of the blocks in use: made anew",
  "space map": "The counts of the blocks in use: made anew",
  "reference-count node": "The tree of reference counts: made anew",
};

/** What of the damage found follows from what is left, and is made anew. */
export function describeFindings({ fatal, warnings }: CheckReport): string[] {
  const parts = new Set<string>();
  for (const { structure } of [...fatal, ...warnings]) {
    const part = MADE_ANEW[structure];
    if (part !== undefined) parts.add(part);
  }
  for (const { structure } of warnings) {
    if (structure === "superblock") parts.add("The superblock: made anew");
    if (structure === "array block") parts.add("Bits beyond the last region: cleared");
  }
  return [...parts];
}

/** `1 region`, `12 regions`. */
export function countOf(ranges: readonly RegionRange[]): string {
  const count = countRegions(ranges);
  return count === 1 ? "1 region" : `${count} regions`;
}

/** Why nothing can be written where regions are left of which nothing is known. */
export function noBits(unknown: RegionRange[], { compare }: RepairRequest): Pick<RefusedRepair, "reason" | "hint"> {
  const regions = `${countOf(unknown)} ${countRegions(unknown) === 1 ? "is" : "are"}`;
  const compared = compare === undefined ? "" : ", and source and destination differ there";
  const ways =
    compare === undefined ? "--compare finds those that are equal in source and destination; --assume" : "--assume";
  return {
    reason: `whether ${regions} hydrated cannot be known${compared}`,
    hint: `${ways} unhydrated copies the rest again, over what clients may have written there; --assume hydrated keeps what the destination holds, copied or not.`,
  };
}

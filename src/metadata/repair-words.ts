/** What a repair says of what it found, in plain words. */
import { countRegions, type RegionRange } from "../base/geometry.ts";
import type { CheckedStructure, CheckReport } from "./check-report.ts";
import type { RefusedRepair, RepairRequest } from "./repair-plan.ts";

/** What is made anew where a part has findings; of the others the bits decide. */
const MADE_ANEW: Partial<Record<CheckedStructure, string>> = {
  superblock: "The superblock",
  "index block": "The index of the space map",
  "bitmap block": "The counts of the blocks in use",
  "space map": "The counts of the blocks in use",
  "reference-count node": "The tree of reference counts",
  "bitset node": "The tree over the array blocks",
  "array block": "The array blocks",
  bitset: "The tree over the array blocks",
};

/** What of the damage found follows from what is left, and is made anew. */
export function describeFindings({ fatal, warnings }: CheckReport): string[] {
  const parts = new Set<string>();
  for (const { structure } of [...fatal, ...warnings]) {
    const part = MADE_ANEW[structure];
    if (part !== undefined) parts.add(`${part}: made anew`);
  }
  return [...parts];
}

/** Why nothing can be written where regions are left of which nothing is known. */
export function noBits(unknown: RegionRange[], { compare }: RepairRequest): Pick<RefusedRepair, "reason" | "hint"> {
  const count = countRegions(unknown);
  const regions = count === 1 ? "1 region is" : `${count} regions are`;
  const compared = compare === undefined ? "" : ", and source and destination differ there";
  const ways =
    compare === undefined ? "--compare finds those that are equal in source and destination; --assume" : "--assume";
  return {
    reason: `whether ${regions} hydrated cannot be known${compared}`,
    hint: `${ways} unhydrated copies the rest again, over what clients may have written there; --assume hydrated keeps what the destination holds, copied or not.`,
  };
}

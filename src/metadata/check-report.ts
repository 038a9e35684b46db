/**
 * What a check of the metadata found. The lists are bounded whatever the input: of each kind of finding (one
 * structure, one severity) the first fifty are kept and the rest counted in a line of their own, so that four thousand
 * broken array blocks do not hide the one broken bitmap.
 */

/** The parts of the metadata that findings speak of. */
export type CheckedStructure =
  | "device"
  | "superblock"
  | "index block"
  | "bitmap block"
  | "space map"
  | "reference-count node"
  | "bitset node"
  | "array block"
  | "bitset"
  | "descriptor";

/** One thing that is not as the format says. */
export interface Finding {
  /** The 4096-byte block that shows it, or null where it concerns the whole. */
  block: number | null;
  structure: CheckedStructure;
  /** One sentence without a location: what is wrong and, where it matters, what follows from it. */
  message: string;
}

/**
 * The result in one word.
 *
 * - `clean`: nothing found
 * - `warnings`: usable as it is; what was found can be repaired
 * - `damaged`: at least one fatal finding
 * - `too-short`: fewer than the 6 blocks that any metadata has
 * - `not-formatted`: the first block is all zero, which the kernel would format
 * - `foreign`: the first block is no dm-clone superblock
 */
export type CheckVerdict = "clean" | "warnings" | "damaged" | "too-short" | "not-formatted" | "foreign";

/** What the metadata says, as far as it could be read; null for what damage hides. Sizes in bytes. */
export interface CheckFacts {
  size: number;
  regionSize: number;
  regions: number;
  hydratedRegions: number | null;
  /** Digest of which they are, as the descriptor records it. */
  hydratedDigest: string | null;
  /** Metadata blocks under management, in use, and the least that can never run out (format section 9). */
  totalBlocks: number;
  usedBlocks: number | null;
  minimumBlocks: number | null;
}

/** What `checkMetadata` returns. `ok` is true where nothing fatal was found. */
export interface CheckReport {
  ok: boolean;
  verdict: CheckVerdict;
  fatal: Finding[];
  warnings: Finding[];
  /** Absent where no superblock could be read. */
  facts?: CheckFacts;
  /** There where what is hydrated is certainly not what the clone was left with: no bit is proof of anything then. */
  bitsRefuted?: true;
}

/** A finding as one line of text: `bitmap block 7: block 12 is in use but counted free; …`. */
export function formatFinding({ block, structure, message }: Finding): string {
  return block === null || structure === "superblock"
    ? `${structure}: ${message}`
    : `${structure} ${block}: ${message}`;
}

const LISTED_PER_STRUCTURE = 50;

/** Collects findings of one severity, bounded. */
export class FindingList {
  readonly #findings: Finding[] = [];
  readonly #counts = new Map<CheckedStructure, number>();

  /** Findings so far, those not listed included. */
  get count(): number {
    let total = 0;
    for (const count of this.#counts.values()) total += count;
    return total;
  }

  add(structure: CheckedStructure, block: number | null, message: string): void {
    const count = (this.#counts.get(structure) ?? 0) + 1;
    this.#counts.set(structure, count);
    if (count <= LISTED_PER_STRUCTURE) this.#findings.push({ block, structure, message });
  }

  /** The findings in the order they were added, then one line for each structure that had more than are listed. */
  list(): Finding[] {
    const result = [...this.#findings];
    for (const [structure, count] of this.#counts) {
      const rest = count - LISTED_PER_STRUCTURE;
      if (rest > 0)
        result.push({ block: null, structure, message: `${rest} more findings of this kind are not listed` });
    }
    return result;
  }
}

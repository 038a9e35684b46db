/** The regions that were given up on because the source cannot be read there, as few ranges as they make. */
import type { Region, RegionRange } from "../base/geometry.ts";
import { countRegions } from "../base/geometry.ts";
import { normalizeRanges } from "../metadata/unreadable-ranges.ts";

/** Who knows which regions are hydrated: `CloneMetadata`. */
export interface HydratedRegions {
  nextUnhydrated(from: Region, end: Region): Region;
  nextHydrated(from: Region, end: Region): Region;
}

/** A set of regions, as ascending ranges that do not touch. */
export class UnreadableRegions {
  #ranges: RegionRange[];
  #count: number;

  constructor(ranges: Iterable<RegionRange> = []) {
    this.#ranges = normalizeRanges(ranges);
    this.#count = countRegions(this.#ranges);
  }

  /** How many regions. */
  get count(): number {
    return this.#count;
  }

  /** The ranges, ascending; a copy. */
  get ranges(): RegionRange[] {
    return this.#ranges.map(({ start, end }) => ({ start, end }));
  }

  /** Takes in a region, if it is not in. */
  add(region: Region): void {
    const index = this.#indexAfter(region);
    const before = this.#ranges[index - 1];
    const after = this.#ranges[index];
    if (before !== undefined && region < before.end) return;
    this.#count++;
    if (before?.end === region && after?.start === region + 1) {
      before.end = after.end;
      this.#ranges.splice(index, 1);
    } else if (before?.end === region) before.end++;
    else if (after?.start === region + 1) after.start--;
    else this.#ranges.splice(index, 0, { start: region, end: region + 1 });
  }

  /** What they leave of a range: ascending, disjoint. */
  outside({ start, end }: RegionRange): RegionRange[] {
    const gaps: RegionRange[] = [];
    let from = start;
    for (let index = Math.max(0, this.#indexAfter(start) - 1); from < end; index++) {
      const range = this.#ranges[index];
      const gapEnd = Math.min(end, range?.start ?? end);
      if (gapEnd > from) gaps.push({ start: from, end: gapEnd });
      if (range === undefined) break;
      from = Math.max(from, range.end);
    }
    return gaps;
  }

  /** Drops those that are hydrated by now, however that came about. */
  dropHydrated(hydrated: HydratedRegions): void {
    this.#ranges = unhydratedParts(hydrated, this.#ranges);
    this.#count = countRegions(this.#ranges);
  }

  /** Index of the first range that starts after `region`. */
  #indexAfter(region: Region): number {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#ranges[middle] as RegionRange).start <= region) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** The unhydrated regions among some ranges, ascending and merged where the ranges are. */
export function unhydratedParts(hydrated: HydratedRegions, ranges: Iterable<RegionRange>): RegionRange[] {
  const parts: RegionRange[] = [];
  for (const range of ranges) {
    for (let start = hydrated.nextUnhydrated(range.start, range.end); start < range.end; ) {
      const end = hydrated.nextHydrated(start, range.end);
      parts.push({ start, end });
      start = hydrated.nextUnhydrated(end, range.end);
    }
  }
  return parts;
}

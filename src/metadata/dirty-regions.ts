/**
 * The regions hydrated since the last commit: a list of ranges, because a bitmap of 2^31 regions would cost as much
 * again as the one of what is hydrated.
 *
 * Ranges are appended; one that goes on where the last ended is merged with it at once (sequential hydration keeps the
 * list at one range), all others when the list has doubled. Which bits a commit may set is exactly what `freeze` hands
 * over: a region marked later, even in the same 64-bit word, waits for the next commit, since its data may not be covered
 * by the destination's flush. (Kernel: `dm_clone_metadata_pre_commit`, "Track exact changes per transaction".)
 */
import type { Region, RegionRange } from "../base/geometry.ts";

/** Ranges a list may hold before it is compacted for the first time. */
const COMPACT_AT = 1024;

/** A growing set of regions that is handed over as a whole. */
export class DirtyRegions {
  /** start, end, start, end, …: half-open, in the order of arrival. */
  #bounds: number[] = [];
  #compactAt = COMPACT_AT;

  get isEmpty(): boolean {
    return this.#bounds.length === 0;
  }

  /** Adds the regions `start` … `end` - 1; those that are in it already do no harm. */
  add({ start, end }: RegionRange): void {
    if (start === end) return;
    const last = this.#bounds.length - 1;
    if (last > 0 && this.#bounds[last] === start) {
      this.#bounds[last] = end;
      return;
    }
    this.#bounds.push(start, end);
    if (this.#bounds.length < 2 * this.#compactAt) return;
    this.#bounds = merged(this.#bounds);
    this.#compactAt = Math.max(COMPACT_AT, this.#bounds.length); // doubling keeps the cost of an add constant
  }

  /** Hands over everything added so far, as sorted ranges that neither overlap nor touch, and starts anew. */
  freeze(): RegionRange[] {
    const bounds = merged(this.#bounds);
    this.#bounds = [];
    this.#compactAt = COMPACT_AT;
    const ranges: RegionRange[] = [];
    for (let i = 0; i < bounds.length; i += 2) {
      ranges.push({ start: bounds[i] as Region, end: bounds[i + 1] as Region });
    }
    return ranges;
  }
}

/** Sorts ranges and merges those that overlap or touch. */
function merged(bounds: number[]): number[] {
  const order = Array.from({ length: bounds.length / 2 }, (_, i) => 2 * i);
  order.sort((a, b) => (bounds[a] as number) - (bounds[b] as number));
  const result: number[] = [];
  for (const i of order) {
    const start = bounds[i] as number;
    const end = bounds[i + 1] as number;
    const last = result.length - 1;
    if (last > 0 && start <= (result[last] as number)) result[last] = Math.max(result[last] as number, end);
    else result.push(start, end);
  }
  return result;
}

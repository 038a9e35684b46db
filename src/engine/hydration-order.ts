/**
 * The order in which regions are to be hydrated, where somebody knows it: the one in which they were first needed before.
 *
 *     ranges   [17,19) [4,5) [900,964) …      as they were needed; those that follow each other are one
 *                        ▲
 *                        └ next               only moves on; rewound for another run, which passes over what is hydrated
 *
 * Eight bytes a range, so that a trace of a million is no burden.
 */
import assert from "node:assert";
import { MAX_REGION_COUNT, type Region, type RegionRange } from "../base/geometry.ts";

/** Ranges that there is room for at first. */
const FEWEST_RANGES = 1024;

/** Ranges of regions, to be hydrated one after the other. */
export class HydrationOrder {
  /** Start and end of each range. */
  #bounds = new Uint32Array(2 * FEWEST_RANGES);
  #count = 0;
  #index = 0;
  #next: RegionRange | undefined;

  /** How many ranges there are. */
  get length(): number {
    return this.#count;
  }

  /** Appends a range; it is part of the last one where it begins in it or at its end. */
  push({ start, end }: RegionRange): void {
    assert(start >= 0 && start < end && end <= MAX_REGION_COUNT, `no region in ${start}–${end}`);
    const last = 2 * this.#count - 1;
    const [lastStart, lastEnd] = [this.#bounds[last - 1], this.#bounds[last]];
    if (lastStart !== undefined && lastEnd !== undefined && start >= lastStart && start <= lastEnd) {
      this.#bounds[last] = Math.max(lastEnd, end);
      return;
    }
    if (2 * this.#count === this.#bounds.length) this.#grow();
    this.#bounds.set([start, end], 2 * this.#count);
    this.#count++;
  }

  /** The range that is next, less what `advance()` has passed of it; undefined after the last. */
  get next(): Readonly<RegionRange> | undefined {
    if (this.#next === undefined && this.#index < this.#count) this.#next = this.#rangeAt(this.#index);
    return this.#next;
  }

  /** The range that is next is done below `region`. */
  advance(region: Region): void {
    const { next } = this;
    if (next === undefined) return;
    const start = Math.max(next.start, region);
    if (start < next.end) this.#next = { start, end: next.end };
    else {
      this.#index++;
      this.#next = undefined;
    }
  }

  /** Begins with the first again. */
  rewind(): void {
    this.#index = 0;
    this.#next = undefined;
  }

  /** All ranges, from the first on. */
  *ranges(): Generator<RegionRange> {
    for (let index = 0; index < this.#count; index++) yield this.#rangeAt(index);
  }

  #rangeAt(index: number): RegionRange {
    return { start: this.#bounds[2 * index] as number, end: this.#bounds[2 * index + 1] as number };
  }

  #grow(): void {
    const bounds = new Uint32Array(2 * this.#bounds.length);
    bounds.set(this.#bounds);
    this.#bounds = bounds;
  }
}

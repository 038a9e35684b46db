/**
 * Which region is where, at this moment: dm-clone's region map and hydration table behind one door.
 *
 *                  begin()                  complete()
 *     unhydrated ───────────► hydrating ───────────────► hydrated
 *          ▲                      │
 *          └──────── fail() ──────┘
 *
 * A region is in the table of running hydrations from the decision to hydrate it until its bit is set in memory. Whoever
 * decides looks in the table first and at the map second: dm-clone's discard looks at the map alone, and a copy then lands
 * on top of a later write. Everything here is synchronous, so a decision and its entry cannot be torn apart.
 */
import assert from "node:assert";
import type { Region, RegionRange } from "../base/geometry.ts";
import type { CloneMetadata } from "../metadata/clone-metadata.ts";

/** What holds for a region: only the source has it; it is being copied; the destination is its only truth. */
export type RegionState = "unhydrated" | "hydrating" | "hydrated";

/** A run of regions being hydrated together; its identity is the claim on them. */
export type Hydration = Readonly<RegionRange>;

/** Region states and the exclusion of two hydrations of one region. */
export class RegionMap {
  readonly #metadata: CloneMetadata;
  /** Running hydrations, ascending and disjoint. Short (bounded by the threshold), so an array beats a tree. */
  readonly #running: Hydration[] = [];
  #hydratingCount = 0;

  constructor(metadata: CloneMetadata) {
    this.#metadata = metadata;
  }

  get regionCount(): number {
    return this.#metadata.regionCount;
  }

  /** Regions hydrated now, committed or not. */
  get hydratedCount(): number {
    return this.#metadata.hydratedCount;
  }

  /** Regions in the table. */
  get hydratingCount(): number {
    return this.#hydratingCount;
  }

  state(region: Region): RegionState {
    if (this.#hydrationAt(region) !== undefined) return "hydrating";
    return this.#metadata.isHydrated(region) ? "hydrated" : "unhydrated";
  }

  /**
   * The first run of unhydrated regions from `from` on, below `end`, at most `limit` of them; undefined where there is
   * none. Looks no further than the run: a clone may have 2^31 regions.
   */
  nextUnhydrated(from: Region, end: Region, limit: number): RegionRange | undefined {
    let start = from;
    for (;;) {
      start = this.#metadata.nextUnhydrated(start, end);
      if (start >= end) return undefined;
      const running = this.#hydrationAt(start);
      if (running === undefined) break;
      start = running.end;
      if (start >= end) return undefined;
    }
    const nextRunning = this.#running[this.#indexAfter(start)]?.start ?? end;
    return { start, end: this.#metadata.nextHydrated(start, Math.min(end, nextRunning, start + limit)) };
  }

  /** Enters a run of unhydrated regions in the table. */
  begin({ start, end }: RegionRange): Hydration {
    assert(start < end && end <= this.regionCount, `no region in ${start}–${end}`);
    const index = this.#indexAfter(start);
    const before = this.#running[index - 1];
    const after = this.#running[index];
    assert(before === undefined || before.end <= start, `region ${start} is being hydrated already`);
    assert(after === undefined || after.start >= end, `region ${after?.start} is being hydrated already`);
    assert(this.#metadata.nextHydrated(start, end) === end, `a region in ${start}–${end} is hydrated already`);
    const hydration = { start, end };
    this.#running.splice(index, 0, hydration);
    this.#hydratingCount += end - start;
    return hydration;
  }

  /**
   * The data of a run is at the destination: sets its bits, then takes it off the table. A copy may still have been in
   * flight when a commit failed; its bits could never be made durable, and stay as they are.
   */
  complete(hydration: Hydration): void {
    if (!this.#metadata.failed) this.#metadata.markHydrated(hydration);
    this.#remove(hydration);
  }

  /** The attempt failed: the source is still the truth. */
  fail(hydration: Hydration): void {
    this.#remove(hydration);
  }

  #remove(hydration: Hydration): void {
    const index = this.#running.indexOf(hydration);
    assert(index >= 0, `regions ${hydration.start}–${hydration.end} are not being hydrated`);
    this.#running.splice(index, 1);
    this.#hydratingCount -= hydration.end - hydration.start;
  }

  #hydrationAt(region: Region): Hydration | undefined {
    const candidate = this.#running[this.#indexAfter(region) - 1];
    return candidate !== undefined && region < candidate.end ? candidate : undefined;
  }

  /** Index of the first running hydration that starts after `region`. */
  #indexAfter(region: Region): number {
    let low = 0;
    let high = this.#running.length;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#running[middle] as Hydration).start <= region) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

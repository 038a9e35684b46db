/**
 * Which region is where, at this moment: dm-clone's region map and hydration table behind one door.
 *
 *                  begin()                  complete()
 *     unhydrated ───────────► hydrating ───────────────► hydrated
 *          ▲                      │                         │
 *          ├── fail(), cancel() ──┘                         │
 *          ├── complete() of what is tainted                │
 *          └── CloneMetadata.rollback(), with taint() ◄─────┘ as long as it is not committed
 *
 * `taint()` is for the moment at which the destination has lost what was written to it: what is in the table then may have
 * written some of it, and must not count, though it ends well. It ends as if it had failed, and whoever wants it looks again.
 *
 * A region is in the table of running hydrations from the decision to hydrate it until its bit is set in memory. Whoever
 * decides looks in the table first and at the map second: dm-clone's discard looks at the map alone, and a copy then lands
 * on top of a later write. Everything here is synchronous, so a decision and its entry cannot be torn apart.
 *
 * Who needs a region that is in the table waits for the end of its hydration (`ended()`), and then looks again: those who
 * wait are woken in the order they came, but the world may have changed before their turn. Nothing is allocated for a
 * hydration that nobody waits for, and nothing at all for a look at hydrated regions.
 */
import assert from "node:assert";
import type { ByteRange, Region, RegionRange } from "../base/geometry.ts";
import type { CloneMetadata } from "../metadata/clone-metadata.ts";

/** What holds for a region: only the source has it; it is being copied; the destination is its only truth. */
export type RegionState = "unhydrated" | "hydrating" | "hydrated";

/** A run of regions being hydrated together; its identity is the claim on them. */
export type Hydration = Readonly<RegionRange>;

/** What is agreed on with a hydration's owner. */
export interface BeginOptions {
  cancellable?: boolean;
  /** Somebody waits for it from now on: it should not take its time any more. */
  onAwaited?: () => void;
}

/** Region states and the exclusion of two hydrations of one region. */
export class RegionMap {
  readonly #metadata: CloneMetadata;
  /** Running hydrations, ascending and disjoint: an array, since what is in flight is bounded, and looks are many. */
  readonly #running: Entry[] = [];
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
    if (this.#entryAt(region) !== undefined) return "hydrating";
    return this.#metadata.isHydrated(region) ? "hydrated" : "unhydrated";
  }

  /** Whether all of the regions `start` … `end` - 1 are hydrated, and none of them in the table. */
  isHydrated(start: Region, end: Region): boolean {
    if (this.#running.length > 0 && this.isHydrating(start, end)) return false;
    return this.#metadata.nextUnhydrated(start, end) === end;
  }

  /** Whether one of the regions `start` … `end` - 1 is in the table. */
  isHydrating(start: Region, end: Region): boolean {
    const next = this.#indexAfter(start);
    if (next > 0 && (this.#running[next - 1] as Entry).end > start) return true;
    return next < this.#running.length && (this.#running[next] as Entry).start < end;
  }

  /**
   * Where the run of regions ends, from `start` on and at `end` at the latest, of which the source has the truth:
   * unhydrated ones, and those in the table. `start` where it is hydrated.
   */
  sourceEnd(start: Region, end: Region): Region {
    return this.#metadata.nextHydrated(start, end);
  }

  /** Where the run of regions that are in the state of `start` ends, at `end` at the latest. */
  stateEnd(start: Region, end: Region): Region {
    const entry = this.#entryAt(start);
    if (entry !== undefined) return Math.min(entry.end, end);
    const limit = Math.min(end, this.#running[this.#indexAfter(start)]?.start ?? end);
    return this.#metadata.isHydrated(start)
      ? this.#metadata.nextUnhydrated(start, limit)
      : this.#metadata.nextHydrated(start, limit);
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
      const running = this.#entryAt(start);
      if (running === undefined) break;
      start = running.end;
      if (start >= end) return undefined;
    }
    const nextRunning = this.#running[this.#indexAfter(start)]?.start ?? end;
    return { start, end: this.#metadata.nextHydrated(start, Math.min(end, nextRunning, start + limit)) };
  }

  /** The running hydration that a region is part of. */
  hydrationAt(region: Region): Hydration | undefined {
    return this.#entryAt(region);
  }

  /**
   * Enters a run of unhydrated regions in the table. Of one that is `cancellable`, nothing may reach the destination before
   * `land()` has said that it was not cancelled. `onAwaited` is called when somebody begins to wait for it.
   */
  begin({ start, end }: RegionRange, { cancellable = false, onAwaited }: BeginOptions = {}): Hydration {
    assert(start < end && end <= this.regionCount, `no region in ${start}–${end}`);
    const index = this.#indexAfter(start);
    const before = this.#running[index - 1];
    const after = this.#running[index];
    assert(before === undefined || before.end <= start, `region ${start} is being hydrated already`);
    assert(after === undefined || after.start >= end, `region ${after?.start} is being hydrated already`);
    assert(this.#metadata.nextHydrated(start, end) === end, `a region in ${start}–${end} is hydrated already`);
    const hydration = new Entry(start, end, cancellable, onAwaited);
    this.#running.splice(index, 0, hydration);
    this.#hydratingCount += end - start;
    return hydration;
  }

  /**
   * The data of a run is at the destination: sets its bits, then takes it off the table. A copy may still have been in
   * flight when a commit failed, and its bits could never be made durable; or it is tainted: then they stay as they are,
   * and it is false.
   */
  complete(hydration: Hydration): boolean {
    const marks = !this.#metadata.failed && !this.isTainted(hydration);
    if (marks) this.#metadata.markHydrated(hydration);
    this.#remove(hydration, undefined);
    return marks;
  }

  /** The attempt failed: the source is still the truth. Those who wait are told `error`, where they need to know it. */
  fail(hydration: Hydration, error?: unknown): void {
    this.#remove(hydration, error);
  }

  /** Whatever is in the table does not count when it completes: what it has written so far may be lost. */
  taint(): void {
    for (const entry of this.#running) entry.tainted = true;
  }

  /** Whether a running hydration does not count any more. */
  isTainted(hydration: Hydration): boolean {
    return this.#claimed(hydration).tainted;
  }

  /** Takes a hydration off the table, if that is still possible: it will not reach the destination. */
  cancel(hydration: Hydration): boolean {
    const entry = this.#claimed(hydration);
    if (!entry.cancellable) return false;
    this.#remove(hydration, undefined);
    return true;
  }

  /** From here on the destination is written, and nobody cancels any more. False where somebody has done so before. */
  land(hydration: Hydration): boolean {
    const entry = this.#entryAt(hydration.start);
    if (entry !== hydration) return false;
    entry.cancellable = false;
    return true;
  }

  /** A running hydration gets on: who waits for it need not give up. */
  noteProgress(hydration: Hydration, atMs: number): void {
    this.#claimed(hydration).progressAt = atMs;
  }

  /** When it got on last, by the clock of whoever noted it; it may have ended since. -Infinity: it has not had its turn yet. */
  progressOf(hydration: Hydration): number {
    assert(hydration instanceof Entry, "no hydration of this kind of map");
    return hydration.progressAt;
  }

  /**
   * The destination has a part of a running hydration, bytes: it may be read from there, though its bits are not set yet,
   * unless the hydration is tainted.
   */
  noteLanded(hydration: Hydration, { offset, length }: ByteRange): void {
    const entry = this.#claimed(hydration);
    entry.landed ??= [];
    const landed = entry.landed;
    const index = landed.findIndex((range) => range.offset + range.length >= offset);
    const next = index < 0 ? undefined : landed[index];
    if (next?.offset === offset + length) {
      next.offset = offset;
      next.length += length;
    } else if (next !== undefined && next.offset + next.length === offset) {
      next.length += length;
      const after = landed[index + 1];
      if (after?.offset !== next.offset + next.length) return;
      next.length += after.length;
      landed.splice(index + 1, 1);
    } else landed.splice(index < 0 ? landed.length : index, 0, { offset, length });
  }

  /** The first bytes of the range that the destination has although their hydration still runs; undefined where there are none. */
  landedIn({ offset, length }: ByteRange, { start, end }: RegionRange): ByteRange | undefined {
    if (this.#running.length === 0) return undefined;
    const rangeEnd = offset + length;
    for (let index = Math.max(0, this.#indexAfter(start) - 1); index < this.#running.length; index++) {
      const entry = this.#running[index] as Entry;
      if (entry.start >= end) break;
      if (entry.landed === undefined || entry.tainted) continue;
      const found = entry.landed.find((range) => range.offset < rangeEnd && range.offset + range.length > offset);
      if (found === undefined) continue;
      const from = Math.max(offset, found.offset);
      return { offset: from, length: Math.min(rangeEnd, found.offset + found.length) - from };
    }
    return undefined;
  }

  /** Resolves when a running hydration ends, however it does; to the error that `fail()` was given. Never rejects. */
  ended(hydration: Hydration): Promise<unknown> {
    const entry = this.#claimed(hydration);
    const isFirst = entry.waiting === undefined;
    const ended = new Promise((resolve) => {
      entry.waiting ??= [];
      entry.waiting.push(resolve);
    });
    if (isFirst) entry.onAwaited?.();
    return ended;
  }

  /** Whether somebody waits for a running hydration: then it should not take its time. */
  isAwaited(hydration: Hydration): boolean {
    return this.#claimed(hydration).waiting !== undefined;
  }

  #remove(hydration: Hydration, error: unknown): void {
    const entry = this.#claimed(hydration);
    this.#running.splice(this.#indexAfter(entry.start) - 1, 1);
    this.#hydratingCount -= entry.end - entry.start;
    for (const wake of entry.waiting ?? []) wake(error);
  }

  #claimed(hydration: Hydration): Entry {
    const entry = this.#entryAt(hydration.start);
    assert(entry === hydration, `regions ${hydration.start}–${hydration.end} are not being hydrated`);
    return entry;
  }

  #entryAt(region: Region): Entry | undefined {
    const index = this.#indexAfter(region);
    if (index === 0) return undefined;
    const candidate = this.#running[index - 1] as Entry;
    return region < candidate.end ? candidate : undefined;
  }

  /** Index of the first running hydration that starts after `region`. */
  #indexAfter(region: Region): number {
    let low = 0;
    let high = this.#running.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#running[middle] as Entry).start <= region) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** A hydration in the table. */
class Entry implements Hydration {
  readonly start: Region;
  readonly end: Region;
  /** Whether nothing of it has begun to reach the destination, and nothing will before it is asked. */
  cancellable: boolean;
  /** Whether what it has written may be lost. */
  tainted = false;
  /** What of it the destination has, bytes: ascending, and as few ranges as they make. */
  landed: ByteRange[] | undefined;
  /** When it got on last. */
  progressAt = -Infinity;
  /** Those who wait for its end. */
  waiting: ((error: unknown) => void)[] | undefined;
  readonly onAwaited: (() => void) | undefined;

  constructor(start: Region, end: Region, cancellable: boolean, onAwaited: (() => void) | undefined) {
    this.start = start;
    this.end = end;
    this.cancellable = cancellable;
    this.onAwaited = onAwaited;
  }
}

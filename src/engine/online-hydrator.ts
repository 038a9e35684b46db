/**
 * Background hydration beside clients: run after run of the Hydrator, for as long as the clone is served.
 *
 *                    ┌──────────── nothing to do for now ◄───────────┐
 *                    ▼                                               │
 *     run() ──► (look) ──► a run of the Hydrator ──► ended well ─────┤
 *                 │ ▲             │                                  │
 *                 │ └─ a pause ───┴──► ended badly: stalled          │
 *                 │    or resume()
 *                 └──► complete     everything hydrated, and committed
 *                      stopped      the signal aborted
 *                      throws       a commit failed, or an invariant is broken: the clone has failed
 *
 * A destination that is full, broken or away, and a source that is gone, may be well again, and clients are served meanwhile:
 * so hydration stalls, says so, and tries again after 1 s, 2 s, … 30 s, from 1 s again once anything was hydrated. Unreadable
 * regions beyond what the settings put up with are somebody's decision, and wait for `resume()`; so does a source that is
 * another one by now (ESTALE), which no time heals.
 */
import { CloneError, errnoOf } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import { type HintKind, HintQueue } from "./hint-queue.ts";
import type { HydrationOrder } from "./hydration-order.ts";
import { HydrationPace, type PaceSettings } from "./hydration-pace.ts";
import { type HydrationSettings, Hydrator, type HydratorParts } from "./hydrator.ts";
import { type HydratedRegions, UnreadableRegions } from "./unreadable-regions.ts";
import { Wakeup } from "./wakeup.ts";

/** What it works on. `halt` is the clone's: aborted here only when a commit failed or an invariant is broken. */
export interface OnlineHydratorParts extends Omit<HydratorParts, "pace" | "hints"> {
  metadata: HydratedRegions;
  /** Regions that are hydrated before those that nobody asked for. */
  order?: HydrationOrder;
  /** Hydration has stalled. Not called again before it has made headway. */
  onStall?: (stall: Stall) => void;
}

/** Why nothing is hydrated although there is something left to hydrate. */
export interface Stall {
  /** One line for people: the error's message. */
  reason: string;
  /** Since when, ms by the hydrator's clock. */
  since: number;
  /** When it tries again by itself, ms by the same clock; null where it waits for `resume()`. */
  retryAt: number | null;
}

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30_000;
/** How often it looks for regions that nobody hydrates any more, as after a client's write that failed, ms. */
const LOOK_AGAIN_MS = 1000;

/** Hydrates what clients leave to it, until all is hydrated. */
export class OnlineHydrator {
  readonly #parts: OnlineHydratorParts;
  readonly #settings: HydrationSettings;
  readonly #pace: HydrationPace;
  readonly #hints: HintQueue;
  /** Wakes it between two runs. */
  readonly #goOn = new Wakeup();
  /** What earlier runs gave up on. */
  #given: UnreadableRegions;
  #run: Hydrator | undefined;
  #stall: Stall | undefined;
  #firstReadError: string | undefined;
  #lastReadError: string | undefined;
  /** The next run tries again what was given up on; the first one does. */
  #retryUnreadable = true;
  #triedAll = false;

  /** `known` are the regions found unreadable before: they are tried after all others. */
  constructor(parts: OnlineHydratorParts, settings: Omit<HydrationSettings, "limit">, known: readonly RegionRange[]) {
    this.#parts = parts;
    this.#settings = { ...settings, limit: null };
    this.#pace = new HydrationPace(parts, settings);
    this.#hints = new HintQueue(parts.order);
    this.#given = new UnreadableRegions(known);
  }

  /** The threshold in use, regions. */
  get threshold(): number {
    return this.#pace.threshold;
  }

  /** The batch size in use, regions. */
  get batchSize(): number {
    return this.#pace.batchSize;
  }

  /** Whether no new copies are begun. Those under way end, and commits go on. */
  get paused(): boolean {
    return this.#pace.paused;
  }

  /** Whether it hydrates, or would if it were not paused: not while it has stalled, nor where only unreadable regions are left. */
  get working(): boolean {
    return this.#run !== undefined;
  }

  /** Whether it hydrates, and not all of the order has been begun. */
  get followsOrder(): boolean {
    return this.working && !this.paused && this.#hints.hasOrder;
  }

  /** Why it makes no headway, or undefined where it does. */
  get stalled(): Stall | undefined {
    return this.#run !== undefined && this.#run.hydratedRegions > 0 ? undefined : this.#stall;
  }

  /** The regions that were given up on and are not hydrated, ascending and merged, as of now. */
  get unreadable(): RegionRange[] {
    return this.#unreadable().ranges;
  }

  /** How many they are. */
  get unreadableCount(): number {
    return this.#unreadable().count;
  }

  /** Whether everything has been tried since it began: then what is not listed as unreadable is not known to be. */
  get triedAll(): boolean {
    return this.#triedAll;
  }

  /** What the source said where it could not be read last, or undefined. */
  get lastReadError(): string | undefined {
    return this.#run?.lastReadError?.message ?? this.#lastReadError;
  }

  /** What the source said of the first region that was given up on, or undefined. */
  get firstReadError(): string | undefined {
    return this.#firstReadError;
  }

  /** Changes what is given, at once, and ends a stall's pause. */
  tune(changes: Partial<PaceSettings>): void {
    this.#pace.tune(changes);
    this.#goOn.wake();
  }

  pause(): void {
    this.#pace.paused = true;
  }

  /** Ends a pause and a stall, and tries again what was unreadable. */
  resume(): void {
    this.#pace.paused = false;
    this.retryUnreadable();
  }

  /** Tries again what was unreadable, after all that is left otherwise. */
  retryUnreadable(): void {
    this.#retryUnreadable = true;
    this.#goOn.wake();
  }

  /** Has regions hydrated before those that nobody asked for, unless they are hydrated, or known to be unreadable. */
  hint(range: RegionRange, kind: HintKind = "asked"): void {
    const { regions } = this.#parts;
    const end = Math.min(range.end, regions.regionCount);
    if (range.start >= end || regions.nextUnhydrated(range.start, end, 1) === undefined) return;
    const { empty } = this.#hints;
    this.#hints.add({ start: range.start, end }, kind);
    if (empty) this.#pace.changed.wake(); // else nobody waits for a hint; and each read is one
  }

  /**
   * Hydrates until everything is hydrated and committed, or `signal` aborts; then copies in flight have ended, and what
   * was hydrated is committed.
   * @throws what a commit threw, or whatever else aborted `halt`, or shows a mistake: the clone has failed
   */
  async run(signal: AbortSignal): Promise<"complete" | "stopped"> {
    const { halt, commits } = this.#parts;
    const wake = (): void => this.#goOn.wake();
    for (const watched of [signal, halt.signal]) watched.addEventListener("abort", wake, { once: true });
    try {
      for (let pauseMs = FIRST_PAUSE_MS; !signal.aborted && !halt.signal.aborted; ) {
        if (!this.#allHydrated && !this.#hasWork()) {
          await this.#rest(LOOK_AGAIN_MS);
          continue;
        }
        const { error, waits, headway } = await (this.#allHydrated ? this.#commitAll() : this.#hydrate(signal));
        if (this.#allHydrated && commits.complete) {
          this.#stall = undefined; // clients may have hydrated what it could not
          return "complete";
        }
        if (headway) pauseMs = FIRST_PAUSE_MS;
        if (error === undefined || signal.aborted || halt.signal.aborted) continue;
        this.#stalledBy(error, waits ? null : pauseMs);
        await this.#rest(waits ? Infinity : pauseMs, { untilHydrated: !this.#allHydrated });
        pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
      }
    } catch (error) {
      halt.abort(error);
    } finally {
      for (const watched of [signal, halt.signal]) watched.removeEventListener("abort", wake);
    }
    halt.signal.throwIfAborted();
    return "stopped";
  }

  get #allHydrated(): boolean {
    const { regions } = this.#parts;
    return regions.hydratedCount === regions.regionCount;
  }

  /** Waits, but not if called upon to go on, nor longer than clients take to hydrate everything themselves. */
  async #rest(ms: number, { untilHydrated = true } = {}): Promise<void> {
    const { clock } = this.#parts;
    const until = clock.now() + ms;
    while (clock.now() < until && !(untilHydrated && this.#allHydrated)) {
      if (await this.#goOn.waitAtMost(clock, Math.min(LOOK_AGAIN_MS, until - clock.now()))) return;
    }
  }

  /** Whether there is a region to hydrate: neither hydrated, nor in the table, nor given up on. */
  #hasWork(): boolean {
    const { regions, metadata } = this.#parts;
    this.#given.dropHydrated(metadata);
    if (this.#retryUnreadable && this.#given.count > 0) return true;
    if (regions.hydratedCount + regions.hydratingCount + this.#given.count >= regions.regionCount) return false;
    const others = this.#given.outside({ start: 0, end: regions.regionCount });
    return others.some(({ start, end }) => regions.nextUnhydrated(start, end, 1) !== undefined);
  }

  /** Makes durable that everything is hydrated; or finds that it is not. @throws what is for good */
  async #commitAll(): Promise<Ended> {
    const { halt, commits } = this.#parts;
    try {
      await commits.commit();
      return { headway: false };
    } catch (error) {
      if (commits.failure !== undefined || halt.signal.aborted || !(error instanceof CloneError)) throw error;
      return { error, headway: false };
    }
  }

  /** One run. @throws what is for good */
  async #hydrate(signal: AbortSignal): Promise<Ended> {
    const { halt, commits } = this.#parts;
    // What ends a run is not what ends the clone: its copies stop, those that clients wait for do not.
    const ended = new AbortController();
    const follow = (): void => ended.abort(halt.signal.reason);
    halt.signal.addEventListener("abort", follow, { once: true });
    const retryKnown = this.#retryUnreadable;
    this.#retryUnreadable = false;
    this.#hints.rewind();
    const parts = { ...this.#parts, halt: ended, pace: this.#pace, hints: this.#hints };
    const run = new Hydrator(parts, this.#settings, this.#given.ranges);
    this.#run = run;
    try {
      const { end } = await run.run(signal, { retryKnown });
      const triedAll = retryKnown && end !== "stopped";
      this.#given = new UnreadableRegions([...(triedAll ? [] : this.#given.ranges), ...run.unreadable]);
      this.#triedAll ||= triedAll;
      this.#stall = undefined;
      return { headway: true };
    } catch (error) {
      if (commits.failure !== undefined || halt.signal.aborted || !(error instanceof CloneError)) throw error;
      this.#given = new UnreadableRegions([...this.#given.ranges, ...run.unreadable]);
      this.#retryUnreadable ||= retryKnown; // it did not come to that, or not to the end of it
      const headway = run.hydratedRegions > 0;
      if (headway) this.#stall = undefined;
      return { error, headway, waits: run.gaveUp || errnoOf(error) === "ESTALE" };
    } finally {
      this.#firstReadError ??= run.firstReadError?.message;
      this.#lastReadError = run.lastReadError?.message ?? this.#lastReadError;
      this.#run = undefined;
      halt.signal.removeEventListener("abort", follow);
    }
  }

  #stalledBy(error: CloneError, pauseMs: number | null): void {
    const now = this.#parts.clock.now();
    const before = this.#stall;
    const retryAt = pauseMs === null ? null : now + pauseMs;
    this.#stall = { reason: error.message, since: before?.since ?? now, retryAt };
    if (before === undefined) this.#parts.onStall?.(this.#stall);
  }

  #unreadable(): UnreadableRegions {
    const all = new UnreadableRegions([...this.#given.ranges, ...(this.#run?.unreadable ?? [])]);
    all.dropHydrated(this.#parts.metadata);
    return all;
  }
}

/** How a run ended. `headway`: it hydrated something. `waits`: it takes somebody's decision to go on. */
interface Ended {
  error?: CloneError;
  headway: boolean;
  waits?: boolean;
}

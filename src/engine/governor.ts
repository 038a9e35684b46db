/**
 * Keeps background hydration out of the foreground's way: as fast as it can go while nobody asks for anything, and while
 * somebody does, as fast as the foreground's 99th percentile bears. (dm-clone stops dead for a second instead, and starves
 * under steady I/O.)
 *
 *     quiet ──a request──► busy: small pieces, few at once, bytes/s limited ──250 ms without one──► quiet: no limit
 *
 * While busy, work and short rests take turns, and after each rest the foreground's p99 of both is compared:
 *
 *     ┌────────────────────── work, 850 ms ──────────────────────┐┌ rest, 150 ms ┐┌── work …
 *
 *     below 1.75 x alone   faster: by a tenth, and by more each time in a row
 *     above 2 x alone      slower: to 0.8 of what was moved, and to less each time in a row, or where it is far above
 *
 * So nothing has to be known about clients, devices and processors, nor do others on the same machine confuse it. Every
 * 30 s a rest is long (`ForegroundComparison` says why).
 *
 * Never is it slower than `minRate`, in rests neither: hydration always gets on. Nor at work slower than one piece for 200
 * round trips: whatever a piece does to the one it meets, the 99th percentile is not there.
 *
 * What the foreground is about to ask for is not held back (`isUrgent`): it would have to wait for it longer than for the copies.
 *
 * The limit alone is not enough. Pieces are small because one of 2 MiB keeps a thread, a disk or the event loop busy for
 * longer than a request takes; and there is one at a time, since on machines with few processors each takes one away. Only
 * where so few would not reach the limit there are more. From a source far away as many as its window holds: they wait for
 * the way there, and for no processor, and one at a time would get nowhere.
 */
import type { Clock } from "../base/clock.ts";
import { ForegroundComparison, type RestKind } from "./foreground-comparison.ts";
import type { ForegroundMeter } from "./foreground-meter.ts";
import type { CopyAllowance } from "./region-copier.ts";
import type { Throttle } from "./throttle.ts";

/** What it governs by what. */
export interface GovernorParts {
  clock: Clock;
  meter: Pick<ForegroundMeter, "pressure" | "quietMs" | "measuring">;
  /** The background's; its rate is the governor's to set from now on. */
  throttle: Throttle;
  /** Bytes that the background has moved so far. */
  moved: () => number;
  /** Bytes per second at most that somebody set, or null. */
  rate: number | null;
  /** Bytes per second that the foreground never takes away; null for the default. */
  minRate: number | null;
  /** Whether the background copies what the foreground is about to wait for: then it is not held back. */
  isUrgent?: () => boolean;
  /** Whether the source is far away, and a window of its own bounds the copies in flight. Default false. */
  far?: boolean;
}

const MIB = 2 ** 20;
/** Bytes per second that are left to the background, unless somebody says otherwise. */
export const DEFAULT_MIN_RATE = MIB;

/** How often it looks, ms. */
const TICK_MS = 50;
/** Nobody has asked for anything for this long: nobody is there. */
const QUIET_MS = 250;
const BUSY_PIECE = 128 * 1024;
const BUSY_SHARE = MIB;
const QUIET_SHARE = 16 * MIB;
/** Where even that many at a time do not reach the limit, more would not either. */
const MOST_BUSY_COPIES = 8;
/** Faster than this it takes no second piece in flight: then they wait for processors, not for devices. Bytes per second. */
const FAST = 256 * MIB;
/** Where it begins with a foreground it does not know yet, bytes per second. */
const FIRST_LIMIT = 64 * MIB;

const WORK_MS = 850;
/** What was begun before is let come to its end for `settleMs`; then it is measured for `ms`. */
const REST: Record<RestKind, { settleMs: number; ms: number }> = {
  short: { settleMs: 50, ms: 100 },
  long: { settleMs: 600, ms: 300 },
};
/** As long after the quiet, in which there was no limit. */
const SETTLE_MS = 600;
const LONG_REST_EVERY_MS = 30_000;
/** Sooner where short rests say that the foreground became slower by itself. */
const LONG_REST_SOON_MS = 5000;
/** Requests that tell a 99th percentile; fewer are waited for, but not for longer than these, ms. */
const ENOUGH_REQUESTS = 200;
const LONGEST_WORK_MS = 1000;
const LONGEST_REST_MS = 350;
/** The foreground at work, as a multiple of what it is alone. */
const FASTER_BELOW = 1.75;
const SLOWER_ABOVE = 2;
const FAR_ABOVE = 4;
/** What nobody notices, ms, however far above it is. */
const UNNOTICED_MS = 0.05;
/** With fewer requests in one work there is no foreground to speak of. */
const FEW_REQUESTS = 5;
/** Pieces to a round trip that a 99th percentile does not notice. */
const UNNOTICED_SHARE = 0.005;
/** How much faster, or slower, after one, two, … windows in a row that say so. */
const FASTER = [1.1, 1.25, 1.5, 2];
const SLOWER = [0.8, 0.5, 0.3];

/** Sets how much background copies may do, as a throttle's rate and a copier's allowance. */
export class Governor implements CopyAllowance {
  readonly #parts: GovernorParts;
  #rate: number | null;
  #minRate: number;
  readonly #stop = new AbortController();
  #running: Promise<void> | undefined;
  #busy = false;
  #resting: RestKind | undefined;
  /** What was begun under another limit is still under way. */
  #settling = false;
  /** When the work, the rest, or the settling before it began. */
  #began = -Infinity;
  #movedBefore = 0;
  /** Bytes per second while busy. */
  #limit = FIRST_LIMIT;
  /** What the foreground does not notice at the number of requests it makes, bytes per second. */
  #unnoticed = 0;
  /** Windows in a row that said faster (more than 0) or slower (less). */
  #streak = 0;
  #copies = 1;
  /** Bytes per second that were moved at the last work. */
  #worked = 0;
  readonly #foreground = new ForegroundComparison();
  #longRestAt = -Infinity;

  constructor(parts: GovernorParts) {
    this.#parts = parts;
    this.#rate = parts.rate;
    this.#minRate = parts.minRate ?? DEFAULT_MIN_RATE;
  }

  /** Begins to govern; until then there is no limit but the rate. */
  start(): void {
    this.#parts.meter.measuring = true;
    this.#running ??= this.#run();
  }

  /** Leaves the throttle at the rate that was set. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    this.#parts.meter.measuring = false;
    this.#busy = false;
    this.#apply();
  }

  /** Bytes per second at most that somebody set, or null. Takes effect at once. */
  get rate(): number | null {
    return this.#rate;
  }

  set rate(rate: number | null) {
    this.#rate = rate;
    this.#apply();
  }

  /** Bytes per second that the foreground never takes away. Takes effect at once. */
  get minRate(): number {
    return this.#minRate;
  }

  set minRate(rate: number | null) {
    this.#minRate = rate ?? DEFAULT_MIN_RATE;
    this.#apply();
  }

  /** Whether somebody asks for something, so that the background holds back. */
  get busy(): boolean {
    this.#look();
    return this.#busy;
  }

  /** What the background may move at this moment, bytes per second; null is unlimited. */
  get bytesPerSecond(): number | null {
    return this.#parts.throttle.bytesPerSecond;
  }

  /** The foreground's p99 beside copies of late, and alone, ms; undefined where they are not known. */
  get p99(): { nowMs: number | undefined; aloneMs: number | undefined } {
    return { nowMs: this.#foreground.atWork(0.99), aloneMs: this.#foreground.alone(0.99) };
  }

  get pieceLength(): number {
    return this.busy ? BUSY_PIECE : Infinity;
  }

  get depth(): number {
    return this.busy && this.#parts.far !== true ? this.#copies : Infinity;
  }

  get shareLength(): number {
    return this.busy ? BUSY_SHARE : QUIET_SHARE;
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      await this.#parts.clock.sleep(TICK_MS, this.#stop.signal);
      this.#look();
      if (this.#busy) this.#tick();
    }
  }

  /** Whether somebody is there is looked at before each piece, not only at a tick. */
  #look(): void {
    const governs = this.#running !== undefined && !this.#stop.signal.aborted;
    const busy = governs && this.#parts.meter.quietMs < QUIET_MS && this.#parts.isUrgent?.() !== true;
    if (busy === this.#busy) return;
    this.#busy = busy;
    if (busy && this.#foreground.alone(0.99) === undefined) this.#rest("long");
    else this.#begin(undefined, true);
  }

  #rest(kind: RestKind): void {
    if (kind === "long") this.#longRestAt = this.#parts.clock.now();
    this.#begin(kind, true);
  }

  #begin(resting: RestKind | undefined, settling = false): void {
    this.#resting = resting;
    this.#settling = settling;
    this.#parts.meter.pressure.clear();
    this.#began = this.#parts.clock.now();
    this.#movedBefore = this.#parts.moved();
    this.#apply();
  }

  #tick(): void {
    const ms = this.#parts.clock.now() - this.#began;
    if (this.#settling) {
      const settleMs = this.#resting === undefined ? SETTLE_MS : REST[this.#resting].settleMs;
      if (ms >= settleMs) this.#begin(this.#resting);
      return;
    }
    const longestMs = this.#resting === undefined ? LONGEST_WORK_MS : LONGEST_REST_MS;
    if (this.#parts.meter.pressure.count < ENOUGH_REQUESTS && ms < longestMs) return;
    if (this.#resting !== undefined) {
      if (ms >= REST[this.#resting].ms) this.#endRest(this.#resting);
    } else if (ms >= WORK_MS || this.#isFarAbove()) this.#endWork(ms);
  }

  /** So far above that the foreground should not have to bear it for the rest of the work. */
  #isFarAbove(): boolean {
    if (this.#limit <= this.#lowest) return false;
    const alone = this.#foreground.alone(0.99) ?? Infinity;
    return this.#parts.meter.pressure.quantile(0.99) > Math.max(FAR_ABOVE * alone, alone + UNNOTICED_MS);
  }

  #endWork(ms: number): void {
    const { meter, moved, clock } = this.#parts;
    this.#worked = ((moved() - this.#movedBefore) * 1000) / ms;
    this.#unnoticed = ((meter.pressure.records * 1000) / ms) * UNNOTICED_SHARE * BUSY_PIECE;
    this.#foreground.addWork(meter.pressure);
    if (meter.pressure.count < FEW_REQUESTS) {
      this.#adjust(1);
      this.#begin(undefined);
    } else if (clock.now() - this.#longRestAt >= LONG_REST_EVERY_MS) {
      this.#rest("long");
    } else if (this.#isHarmless) {
      this.#endRest("short"); // it was as good as one
    } else {
      this.#rest("short");
    }
  }

  #endRest(kind: RestKind): void {
    this.#foreground.addRest(kind, this.#parts.meter.pressure);
    const { ratio, doubtful } = this.#foreground;
    this.#adjust(ratio);
    const soon = this.#parts.clock.now() - this.#longRestAt >= LONG_REST_SOON_MS;
    if (ratio > SLOWER_ABOVE && doubtful && soon) this.#rest("long");
    else this.#begin(undefined);
  }

  /** Goes faster or slower. `ratio`: how many times as long the foreground takes at work as alone. */
  #adjust(ratio: number): void {
    const bytesPerSecond = this.#worked;
    const reached = bytesPerSecond >= 0.7 * Math.max(this.#limit, this.#lowest);
    const bears = ratio < FASTER_BELOW || this.#isHarmless;
    if (ratio > SLOWER_ABOVE && !this.#isHarmless) {
      this.#streak = Math.min(this.#streak, 0) - (ratio > FAR_ABOVE ? 2 : 1);
      this.#limit = Math.min(this.#limit, bytesPerSecond) * pick(SLOWER, -this.#streak);
      this.#copies = Math.ceil(this.#copies / 2);
    } else if (bears && reached) {
      this.#streak = Math.max(this.#streak, 0) + 1;
      this.#limit = Math.max(this.#limit, this.#lowest) * pick(FASTER, this.#streak);
    } else if (bears && bytesPerSecond > 0 && bytesPerSecond < FAST) {
      this.#copies = Math.min(MOST_BUSY_COPIES, this.#copies + 1);
    }
  }

  /** Whether the work was so slow that what the foreground was like is not its doing. */
  get #isHarmless(): boolean {
    return this.#worked <= 1.5 * this.#lowest;
  }

  get #floor(): number {
    return Math.min(this.#minRate, this.#rate ?? Infinity);
  }

  get #lowest(): number {
    return Math.min(Math.max(this.#minRate, this.#unnoticed), this.#rate ?? Infinity);
  }

  #apply(): void {
    const { throttle } = this.#parts;
    const busyLimit = this.#resting === undefined ? Math.max(this.#limit, this.#lowest) : this.#floor;
    const limit = this.#busy ? busyLimit : Infinity;
    const rate = Math.min(limit, this.#rate ?? Infinity);
    const bytesPerSecond = rate === Infinity ? null : rate;
    if (throttle.bytesPerSecond !== bytesPerSecond) throttle.bytesPerSecond = bytesPerSecond;
  }
}

/** The n-th, from 1 on; behind the last the last. */
function pick(factors: readonly number[], n: number): number {
  return factors[Math.min(n, factors.length) - 1] ?? 1;
}

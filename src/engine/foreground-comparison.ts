/**
 * What the foreground is like beside copies, against what it is like alone: the one measured at work, the other in rests.
 *
 * A short rest after each work has in it what others on the machine do at that time, so that it is not blamed on the copies.
 * But it also has what copies leave behind, as a disk that is still writing; a long rest has not. So "alone" is what the
 * short rests say, the last of them or all of late, whichever is slower, but at most a quarter more than the long ones say.
 */
import { LatencyHistogram } from "./latency-histogram.ts";

/** A time in which copies rest: right after work, or until nothing of it is left. */
export type RestKind = "short" | "long";

/** Rests whose median counts. */
const KEPT: Record<RestKind, number> = { short: 5, long: 3 };
/** "Alone" by the short rests, at most as a multiple of what it is by the long ones. */
const TRUSTED = 1.25;
/** What nobody notices, ms, however many times as long it is. */
const UNNOTICED_MS = 0.05;
/** The highest quantile that as many requests tell. */
const TELLING = [
  { count: 200, quantile: 0.99 },
  { count: 20, quantile: 0.9 },
  { count: 5, quantile: 0.5 },
];

/** Keeps what work and rests were like, and compares. */
export class ForegroundComparison {
  readonly #work = new LatencyHistogram();
  readonly #rests: Record<RestKind, LatencyHistogram[]> = { short: [], long: [] };

  /** Takes note of work, which ends what was compared before. */
  addWork(times: LatencyHistogram): void {
    this.#work.clear();
    this.#work.add(times);
  }

  /** Takes note of a rest. */
  addRest(kind: RestKind, times: LatencyHistogram): void {
    const rests = this.#rests[kind];
    const rest = (rests.length < KEPT[kind] ? undefined : rests.shift()) ?? new LatencyHistogram();
    rest.clear();
    rest.add(times);
    rests.push(rest);
  }

  /** The foreground's time at the last work, ms, that a share `q` of requests did not exceed; undefined without requests. */
  atWork(q: number): number | undefined {
    return this.#work.count === 0 ? undefined : this.#work.quantile(q);
  }

  /** The same of the foreground alone; undefined as long as it is not known. */
  alone(q: number): number | undefined {
    const byLong = median(this.#rests.long, q);
    if (byLong === undefined) return undefined;
    return Math.min(this.#byShort(q) ?? byLong, TRUSTED * byLong);
  }

  /** How many times as long requests took at the last work as they do alone; 1 where that is not known, or not noticed. */
  get ratio(): number {
    const q = this.#telling;
    if (q === undefined) return 1;
    const work = this.#work.quantile(q);
    const alone = this.alone(q) ?? work;
    return work - alone < UNNOTICED_MS ? 1 : work / alone;
  }

  /** Whether the short rests say that the foreground became slower by itself, which takes a long one to be believed. */
  get doubtful(): boolean {
    const q = this.#telling;
    const [alone, byShort] = q === undefined ? [] : [this.alone(q), this.#byShort(q)];
    return alone !== undefined && byShort !== undefined && byShort > alone;
  }

  /** The quantile that the last work and the last rest can be compared by. */
  get #telling(): number | undefined {
    const last = this.#rests.short.at(-1) ?? this.#rests.long.at(-1);
    const count = Math.min(this.#work.count, last?.count ?? 0);
    return TELLING.find((telling) => count >= telling.count)?.quantile;
  }

  #byShort(q: number): number | undefined {
    const rests = this.#rests.short;
    const last = rests.at(-1);
    return last && Math.max(last.quantile(q), median(rests, q) ?? 0);
  }
}

/** Of two the greater. */
function median(rests: readonly LatencyHistogram[], q: number): number | undefined {
  return rests.map((rest) => rest.quantile(q)).sort((a, b) => a - b)[Math.floor(rests.length / 2)];
}

/**
 * Regions that somebody will probably want soon, to be hydrated before those that nobody asked for.
 *
 *     nearby   next to what was just read: newest first, for the reader has moved on from the oldest
 *     asked    named by the client (NBD_CMD_CACHE): in the order they were named
 *     ordered  needed in this order the last time (`HydrationOrder`)
 *
 * The first two are bounded, and the oldest is dropped: a hint promises nothing.
 */
import type { Region, RegionRange } from "../base/geometry.ts";
import type { HydrationOrder } from "./hydration-order.ts";

/** Why a region is hinted at: the client said so, or it lies next to what was read. */
export type HintKind = "asked" | "nearby";

/** Most ranges remembered of each kind. */
const MOST_RANGES = 1024;

/** Hinted ranges in the order they are best hydrated in. */
export class HintQueue {
  readonly #nearby: RegionRange[] = [];
  readonly #asked: RegionRange[] = [];
  readonly #order: HydrationOrder | undefined;

  /** After all hints comes `order`, which is the queue's from now on. */
  constructor(order?: HydrationOrder) {
    this.#order = order;
  }

  /** Whether none is left. */
  get empty(): boolean {
    return this.next === undefined;
  }

  /** Whether there is any left of the order. */
  get hasOrder(): boolean {
    return this.#order?.next !== undefined;
  }

  /** Whether the range that is next is one of the order, which was not asked for just now. */
  get isOrdered(): boolean {
    return this.#nearby.length === 0 && this.#asked.length === 0;
  }

  /** Remembers a range; one that lies in the last of its kind adds nothing. */
  add({ start, end }: RegionRange, kind: HintKind): void {
    const queue = kind === "nearby" ? this.#nearby : this.#asked;
    const last = queue.at(-1);
    if (start >= end || (last !== undefined && last.start <= start && end <= last.end)) return;
    queue.push({ start, end });
    if (queue.length > MOST_RANGES) queue.shift();
  }

  /** The range that is next; it stays until `advance()` has passed its end. */
  get next(): Readonly<RegionRange> | undefined {
    return this.#nearby.at(-1) ?? this.#asked[0] ?? this.#order?.next;
  }

  /** The range that is next is done below `region`. */
  advance(region: Region): void {
    const next = this.#nearby.at(-1) ?? this.#asked[0];
    if (next === undefined) {
      this.#order?.advance(region);
      return;
    }
    next.start = Math.max(next.start, region);
    if (next.start < next.end) return;
    if (this.#nearby.length > 0) this.#nearby.pop();
    else this.#asked.shift();
  }

  /** Begins the order anew: what a run has passed may not have arrived. */
  rewind(): void {
    this.#order?.rewind();
  }
}

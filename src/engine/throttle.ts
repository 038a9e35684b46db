/**
 * A token bucket for bytes per second, kept as the one number it needs: the time at which all that was granted so far is
 * paid off (the "virtual scheduling" form of the generic cell rate algorithm, ITU-T I.371).
 *
 *     now ----|---- burst ----|            granted at once while `paidAt` is not beyond now + burst
 *                        paidAt -> moves right by bytes / rate with each grant, left by itself as time passes
 *
 * Idle time earns at most one burst, so that a stall is not followed by a flood.
 */
import type { Clock } from "../base/clock.ts";

/** How far a grant may run ahead, ms: with a piece of the same length it keeps every 200 ms window at its rate. */
const BURST_MS = 100;
/** Never ask for less than this at once, bytes: below it the cost of a request outweighs smoothness. */
const MIN_PIECE = 4096;

/** Limits bytes per second. Many may wait at once; they are served in the order they came. */
export class Throttle {
  readonly #clock: Clock;
  #bytesPerSecond: number | null;
  #paidAt = -Infinity;
  /** Ends the sleep of whoever waits when the rate changes. */
  #rateChanged = new AbortController();
  #turn: Promise<void> = Promise.resolve();

  /** `bytesPerSecond` null is unlimited. */
  constructor(clock: Clock, bytesPerSecond: number | null) {
    this.#clock = clock;
    this.#bytesPerSecond = bytesPerSecond;
  }

  get bytesPerSecond(): number | null {
    return this.#bytesPerSecond;
  }

  /** Changes the rate at once, also for those who wait. What was granted before is not paid again. */
  set bytesPerSecond(rate: number | null) {
    const now = this.#clock.now();
    const debtMs = Math.max(0, this.#paidAt - now);
    if (this.#bytesPerSecond !== null && rate !== null) this.#paidAt = now + (debtMs * this.#bytesPerSecond) / rate;
    else this.#paidAt = now;
    this.#bytesPerSecond = rate;
    this.#rateChanged.abort();
    this.#rateChanged = new AbortController();
  }

  /** The most bytes to ask for in one `take()` for the rate to be smooth. */
  get pieceLength(): number {
    return this.#bytesPerSecond === null ? Infinity : Math.max(MIN_PIECE, (this.#bytesPerSecond * BURST_MS) / 1000);
  }

  /** Resolves when `bytes` may be moved; at once, with nothing granted, when `signal` aborts. */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    if (this.#bytesPerSecond === null) return;
    const turn = this.#turn.then(() => this.#grant(bytes, signal));
    this.#turn = turn;
    await turn;
  }

  async #grant(bytes: number, signal: AbortSignal | undefined): Promise<void> {
    await this.#wait(signal);
    if (signal?.aborted || this.#bytesPerSecond === null) return;
    this.#paidAt = Math.max(this.#paidAt, this.#clock.now() - BURST_MS) + (bytes * 1000) / this.#bytesPerSecond;
  }

  async #wait(signal: AbortSignal | undefined): Promise<void> {
    while (this.#bytesPerSecond !== null && !signal?.aborted) {
      const waitMs = this.#paidAt - this.#clock.now();
      if (waitMs <= 0) return;
      const changed = this.#rateChanged.signal;
      await this.#clock.sleep(waitMs, signal === undefined ? changed : AbortSignal.any([signal, changed]));
    }
  }
}

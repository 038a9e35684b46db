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

/**
 * How far a grant may run ahead, and how long a piece should take, ms: a window of 200 ms then never sees more than its
 * own bytes, one burst saved up while idle, and one piece.
 */
const BURST_MS = 50;
/** Never ask for less than this at once, bytes: below it the cost of a request outweighs smoothness. */
const MIN_PIECE = 4096;

/** Limits bytes per second. Many may wait at once; they are served in the order they came. */
export class Throttle {
  readonly #clock: Clock;
  #bytesPerSecond: number | null;
  #paidAt = -Infinity;
  /** Ends the sleep of the one whose turn it is. */
  #wake: (() => void) | undefined;
  #turn: Promise<void> = Promise.resolve();

  /** `bytesPerSecond` null is unlimited. */
  constructor(clock: Clock, bytesPerSecond: number | null) {
    this.#clock = clock;
    this.#bytesPerSecond = bytesPerSecond;
  }

  get bytesPerSecond(): number | null {
    return this.#bytesPerSecond;
  }

  /**
   * Changes the rate at once, also for those who wait. What was granted before is paid off at the faster of the two
   * rates: at a slow new one the bytes of a fast old one would stop everything for hours.
   */
  set bytesPerSecond(rate: number | null) {
    const before = this.#bytesPerSecond;
    const now = this.#clock.now();
    if (before === null || rate === null) this.#paidAt = now;
    else if (this.#paidAt > now) this.#paidAt = now + (this.#paidAt - now) * Math.min(1, before / rate);
    this.#bytesPerSecond = rate;
    this.#wake?.();
  }

  /** The most bytes to ask for in one `take()` for the rate to be smooth. */
  get pieceLength(): number {
    return this.#bytesPerSecond === null ? Infinity : Math.max(MIN_PIECE, (this.#bytesPerSecond * BURST_MS) / 1000);
  }

  /** Resolves when `bytes` may be moved; at once, with nothing granted, when `signal` aborts. */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    if (this.#bytesPerSecond === null) return;
    const turn = this.#turn.then(() => this.#grant(bytes, signal));
    this.#turn = turn; // goes on without whoever gives up: their turn is empty when it comes
    await unlessAborted(turn, signal);
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
      // Not AbortSignal.any(): what it makes stays in memory as long as its sources, and here that is hours.
      const wait = new AbortController();
      this.#wake = () => wait.abort();
      signal?.addEventListener("abort", this.#wake, { once: true });
      await this.#clock.sleep(waitMs, wait.signal);
      signal?.removeEventListener("abort", this.#wake);
      this.#wake = undefined;
    }
  }
}

/** Settles as `promise` does, or resolves when `signal` aborts. */
function unlessAborted(promise: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    if (signal.aborted) return resolve();
    const abort = (): void => resolve();
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

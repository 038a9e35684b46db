import type { Clock } from "../../src/base/clock.ts";

/**
 * Time for what waits on sockets, where only the pauses matter: a sleep shorter than `hangsFromMs` is over at once, and has
 * moved the clock on; a longer one, as of a watchdog, lasts until it is aborted.
 */
export class HastyClock implements Clock {
  /** Every pause that was made, ms. */
  readonly pauses: number[] = [];
  readonly #hangsFromMs: number;
  #now = 0;

  constructor(hangsFromMs = 100_000) {
    this.#hangsFromMs = hangsFromMs;
  }

  now(): number {
    return this.#now;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      if (signal?.aborted) return resolve();
      if (ms >= this.#hangsFromMs) return signal?.addEventListener("abort", () => resolve(), { once: true });
      this.pauses.push(ms);
      this.#now += ms;
      setImmediate(resolve);
    });
  }
}

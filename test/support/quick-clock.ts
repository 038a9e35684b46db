import type { Clock } from "../../src/base/clock.ts";

/**
 * Time in which short pauses pass at once and long ones never, for what pauses between attempts and has deadlines besides:
 * a test of the pauses then takes no time, and only `expire()` makes a deadline pass.
 */
export class QuickClock implements Clock {
  readonly #shortMs: number;
  #now = 0;
  readonly #sleepers = new Map<() => void, number>();

  /** @param shortMs up to this long pauses pass at once */
  constructor(shortMs = 3000) {
    this.#shortMs = shortMs;
  }

  now(): number {
    return this.#now;
  }

  /** Those who wait for a deadline. */
  get sleeping(): number {
    return this.#sleepers.size;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      if (signal?.aborted) return resolve();
      const wake = (): void => {
        this.#sleepers.delete(wake);
        signal?.removeEventListener("abort", wake);
        resolve();
      };
      signal?.addEventListener("abort", wake, { once: true });
      if (ms > this.#shortMs) this.#sleepers.set(wake, this.#now + ms);
      else {
        setImmediate(() => {
          this.#now += ms;
          wake();
        });
      }
    });
  }

  /** Lets `ms` pass, and the deadlines that lie in between, in order; whoever sleeps anew meanwhile wakes in time. */
  async expire(ms: number): Promise<void> {
    const until = this.#now + ms;
    for (;;) {
      const [next] = [...this.#sleepers].sort(([, a], [, b]) => a - b);
      if (next === undefined || next[1] > until) break;
      this.#now = Math.max(this.#now, next[1]);
      next[0]();
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#now = Math.max(this.#now, until);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

import type { Clock } from "../../src/base/clock.ts";

interface Sleeper {
  wakeAt: number;
  /** Breaks ties: who fell asleep first wakes first. */
  order: number;
  wake: () => void;
}

/**
 * Time that passes only while everybody sleeps, so that a test of hours takes milliseconds and always takes the same
 * course. "Everybody sleeps" is when all promise reactions have run: whatever a test waits for besides this clock must
 * not need the event loop, as memory devices do not.
 */
export class VirtualClock implements Clock {
  #now = 0;
  #order = 0;
  #advancing = false;
  readonly #sleepers = new Set<Sleeper>();

  now(): number {
    return this.#now;
  }

  /** Those who sleep at this moment. */
  get sleeping(): number {
    return this.#sleepers.size;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      if (signal?.aborted) return resolve();
      const wake = (): void => {
        this.#sleepers.delete(sleeper);
        signal?.removeEventListener("abort", wake);
        resolve();
      };
      const sleeper = { wakeAt: this.#now + Math.max(0, ms), order: this.#order++, wake };
      this.#sleepers.add(sleeper);
      signal?.addEventListener("abort", wake, { once: true });
      this.#advanceOnceIdle();
    });
  }

  #advanceOnceIdle(): void {
    if (this.#advancing) return;
    this.#advancing = true;
    setImmediate(() => {
      this.#advancing = false;
      const next = [...this.#sleepers].sort((a, b) => a.wakeAt - b.wakeAt || a.order - b.order)[0];
      if (next === undefined) return;
      this.#now = next.wakeAt;
      next.wake();
      this.#advanceOnceIdle();
    });
  }
}

/** Resolves when every promise reaction that is due has run. */
export function whenIdle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

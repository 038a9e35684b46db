/** Lets many wait for whatever happens next, and look for themselves whether it was what they wait for. */
import type { Clock } from "../base/clock.ts";

/** A condition to wait for. Whoever changes what others wait for calls `wake()`; they look again, in the order they came. */
export class Wakeup {
  readonly #waiting = new Set<() => void>();

  /** Resolves at the next `wake()`. */
  wait(): Promise<void> {
    return new Promise((resolve) => this.#waiting.add(resolve));
  }

  /** Resolves at the next `wake()`, then to true, or after `ms` to false. */
  async waitAtMost(clock: Clock, ms: number): Promise<boolean> {
    const over = new AbortController();
    const wake = (): void => over.abort();
    this.#waiting.add(wake);
    await clock.sleep(ms, over.signal);
    this.#waiting.delete(wake);
    return over.signal.aborted;
  }

  /** Wakes all who wait now. */
  wake(): void {
    if (this.#waiting.size === 0) return;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const resolve of waiting) resolve();
  }
}

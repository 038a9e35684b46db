import type { Clock } from "../../src/base/clock.ts";

/** Somebody who sleeps. */
interface Sleeper {
  wakeAt: number;
  /** Breaks ties: who fell asleep first wakes first. */
  order: number;
  wake: () => void;
}

/** Who sleeps until when; what makes time pass is for each kind of clock to say. Times are ms. */
export abstract class TestClock implements Clock {
  #now = 0;
  #order = 0;
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
      this.fellAsleep?.();
    });
  }

  /** Somebody has just fallen asleep. */
  protected fellAsleep?(): void;

  /** It is `time` at least. */
  protected moveTo(time: number): void {
    this.#now = Math.max(this.#now, time);
  }

  /** Moves to the time at which the next one wakes, up to `until`, and wakes it; false where nobody wakes by then. */
  protected wakeNext(until = Number.POSITIVE_INFINITY): boolean {
    const [next] = [...this.#sleepers].sort((a, b) => a.wakeAt - b.wakeAt || a.order - b.order);
    if (next === undefined || next.wakeAt > until) return false;
    this.moveTo(next.wakeAt);
    next.wake();
    return true;
  }
}

/** Resolves when every promise reaction that is due has run. */
export function whenIdle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

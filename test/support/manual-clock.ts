import type { Clock } from "../../src/base/clock.ts";

/** Time that passes when the test says so, for what waits on sockets as well, which no virtual clock knows of. */
export class ManualClock implements Clock {
  #now = 0;
  readonly #sleepers = new Set<{ wakeAt: number; wake: () => void }>();

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
      const sleeper = { wakeAt: this.#now + ms, wake };
      this.#sleepers.add(sleeper);
      signal?.addEventListener("abort", wake, { once: true });
    });
  }

  /** Lets `ms` pass, and whoever is due wake; then lets the event loop turn. */
  async advance(ms: number): Promise<void> {
    this.#now += ms;
    for (const { wakeAt, wake } of [...this.#sleepers]) if (wakeAt <= this.#now) wake();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

import { TestClock, whenIdle } from "./test-clock.ts";

/**
 * Time in which short pauses pass at once and long ones never, for what pauses between attempts and has deadlines besides:
 * a test of the pauses then takes no time, and only `expire()` makes a deadline pass. `sleeping` are those who wait for a deadline.
 */
export class QuickClock extends TestClock {
  readonly #shortMs: number;

  /** @param shortMs up to this long pauses pass at once */
  constructor(shortMs = 3000) {
    super();
    this.#shortMs = shortMs;
  }

  override async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (ms > this.#shortMs) return await super.sleep(ms, signal);
    if (signal?.aborted) return;
    await new Promise<void>((resolve) => {
      const over = (): void => {
        signal?.removeEventListener("abort", over);
        resolve();
      };
      signal?.addEventListener("abort", over, { once: true });
      setImmediate(() => {
        this.moveTo(this.now() + ms);
        over();
      });
    });
  }

  /** Lets `ms` pass, and the deadlines that lie in between, in order; whoever sleeps anew meanwhile wakes in time. */
  async expire(ms: number): Promise<void> {
    const until = this.now() + ms;
    while (this.wakeNext(until)) await whenIdle();
    this.moveTo(until);
    await whenIdle();
  }
}

import type { Clock } from "../base/clock.ts";

/** Lines let through in a period. */
const MOST = 20;
/** Milliseconds. */
const PERIOD = 10_000;

/** Keeps what bad clients cause to be said from filling a disk with logs: what is too much is counted instead. */
export class WarningLimiter {
  readonly #warn: (text: string) => void;
  readonly #clock: Clock;
  #since = Number.NEGATIVE_INFINITY;
  #said = 0;

  constructor(warn: (text: string) => void, clock: Clock) {
    this.#warn = warn;
    this.#clock = clock;
  }

  /** Passes a line on, or counts it. */
  warn(text: string): void {
    const now = this.#clock.now();
    if (now - this.#since >= PERIOD) {
      const unsaid = this.#said - MOST;
      this.#since = now;
      this.#said = 0;
      if (unsaid > 0) this.#warn(`${unsaid} more warnings were not shown`);
    }
    this.#said++;
    if (this.#said <= MOST) this.#warn(text);
  }
}

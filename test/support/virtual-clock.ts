import { TestClock } from "./test-clock.ts";

/**
 * Time that passes only while everybody sleeps, so that a test of hours takes milliseconds and always takes the same
 * course. "Everybody sleeps" is when all promise reactions have run: whatever a test waits for besides this clock must
 * not need the event loop, as memory devices do not.
 */
export class VirtualClock extends TestClock {
  #advancing = false;

  protected override fellAsleep(): void {
    if (this.#advancing) return;
    this.#advancing = true;
    setImmediate(() => {
      this.#advancing = false;
      if (this.wakeNext()) this.fellAsleep();
    });
  }
}

export { whenIdle } from "./test-clock.ts";

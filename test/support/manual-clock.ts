import { TestClock, whenIdle } from "./test-clock.ts";

/** Time that passes when the test says so, for what waits on sockets as well, which no virtual clock knows of. */
export class ManualClock extends TestClock {
  /** Lets `ms` pass, and whoever is due wake; then lets the event loop turn. */
  async advance(ms: number): Promise<void> {
    const until = this.now() + ms;
    this.moveTo(until);
    while (this.wakeNext(until));
    await whenIdle();
  }
}

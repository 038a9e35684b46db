/**
 * One time limit for many: whoever has waited longer than `timeoutMs` is told. Since the limit is the same for all, the
 * oldest is always the next to expire, so one sleeper serves any number of them, and one more costs an entry in a set.
 */
import type { Clock } from "../base/clock.ts";

/** One that waits: what is called when its time is up. */
export type Deadline = { readonly at: number; readonly expire: () => void };

/** Tells those whose time is up. */
export class Deadlines {
  readonly timeoutMs: number;
  readonly #clock: Clock;
  /** Ascending by `at`: a set remembers the order of insertion. */
  readonly #running = new Set<Deadline>();
  #watch: AbortController | undefined;
  #renewedAt = -Infinity;

  /** `timeoutMs` Infinity: never. */
  constructor(clock: Clock, timeoutMs: number) {
    this.#clock = clock;
    this.timeoutMs = timeoutMs;
  }

  /** Has `expire` called in `timeoutMs`, unless `end()` comes before. */
  start(expire: () => void): Deadline {
    const deadline = { at: this.#clock.now() + this.timeoutMs, expire };
    if (this.timeoutMs === Infinity) return deadline;
    this.#running.add(deadline);
    if (this.#watch === undefined) {
      this.#watch = new AbortController();
      void this.#sleep(this.#watch.signal);
    }
    return deadline;
  }

  end(deadline: Deadline): void {
    this.#running.delete(deadline);
  }

  /** Whether a time is less than the time limit ago. */
  isRecent(atMs: number): boolean {
    return atMs + this.timeoutMs > this.#clock.now();
  }

  /** Everybody's time runs anew from now on. */
  renew(): void {
    this.#renewedAt = this.#clock.now();
  }

  /** Stops watching: nobody is told any more, and no timer keeps the process alive. */
  close(): void {
    this.#running.clear();
    this.#watch?.abort();
    this.#watch = undefined;
  }

  async #sleep(closed: AbortSignal): Promise<void> {
    while (!closed.aborted) {
      const [oldest] = this.#running;
      if (oldest === undefined) {
        this.#watch = undefined;
        return;
      }
      const leftMs = Math.max(oldest.at, this.#renewedAt + this.timeoutMs) - this.#clock.now();
      if (leftMs > 0) {
        await this.#clock.sleep(leftMs, closed);
        continue;
      }
      this.#running.delete(oldest);
      oldest.expire();
    }
  }
}

/**
 * The patience of one request: its time runs from the first thing that it waits for, over everything it waits for.
 * `end()` must be called when the request ends.
 */
export class Patience {
  readonly #deadlines: Deadlines;
  readonly #makeError: () => Error;
  #deadline: Deadline | undefined;
  #expired: Promise<never> | undefined;
  #error: Error | undefined;

  readonly #progresses: (() => number)[] = [];

  /** `makeError` is called when the time is up; what it makes is thrown by every `wait()` from then on. */
  constructor(deadlines: Deadlines, makeError: () => Error) {
    this.#deadlines = deadlines;
    this.#makeError = makeError;
  }

  /** What `wait()` throws; undefined as long as the time is not up. */
  get error(): Error | undefined {
    return this.#error;
  }

  /**
   * Settles as `promise` does, or rejects when the time is up. `progressAt` tells when what is waited for got on last, by
   * the clock of the deadlines: where that was less than the time limit ago, the time runs anew.
   */
  wait<T>(promise: Promise<T>, progressAt?: () => number): Promise<T> {
    if (progressAt !== undefined) this.#progresses.push(progressAt);
    if (this.#expired === undefined) {
      this.#expired = new Promise((_, reject) => this.#start(reject));
      this.#expired.catch(() => {}); // those who wait hear of it by the race
    }
    return Promise.race([promise, this.#expired]);
  }

  #start(reject: (error: Error) => void): void {
    this.#deadline = this.#deadlines.start(() => {
      if (this.#progresses.some((at) => this.#deadlines.isRecent(at()))) return this.#start(reject);
      this.#error = this.#makeError();
      reject(this.#error);
    });
  }

  end(): void {
    if (this.#deadline !== undefined) this.#deadlines.end(this.#deadline);
  }
}

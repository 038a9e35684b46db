/**
 * Runs a file's flushes one at a time, and remembers that one failed.
 *
 * The kernel reports a lost write once per open file: of two fdatasync calls at the same time, one would get the error
 * and the other succeed, and a commit made on the latter's word would lie. So a flush that arrives during another waits
 * for the next one, together with all that arrive until that begins. A failure is final: whoever asks later gets it too.
 */
export class FlushQueue {
  readonly #sync: () => Promise<void>;
  #running: Promise<void> | undefined;
  #waiting: Promise<void> | undefined;
  #failure: unknown;

  /** `sync` makes durable whatever was written when it is called. */
  constructor(sync: () => Promise<void>) {
    this.#sync = sync;
  }

  /** Throws what the flush that failed has thrown, if one has. */
  check(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Resolves once everything is durable that was written before the call. Rejects for ever after the first failure. */
  flush(): Promise<void> {
    // One that has not begun covers everything up to now.
    this.#waiting ??= this.#next(this.#running);
    return this.#waiting;
  }

  async #next(running: Promise<void> | undefined): Promise<void> {
    // Begin in a later microtask at least, never inside flush(): `#waiting` must be set first. A failure of the one
    // before is its callers' to hear, and check() repeats it to ours.
    await running?.catch(() => {});
    await undefined;
    this.#running = this.#waiting;
    this.#waiting = undefined;
    this.check();
    try {
      await this.#sync();
    } catch (error) {
      this.#failure = error ?? new Error("flush failed");
      throw error;
    }
  }
}

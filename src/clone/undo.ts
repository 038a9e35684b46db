/** Takes back what a command made, and only that, if it fails before it is done. */

/** A list of steps back, run in reverse order unless `keep()` was called. For `await using`. */
export class Undo implements AsyncDisposable {
  #steps: (() => Promise<void>)[] = [];

  /** Remembers how to take back what was just made. */
  add(step: () => Promise<void>): void {
    this.#steps.push(step);
  }

  /** What was made stays. */
  keep(): void {
    this.#steps = [];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const step of this.#steps.reverse()) await step();
    this.#steps = [];
  }
}

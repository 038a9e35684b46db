/**
 * Keeps changes apart that touch the same bytes, in the order they came. A server whose blocks are large cannot change a part
 * of one: the block is read, changed and written, and whatever else is written to it meanwhile would be undone.
 */
export class RangeLock {
  readonly #held = new Set<Holding>();

  /** Runs `change` while nobody else changes bytes of `start` to `end`. */
  async run<T>(start: number, end: number, change: () => Promise<T>): Promise<T> {
    const before = [...this.#held].filter((other) => other.start < end && start < other.end);
    let release: () => void = () => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    const holding: Holding = { start, end, released };
    this.#held.add(holding);
    try {
      for (const other of before) await other.released;
      return await change();
    } finally {
      this.#held.delete(holding);
      release();
    }
  }
}

interface Holding {
  readonly start: number;
  readonly end: number;
  readonly released: Promise<void>;
}

/** A fixed number of buffers, lent one at a time: the bound on the bytes in flight. */
import assert from "node:assert";

/** Lends `count` buffers made by `allocate`; whoever finds none waits, first come, first served. */
export class BufferPool {
  readonly #allocate: () => Uint8Array;
  readonly #count: number;
  readonly #free: Uint8Array[] = [];
  readonly #lent = new Set<Uint8Array>();
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];

  constructor(count: number, allocate: () => Uint8Array) {
    this.#count = count;
    this.#allocate = allocate;
  }

  /** Lends a buffer until `release()`. Its content is whatever the last user left. */
  acquire(): Promise<Uint8Array> {
    const buffer = this.#free.pop() ?? (this.#lent.size < this.#count ? this.#allocate() : undefined);
    if (buffer === undefined) return new Promise((resolve) => this.#waiting.push(resolve));
    this.#lent.add(buffer);
    return Promise.resolve(buffer);
  }

  release(buffer: Uint8Array): void {
    assert(this.#lent.has(buffer), "a buffer was released that is not lent");
    const next = this.#waiting.shift();
    if (next !== undefined) {
      next(buffer); // stays lent
    } else {
      this.#lent.delete(buffer);
      this.#free.push(buffer);
    }
  }
}

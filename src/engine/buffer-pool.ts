/** A fixed number of buffers, lent one at a time: the bound on the bytes in flight. */
import assert from "node:assert";

/** Lends `count` buffers made by `allocate`; whoever finds none waits, first come, first served. */
export class BufferPool {
  readonly #allocate: () => Uint8Array;
  readonly #count: number;
  readonly #free: Uint8Array[] = [];
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];
  #allocated = 0;

  constructor(count: number, allocate: () => Uint8Array) {
    this.#count = count;
    this.#allocate = allocate;
  }

  /** Lends a buffer until `release()`. Its content is whatever the last user left. */
  acquire(): Promise<Uint8Array> {
    const free = this.#free.pop();
    if (free !== undefined) return Promise.resolve(free);
    if (this.#allocated < this.#count) {
      this.#allocated++;
      return Promise.resolve(this.#allocate());
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  release(buffer: Uint8Array): void {
    assert(!this.#free.includes(buffer), "a buffer was released twice");
    const next = this.#waiting.shift();
    if (next !== undefined) next(buffer);
    else this.#free.push(buffer);
  }
}

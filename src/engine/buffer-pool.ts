/** A number of buffers, lent one at a time: the bound on the bytes in flight. */
import assert from "node:assert";

/** Lends at most `count()` buffers made by `allocate`; whoever finds none waits, first come, first served. */
export class BufferPool {
  readonly #allocate: () => Uint8Array;
  readonly #count: () => number;
  readonly #free: Uint8Array[] = [];
  readonly #lent = new Set<Uint8Array>();
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];

  /** `count` is asked anew each time; 1 at least. Where it shrinks, buffers that are lent stay so until released. */
  constructor(count: () => number, allocate: () => Uint8Array) {
    this.#count = count;
    this.#allocate = allocate;
  }

  /** Lends a buffer until `release()`. Its content is whatever the last user left. */
  acquire(): Promise<Uint8Array> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      this.#serve();
    });
  }

  release(buffer: Uint8Array): void {
    assert(this.#lent.delete(buffer), "a buffer was released that is not lent");
    this.#free.push(buffer);
    this.#serve();
  }

  #serve(): void {
    while (this.#waiting.length > 0 && this.#lent.size < this.#count()) this.#waiting.shift()?.(this.#lend());
  }

  #lend(): Uint8Array {
    const buffer = this.#free.pop() ?? this.#allocate();
    this.#lent.add(buffer);
    return buffer;
  }
}

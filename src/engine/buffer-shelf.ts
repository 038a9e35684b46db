/**
 * Buffers of many sizes, kept for the next who needs one: what is read from a source goes through memory that is not the
 * reader's, and memory fresh from the system costs more than the copy (a fault for each page, and garbage).
 */

/** The smallest buffer kept, bytes. */
const SMALLEST = 4096;

/** Lends buffers by powers of two; keeps at most so many bytes of those that came back. */
export class BufferShelf {
  readonly #mostKept: number;
  readonly #allocate: (byteLength: number) => Uint8Array;
  /** By size class: the power of two. */
  readonly #free = new Map<number, Uint8Array[]>();
  #kept = 0;

  /** `mostKept` in bytes. */
  constructor(mostKept: number, allocate: (byteLength: number) => Uint8Array) {
    this.#mostKept = mostKept;
    this.#allocate = allocate;
  }

  /** A buffer of `byteLength` bytes or more, with whatever its last user left in it. */
  take(byteLength: number): Uint8Array {
    const size = Math.max(SMALLEST, 2 ** Math.ceil(Math.log2(byteLength)));
    const buffer = this.#free.get(size)?.pop();
    if (buffer === undefined) return this.#allocate(size);
    this.#kept -= size;
    return buffer;
  }

  /** Takes back one that `take()` gave, which nobody uses any more. */
  put(buffer: Uint8Array): void {
    if (this.#kept + buffer.length > this.#mostKept) return;
    this.#kept += buffer.length;
    const shelf = this.#free.get(buffer.length);
    if (shelf === undefined) this.#free.set(buffer.length, [buffer]);
    else shelf.push(buffer);
  }
}

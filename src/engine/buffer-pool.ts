/**
 * Buffers lent for as long as a piece is in flight: the bound on the bytes in flight, and on the requests.
 *
 * The bound is in bytes, because a source far away wants so many bytes under way whether they are few large pieces or many
 * small ones. A piece below `SMALLEST_BUFFER` counts as much, so that tiny ones are not thousands of requests.
 */
import assert from "node:assert";

/** What the smallest buffer has, bytes. */
export const SMALLEST_BUFFER = 65_536;

/** How much is lent, and of what. Bytes. */
export interface BufferPoolParts {
  /** Lent at most; asked anew each time. One buffer is lent in any case. */
  capacity: () => number;
  /** The most that is asked for at once. */
  largest: number;
  allocate: (byteLength: number) => Uint8Array;
}

/** Lends buffers by powers of two; whoever finds no room waits, first come, first served. */
export class BufferPool {
  readonly #parts: BufferPoolParts;
  /** By size. */
  readonly #free = new Map<number, Uint8Array[]>();
  #freeBytes = 0;
  readonly #lent = new Set<Uint8Array>();
  #lentBytes = 0;
  /** The most that ever could be lent: what is lent and what is free never takes more. */
  #mostBytes = 0;
  readonly #waiting: { size: number; take: (buffer: Uint8Array) => void }[] = [];

  constructor(parts: BufferPoolParts) {
    this.#parts = parts;
  }

  /** Lends a buffer of `byteLength` bytes or more until `release()`. Its content is whatever the last user left. */
  acquire(byteLength: number): Promise<Uint8Array> {
    const { largest } = this.#parts;
    assert(byteLength <= largest, `no buffer has ${byteLength} bytes`);
    const size = Math.min(largest, Math.max(SMALLEST_BUFFER, 2 ** Math.ceil(Math.log2(byteLength))));
    return new Promise((take) => {
      this.#waiting.push({ size, take });
      this.#serve();
    });
  }

  release(buffer: Uint8Array): void {
    assert(this.#lent.delete(buffer), "a buffer was released that is not lent");
    this.#lentBytes -= buffer.length;
    this.#freeBytes += buffer.length;
    const free = this.#free.get(buffer.length);
    if (free === undefined) this.#free.set(buffer.length, [buffer]);
    else free.push(buffer);
    this.#serve();
  }

  #serve(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const capacity = this.#parts.capacity();
      this.#mostBytes = Math.max(this.#mostBytes, capacity);
      if (this.#lentBytes > 0 && this.#lentBytes + next.size > capacity) return;
      this.#waiting.shift();
      next.take(this.#lend(next.size));
    }
  }

  #lend(size: number): Uint8Array {
    const buffer = this.#free.get(size)?.pop();
    if (buffer !== undefined) this.#freeBytes -= size;
    else this.#makeRoom(size);
    const lent = buffer ?? this.#parts.allocate(size);
    this.#lent.add(lent);
    this.#lentBytes += size;
    return lent;
  }

  /** Lets go of free buffers of other sizes until there is room for one more. */
  #makeRoom(size: number): void {
    for (const free of this.#free.values()) {
      while (this.#lentBytes + this.#freeBytes + size > this.#mostBytes) {
        const dropped = free.pop();
        if (dropped === undefined) break;
        this.#freeBytes -= dropped.length;
      }
    }
  }
}

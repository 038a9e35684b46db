/** Buffers for payloads and replies, used again instead of made anew: 256 KiB of fresh memory cost more than to fill it. */

/** What a buffer holds beyond its class, so that a reply's header fits before a payload of a round size. */
const HEADROOM = 256;
/** Payload sizes that there are buffers for, bytes. Memory never touched costs nothing, so they may be far apart. */
const CLASSES = [4096, 16 * 1024, 64 * 1024, 256 * 1024, 1024 * 1024, 4 * 1024 * 1024];

/** Lends buffers of a few sizes. What is given back is kept, up to a bound. */
export class PayloadBuffers {
  readonly #free: Buffer[][] = CLASSES.map(() => []);
  readonly #mostKept: number;
  #kept = 0;

  /** @param mostKept bytes that are kept for later */
  constructor(mostKept = 8 * 1024 * 1024) {
    this.#mostKept = mostKept;
  }

  /** A buffer of at least `length` bytes, its content whatever was there. */
  take(length: number): Buffer {
    const index = CLASSES.findIndex((size) => length <= size + HEADROOM);
    if (index < 0) return Buffer.allocUnsafeSlow(length);
    const buffer = this.#free[index]?.pop();
    if (buffer === undefined) return Buffer.allocUnsafeSlow((CLASSES[index] as number) + HEADROOM);
    this.#kept -= buffer.length;
    return buffer;
  }

  /** Gives a buffer back that `take()` lent, which nobody looks at any more. */
  give(buffer: Buffer): void {
    const index = CLASSES.indexOf(buffer.length - HEADROOM);
    if (index < 0 || this.#kept + buffer.length > this.#mostKept) return;
    this.#free[index]?.push(buffer);
    this.#kept += buffer.length;
  }
}

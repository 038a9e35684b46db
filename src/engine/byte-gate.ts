/** A bound on bytes that many want to have under way at once. */

/** Lets in whoever comes as long as there is any room left, first come, first served. */
export class ByteGate {
  readonly #most: () => number;
  #inside = 0;
  readonly #waiting: { bytes: number; enter: () => void }[] = [];

  /** `most` is asked anew each time: bytes. The last one let in may go beyond it, by its own bytes. */
  constructor(most: () => number) {
    this.#most = most;
  }

  /** Resolves when so many more bytes are let in; `leave()` must follow. */
  enter(bytes: number): Promise<void> {
    if (this.#waiting.length === 0 && this.#hasRoom) {
      this.#inside += bytes;
      return Promise.resolve();
    }
    return new Promise((enter) => this.#waiting.push({ bytes, enter }));
  }

  leave(bytes: number): void {
    this.#inside -= bytes;
    this.admit();
  }

  /** Lets in who waits, where there has come to be more room. */
  admit(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#hasRoom; next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#inside += next.bytes;
      next.enter();
    }
  }

  get #hasRoom(): boolean {
    return this.#inside === 0 || this.#inside < this.#most();
  }
}

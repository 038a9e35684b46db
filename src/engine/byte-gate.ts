/** A bound on bytes, and on requests, that many want to have under way at once. */

/** Lets in whoever comes as long as there is any room left, first come, first served. */
export class ByteGate {
  readonly #most: () => number;
  readonly #mostRequests: number;
  #inside = 0;
  #requests = 0;
  readonly #waiting: { bytes: number; enter: () => void }[] = [];

  /** `most` is asked anew each time: bytes. The last one let in may go beyond it, by its own bytes. */
  constructor(most: () => number, { mostRequests = Infinity } = {}) {
    this.#most = most;
    this.#mostRequests = mostRequests;
  }

  /** Resolves when so many more bytes are let in; `leave()` must follow. */
  enter(bytes: number): Promise<void> {
    if (this.#waiting.length === 0 && this.#hasRoom) {
      this.#letIn(bytes);
      return Promise.resolve();
    }
    return new Promise((enter) => this.#waiting.push({ bytes, enter }));
  }

  leave(bytes: number): void {
    this.#inside -= bytes;
    this.#requests--;
    this.admit();
  }

  /** Lets in who waits, where there has come to be more room. */
  admit(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#hasRoom; next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#letIn(next.bytes);
      next.enter();
    }
  }

  #letIn(bytes: number): void {
    this.#inside += bytes;
    this.#requests++;
  }

  get #hasRoom(): boolean {
    return this.#requests === 0 || (this.#requests < this.#mostRequests && this.#inside < this.#most());
  }
}

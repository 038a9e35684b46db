/** A bound on what is under way to a server: bytes, because memory and the link hold only so many, and requests. */
export class RequestWindow {
  readonly #mostBytes: number;
  readonly #mostRequests: number;
  #bytes = 0;
  #requests = 0;
  /** First come, first served. */
  readonly #waiting: { bytes: number; enter: () => void }[] = [];
  /** How many of those have entered; the array is cut now and then. */
  #head = 0;

  constructor({ bytes, requests }: { bytes: number; requests: number }) {
    this.#mostBytes = bytes;
    this.#mostRequests = requests;
  }

  /** Takes a place at once, if there is one and nobody waits for it. */
  tryEnter(bytes: number): boolean {
    if (this.#head < this.#waiting.length || !this.#hasRoom(bytes)) return false;
    this.#take(bytes);
    return true;
  }

  /** Takes a place as soon as there is one. */
  enter(bytes: number): Promise<void> {
    if (this.tryEnter(bytes)) return Promise.resolve();
    return new Promise((enter) => this.#waiting.push({ bytes, enter }));
  }

  /** Gives a place back. */
  leave(bytes: number): void {
    this.#bytes -= bytes;
    this.#requests -= 1;
    for (let next = this.#waiting[this.#head]; next !== undefined; next = this.#waiting[this.#head]) {
      if (!this.#hasRoom(next.bytes)) break;
      this.#take(next.bytes);
      this.#head += 1;
      next.enter();
    }
    if (this.#head > 64 && this.#head * 2 > this.#waiting.length) {
      this.#waiting.splice(0, this.#head);
      this.#head = 0;
    }
  }

  /** A request that is larger than the whole window goes alone. */
  #hasRoom(bytes: number): boolean {
    if (this.#requests >= this.#mostRequests) return false;
    return this.#bytes + bytes <= this.#mostBytes || this.#requests === 0;
  }

  #take(bytes: number): void {
    this.#bytes += bytes;
    this.#requests += 1;
  }
}

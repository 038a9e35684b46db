/**
 * Keeps direct and buffered writes to one file apart in time; any number of one kind run together.
 *
 * A direct write drops the page cache's copy of its range before and after it. While a buffered write dirties the same
 * folio (which holds many pages on recent kernels, and any of the neighbour's), that copy cannot be dropped, and stale
 * bytes of it would be written back over the new ones: "Page cache invalidation failure on direct I/O" in the kernel's
 * log. File systems exclude this by the inode's lock, block devices do not.
 */
export type WriteKind = "direct" | "buffered";

/** One file's gate. First come, first served: neither kind can keep the other waiting for ever. */
export class WriteGate {
  #kind: WriteKind = "buffered";
  #running = 0;
  readonly #waiting: { kind: WriteKind; enter: () => void }[] = [];

  /** Whether a write of the kind that is over before anything else happens need not wait for others. */
  isOpenTo(kind: WriteKind): boolean {
    return this.#running === 0 || (this.#kind === kind && this.#waiting.length === 0);
  }

  /** Runs `operation` while no write of the other kind runs. */
  async run<T>(kind: WriteKind, operation: () => Promise<T>): Promise<T> {
    if (this.isOpenTo(kind)) {
      this.#kind = kind;
      this.#running += 1;
    } else {
      await new Promise<void>((enter) => this.#waiting.push({ kind, enter }));
    }
    try {
      return await operation();
    } finally {
      this.#running -= 1;
      if (this.#running === 0) this.#admitNext();
    }
  }

  #admitNext(): void {
    const first = this.#waiting[0];
    if (first === undefined) return;
    this.#kind = first.kind;
    while (this.#waiting[0]?.kind === first.kind) {
      this.#running += 1; // counted here, before anybody else can come in
      this.#waiting.shift()?.enter();
    }
  }
}

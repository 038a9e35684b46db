/** The bytes of a disk of any size, most of which are zeros. */

const PAGE = 4096;

export class SparseBytes {
  readonly size: number;
  /** Every page that was ever written, zeros too; the rest is zeros. */
  readonly #pages = new Map<number, Buffer>();

  constructor(size: number) {
    this.size = size;
  }

  write(offset: number, bytes: Buffer): void {
    for (let done = 0; done < bytes.length; ) {
      const within = (offset + done) % PAGE;
      const length = Math.min(PAGE - within, bytes.length - done);
      const index = Math.floor((offset + done) / PAGE);
      const page = this.#pages.get(index) ?? Buffer.alloc(PAGE);
      this.#pages.set(index, page);
      bytes.copy(page, within, done, done + length);
      done += length;
    }
  }

  zero(offset: number, length: number): void {
    for (const [index, page] of this.#pages) {
      const start = Math.max(0, offset - index * PAGE);
      const end = Math.min(PAGE, offset + length - index * PAGE);
      if (start < end) page.fill(0, start, end);
    }
  }

  read(offset: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const within = (offset + done) % PAGE;
      const step = Math.min(PAGE - within, length - done);
      this.#pages.get(Math.floor((offset + done) / PAGE))?.copy(bytes, done, within, within + step);
      done += step;
    }
    return bytes;
  }

  /** What was ever written, with as much beside it; ascending, at most a MiB each. */
  extents(): { offset: number; length: number }[] {
    const most = 2 ** 20 / PAGE;
    const last = Math.ceil(this.size / PAGE) - 1;
    const indexes = [...this.#pages.keys()].flatMap((index) => [index - 1, index, index + 1]);
    const found: { first: number; count: number }[] = [];
    for (const index of [...new Set(indexes)].filter((each) => each >= 0 && each <= last).sort((a, b) => a - b)) {
      const run = found.at(-1);
      if (run !== undefined && run.first + run.count === index && run.count < most) run.count += 1;
      else found.push({ first: index, count: 1 });
    }
    return found.map(({ first, count }) => {
      const offset = first * PAGE;
      return { offset, length: Math.min(count * PAGE, this.size - offset) };
    });
  }
}

/** An answer that tells of less than this, and less than was asked for, is a short one. Bytes. */
const SHORT = 1024 * 1024;
/** So many short answers are taken for any range, and one more for each so many bytes of it. */
const LEAST_SHORT = 64;
const BYTES_PER_SHORT = 8 * 1024 * 1024;
/** So many descriptors are looked at for one range. */
const MOST_DESCRIPTORS = 2 ** 20;

/**
 * How often a server is asked what a range consists of. One may tell of as little as it likes at a time: at a byte, or a
 * sector, and the time of a round trip each, the answers take longer than to read the range. Then the rest is read.
 */
export class StatusBudget {
  #short: number;
  #descriptors = MOST_DESCRIPTORS;

  /** @param length of the range, bytes */
  constructor(length: number) {
    this.#short = LEAST_SHORT + Math.floor(length / BYTES_PER_SHORT);
  }

  /** Whether there have been enough answers. */
  get isSpent(): boolean {
    return this.#short <= 0 || this.#descriptors <= 0;
  }

  /** Takes note of an answer: what was asked for, and what of it was told, in bytes, and in how many descriptors. */
  spend({ asked, told, descriptors }: { asked: number; told: number; descriptors: number }): void {
    if (told < Math.min(asked, SHORT)) this.#short -= 1;
    this.#descriptors -= descriptors;
  }
}

import type { Clock } from "../../base/clock.ts";
import type { PieceRange } from "./in-pieces.ts";

/** More ranges than this are taken for one that reaches from the first to the last. */
const MOST_RANGES = 1024;

/**
 * Changes that were under way when their connection was lost. Servers end what they have begun, though nobody hears of it any
 * more, and a flush covers only what they have answered: for a while such a change may still be carried out, over whatever is
 * written there meanwhile. Nothing in the protocol tells when that is over, so it is taken to be over after some time.
 */
export class StrayChanges {
  readonly #clock: Clock;
  readonly #forMs: number;
  readonly #closed = new AbortController();
  /** In the order in which they were lost. */
  #ranges: StrayRange[] = [];

  /** `forMs`: how long after its loss a change may be carried out. */
  constructor(clock: Clock, forMs: number) {
    this.#clock = clock;
    this.#forMs = forMs;
  }

  /** A connection was lost, and these changes with it. */
  add(changes: readonly PieceRange[]): void {
    if (changes.length === 0) return;
    const until = this.#clock.now() + this.#forMs;
    const ranges = merged(changes).map((range) => ({ ...range, until }));
    this.#ranges = [...this.#ranges.filter((range) => range.until > this.#clock.now()), ...ranges];
    if (this.#ranges.length <= MOST_RANGES) return;
    const offset = Math.min(...this.#ranges.map((range) => range.offset));
    const end = Math.max(...this.#ranges.map((range) => range.offset + range.length));
    this.#ranges = [{ offset, length: end - offset, until }];
  }

  /** Undefined where there is none in a range; else resolves when there may be none any more, and it is worth another look. */
  in(offset: number, length: number): Promise<void> | undefined {
    if (this.#ranges.length === 0 || this.#closed.signal.aborted) return undefined;
    let until = Number.NEGATIVE_INFINITY;
    for (const range of this.#ranges) {
      if (range.offset < offset + length && offset < range.offset + range.length) until = Math.max(until, range.until);
    }
    const leftMs = until - this.#clock.now();
    return leftMs > 0 ? this.#clock.sleep(leftMs, this.#closed.signal) : undefined;
  }

  /** Nobody waits any more. */
  close(): void {
    this.#closed.abort();
  }
}

interface StrayRange extends PieceRange {
  /** By the clock, ms. */
  readonly until: number;
}

/** Ascending, those that touch as one. */
function merged(ranges: readonly PieceRange[]): PieceRange[] {
  const result: PieceRange[] = [];
  for (const { offset, length } of [...ranges].sort((a, b) => a.offset - b.offset)) {
    const last = result.at(-1);
    if (last === undefined || last.offset + last.length < offset) result.push({ offset, length });
    else last.length = Math.max(last.length, offset + length - last.offset);
  }
  return result;
}

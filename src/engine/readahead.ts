/**
 * Recognises readers that go through a device from one place on, and says how far ahead of them to read, as the kernel does
 * for a file (`mm/readahead.c`):
 *
 *        what has been read      window, of which half is left
 *     ──────────────────────┤▓▓▓▓▓▓▓▓▓▓▓▓▓▓┆▓▓▓▓▓▓▓▓▓▓▓▓▓▓├──────
 *                          next                         ahead
 *                           └─ beyond the half: the next window, twice as long, is asked for
 *
 * A read that begins where another has ended, or near there, is its reader's; clients with several requests in flight send
 * them out of order, and leave little gaps. Any other read may begin a new stream: the first one is not trusted, since most
 * reads are of one place and nothing follows. Of what is not sequential nothing is read ahead.
 */
import type { ByteRange } from "../base/geometry.ts";

const KIB = 1024;

/** Readers followed at once; the one that has not been heard of for the longest makes room. */
const MOST_STREAMS = 16;
/** How far from where a stream has come its next read may begin, bytes: at least this, or twice its length. */
const NEAR = 128 * KIB;
/** The first window, bytes. */
const FIRST_WINDOW = 128 * KIB;

/** What it works on. */
export interface ReadaheadParts {
  /** Bytes of the device. */
  size: number;
  /** The longest window, bytes; asked anew each time. */
  most: () => number;
}

/** A reader. Offsets are bytes. */
interface Stream {
  /** Where the furthest read has ended. */
  next: number;
  /** As far as has been asked for; `next` or more. */
  ahead: number;
  /** 0 as long as only one read is known of it. */
  window: number;
}

/** The sequential readers of a device. */
export class Readahead {
  readonly #parts: ReadaheadParts;
  /** Those heard of last come first. */
  readonly #streams: Stream[] = [];

  constructor(parts: ReadaheadParts) {
    this.#parts = parts;
  }

  /**
   * Takes note of a read from `offset` to `end`; one that is no stream's begins one, unless told not to. Returns what is to be
   * read ahead of it from now on, and has not been returned before.
   */
  note(offset: number, end: number, { begins = true }: { begins?: boolean } = {}): ByteRange | undefined {
    const near = Math.max(NEAR, 2 * (end - offset));
    for (let index = 0; index < this.#streams.length; index++) {
      const stream = this.#streams[index] as Stream;
      if (Math.abs(offset - stream.next) > near) continue;
      if (index > 0) {
        this.#streams.copyWithin(1, 0, index);
        this.#streams[0] = stream;
      }
      return this.#advance(stream, end);
    }
    if (!begins) return undefined;
    if (this.#streams.length >= MOST_STREAMS) this.#streams.pop();
    this.#streams.unshift({ next: end, ahead: end, window: 0 });
    return undefined;
  }

  #advance(stream: Stream, end: number): ByteRange | undefined {
    if (end <= stream.next) return undefined; // late, or once more
    stream.next = end;
    stream.ahead = Math.max(stream.ahead, end);
    if (stream.window > 0 && stream.ahead - end > stream.window / 2) return undefined;
    const { size, most } = this.#parts;
    stream.window = Math.min(most(), stream.window === 0 ? FIRST_WINDOW : 2 * stream.window);
    const range = { offset: stream.ahead, length: Math.min(size, end + stream.window) - stream.ahead };
    if (range.length <= 0) return undefined;
    stream.ahead += range.length;
    return range;
  }
}

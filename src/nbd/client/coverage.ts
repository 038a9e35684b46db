import { ProtocolError } from "../protocol-error.ts";

/** So many pieces apart from each other are more than any server has reason to send. */
const MOST_PIECES = 4096;

/**
 * Which bytes of a read have come. A server may send them in any order and number of pieces, but each exactly once (NBD
 * "Structured reply message"). Offsets are relative to the read, bytes.
 */
export class Coverage {
  /** Everything before this has come; pieces mostly come in order. */
  #front = 0;
  /** What has come beyond it: ascending, neither touching nor overlapping. */
  readonly #pieces: { start: number; end: number }[] = [];

  /** Whether the first `length` bytes have all come. */
  isWhole(length: number): boolean {
    return this.#front >= length;
  }

  /** Takes note of a piece. @throws {ProtocolError} where some of it has come before, or there are too many pieces */
  add(start: number, end: number): void {
    const pieces = this.#pieces;
    let low = 0;
    for (let high = pieces.length; low < high; ) {
      const middle = Math.floor((low + high) / 2);
      if ((pieces[middle] as { end: number }).end <= start) low = middle + 1;
      else high = middle;
    }
    const next = pieces[low]; // the first that ends behind `start`
    if (start < this.#front || (next !== undefined && next.start < end)) {
      throw new ProtocolError("it sent the same bytes of a read twice");
    }
    if (start > this.#front) this.#insert(low, start, end);
    else this.#advance(end);
  }

  #insert(index: number, start: number, end: number): void {
    const [before, next] = [this.#pieces[index - 1], this.#pieces[index]];
    if (before?.end === start) {
      before.end = end;
      if (next?.start === end) {
        before.end = next.end;
        this.#pieces.splice(index, 1);
      }
    } else if (next?.start === end) {
      next.start = start;
    } else {
      if (this.#pieces.length >= MOST_PIECES) throw new ProtocolError("it sent a read in too many pieces");
      this.#pieces.splice(index, 0, { start, end });
    }
  }

  #advance(end: number): void {
    this.#front = end;
    if (this.#pieces[0]?.start === end) this.#front = (this.#pieces.shift() as { end: number }).end;
  }
}

/**
 * The byte ranges of a device in the order in which they were first needed: the trace of a boot, or of any other start.
 *
 *     touches   [0, 512)  [8192, 12288)  [12288, 16384)  [0, 4096)  …
 *     told      [0, 4096) [8192, ──────────── 16384)                 once each, in units of a granule, neighbours as one
 *
 * A granule is 4 KiB, and larger where there would be more than 2^28 of them: their bitmap takes 32 MiB at most, and of that
 * only as much as was touched. So what is told has no more to do with the regions of a clone than that.
 */
import type { ByteRange } from "../base/geometry.ts";
import { RegionBitmap } from "../metadata/region-bitmap.ts";

/** The smallest granule, bytes. */
const SMALLEST_GRANULE = 4096;
const MOST_GRANULES = 2 ** 28;

/** Tells each range of a device when it is touched for the first time. */
export class FirstTouches {
  /** The unit in which touches are told, bytes: a power of two. */
  readonly granule: number;
  readonly #size: number;
  readonly #touched: RegionBitmap;
  readonly #onRange: (range: ByteRange) => void;
  /** What is not told yet, because the next touch may go on where it ends; granules. Empty where both are the same. */
  #start = 0;
  #end = 0;

  /** `size` in bytes. `onRange` is called with ranges that do not overlap, and must be quick. */
  constructor(size: number, onRange: (range: ByteRange) => void) {
    this.#size = size;
    this.#onRange = onRange;
    this.granule = Math.max(SMALLEST_GRANULE, 2 ** Math.ceil(Math.log2(size / MOST_GRANULES)));
    this.#touched = new RegionBitmap(Math.ceil(size / this.granule));
  }

  /** Takes note of a range, bytes, within the device. */
  touch(offset: number, length: number): void {
    const end = Math.ceil((offset + length) / this.granule);
    const touched = this.#touched;
    for (let start = touched.nextUnset(Math.floor(offset / this.granule), end); start < end; ) {
      const runEnd = touched.nextSet(start, end);
      touched.setRange({ start, end: runEnd });
      this.#add(start, runEnd);
      start = touched.nextUnset(runEnd, end);
    }
  }

  /** Tells what has not been told yet. */
  tellRest(): void {
    const { granule } = this;
    if (this.#start === this.#end) return;
    const offset = this.#start * granule;
    const length = Math.min(this.#end * granule, this.#size) - offset;
    this.#start = this.#end;
    this.#onRange({ offset, length });
  }

  #add(start: number, end: number): void {
    if (start !== this.#end) {
      this.tellRest();
      this.#start = start;
    }
    this.#end = end;
  }
}

import type { Extent } from "../../device/block-device.ts";
import { AllocationFlag } from "../protocol.ts";
import type { Descriptor } from "../transmission-codec.ts";

/** So many extents are kept of any range, and one more for each so many bytes; beyond that holes are not worth the memory. */
const LEAST_EXTENTS = 1024;
const BYTES_PER_EXTENT = 4096;
const MOST_EXTENTS = 2 ** 20;

/** The extents of a range, put together from what servers say of parts of it. Bytes. */
export class ExtentList {
  readonly extents: Extent[] = [];
  readonly #end: number;
  readonly #most: number;
  /** All before it is told. */
  at: number;

  constructor(offset: number, length: number) {
    this.at = offset;
    this.#end = offset + length;
    this.#most = Math.min(MOST_EXTENTS, LEAST_EXTENTS + Math.floor(length / BYTES_PER_EXTENT));
  }

  get isWhole(): boolean {
    return this.at >= this.#end;
  }

  /** Status from `start` on, which is not behind `at`; what lies outside of the range is left out. */
  append(start: number, runs: Iterable<Descriptor>): void {
    let from = start;
    for (const { length, flags } of runs) {
      const to = from + length;
      const hole = flags % 2 === AllocationFlag.hole;
      const zero = Math.floor(flags / AllocationFlag.zero) % 2 === 1;
      this.#add(Math.min(to, this.#end), hole, zero);
      from = to;
      if (from >= this.#end) break;
    }
  }

  /** Of the next `length` bytes nothing is known: data. */
  appendUnknown(length: number): void {
    this.#add(Math.min(this.at + length, this.#end), false, false);
  }

  /** Of the rest nothing is known: data. */
  finish(): Extent[] {
    this.#add(this.#end, false, false);
    return this.extents;
  }

  #add(to: number, hole: boolean, zero: boolean): void {
    const length = to - this.at;
    if (length <= 0) return;
    const last = this.extents.at(-1);
    if (last !== undefined && last.hole === hole && last.zero === zero) last.length += length;
    else if (last !== undefined && this.extents.length >= this.#most) {
      last.hole = last.hole && hole;
      last.zero = last.zero && zero;
      last.length += length;
    } else this.extents.push({ offset: this.at, length, hole, zero });
    this.at = to;
  }
}

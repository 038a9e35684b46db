import type { Extent } from "../../device/block-device.ts";
import { AllocationFlag } from "../protocol.ts";
import type { Descriptor } from "../transmission-codec.ts";

/** So many extents are kept of one question; beyond that what a server says of holes is not worth the memory. */
const MOST_EXTENTS = 2 ** 20;

/** The extents of a range, put together from what servers say of parts of it. Bytes. */
export class ExtentList {
  readonly extents: Extent[] = [];
  readonly #end: number;
  /** All before it is told. */
  at: number;

  constructor(offset: number, length: number) {
    this.at = offset;
    this.#end = offset + length;
  }

  get isWhole(): boolean {
    return this.at >= this.#end;
  }

  /** Status from `start` on, which is not behind `at`; what lies outside of the range is left out. */
  append(start: number, runs: readonly Descriptor[]): void {
    let from = start;
    for (const { length, flags } of runs) {
      const to = from + length;
      const hole = flags % 2 === AllocationFlag.hole;
      const zero = Math.floor(flags / AllocationFlag.zero) % 2 === 1;
      this.#add(Math.min(to, this.#end), hole, zero);
      from = to;
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
    else if (last !== undefined && this.extents.length >= MOST_EXTENTS) {
      last.hole = last.hole && hole;
      last.zero = last.zero && zero;
      last.length += length;
    } else this.extents.push({ offset: this.at, length, hole, zero });
    this.at = to;
  }
}

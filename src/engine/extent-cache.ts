/**
 * What the source says about its holes, asked once per window and kept as long as there is room. That is sound because a
 * source does not change during a clone (the commit guard sees to it); a destination does, and is always asked anew.
 *
 * Asking again would be dear: copies that follow reads jump between windows, and on tmpfs one question walks all pages up to
 * the next hole, wherever that is.
 */
import type { BlockDevice, Extent } from "../device/block-device.ts";

/** Bytes asked about at once: large enough to cross a sparse terabyte in some thousand steps, small enough to bound one answer. */
export const WINDOW_BYTES = 512 * 2 ** 20;
/** Windows and extents kept, some megabytes of each; two windows in any case, for the batches in flight lie in one or two. */
const MOST_WINDOWS = 4096;
const MOST_EXTENTS = 65_536;
const FEWEST_WINDOWS = 2;

/** What is known of a window. */
interface Window {
  answer: Promise<Extent[]>;
  /** How many extents the answer has; 0 as long as it has not come. */
  count: number;
}

/** A window-wise cache of a source's extents. */
export class ExtentCache {
  readonly #source: BlockDevice;
  readonly #trusted: boolean;
  readonly #windows = new Map<number, Window>();
  #extents = 0;

  /** With `trusted` false the source's word is not asked for: everything counts as data. */
  constructor(source: BlockDevice, { trusted = true }: { trusted?: boolean } = {}) {
    this.#source = source;
    this.#trusted = trusted;
  }

  /** The extents of a range, clipped to it, ascending, without gaps. @throws {DeviceError} */
  async extents(offset: number, length: number): Promise<Extent[]> {
    if (!this.#trusted) return [{ offset, length, hole: false, zero: false }];
    const end = offset + length;
    const result: Extent[] = [];
    for (let position = offset; position < end; ) {
      const index = Math.floor(position / WINDOW_BYTES);
      const window = await this.#window(index);
      for (const extent of overlapping(window, position, end)) {
        const from = Math.max(extent.offset, position);
        const to = Math.min(extent.offset + extent.length, end);
        const last = result.at(-1);
        if (last?.zero === extent.zero && last.hole === extent.hole) last.length = to - last.offset;
        else result.push({ offset: from, length: to - from, hole: extent.hole, zero: extent.zero });
      }
      position = Math.min(end, (index + 1) * WINDOW_BYTES);
    }
    return result;
  }

  /**
   * Where the zeros that begin at `offset` are known to end; `offset` itself where there is data. Looks no further than
   * the window that holds `offset`. @throws {DeviceError}
   */
  async zerosEnd(offset: number): Promise<number> {
    if (!this.#trusted) return offset;
    const windowEnd = Math.min((Math.floor(offset / WINDOW_BYTES) + 1) * WINDOW_BYTES, this.#source.size);
    let end = offset;
    for (const extent of await this.extents(offset, windowEnd - offset)) {
      if (!extent.zero) break;
      end = extent.offset + extent.length;
    }
    return end;
  }

  #window(index: number): Promise<Extent[]> {
    const known = this.#windows.get(index);
    const window = known ?? { answer: this.#ask(index), count: 0 };
    this.#windows.delete(index);
    this.#windows.set(index, window); // the youngest last
    if (known === undefined) {
      window.answer.then(
        ({ length }) => this.#answered(index, window, length),
        // An error is not worth keeping: the next one asks again, unless somebody has done so already.
        () => this.#windows.get(index) === window && this.#windows.delete(index),
      );
    }
    return window.answer;
  }

  #ask(index: number): Promise<Extent[]> {
    const offset = index * WINDOW_BYTES;
    return this.#source.extents(offset, Math.min(WINDOW_BYTES, this.#source.size - offset));
  }

  #answered(index: number, window: Window, count: number): void {
    if (this.#windows.get(index) !== window) return;
    window.count = count;
    this.#extents += count;
    for (const [oldest, { count }] of this.#windows) {
      const { size } = this.#windows;
      if (size <= FEWEST_WINDOWS || (size <= MOST_WINDOWS && this.#extents <= MOST_EXTENTS)) break;
      this.#windows.delete(oldest);
      this.#extents -= count;
    }
  }
}

/** The extents that overlap `start` … `end`, found without walking those before. */
function* overlapping(extents: Extent[], start: number, end: number): Generator<Extent> {
  let low = 0;
  let high = extents.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    const extent = extents[middle] as Extent;
    if (extent.offset + extent.length <= start) low = middle + 1;
    else high = middle;
  }
  for (let index = low; index < extents.length; index++) {
    const extent = extents[index] as Extent;
    if (extent.offset >= end) return;
    yield extent;
  }
}

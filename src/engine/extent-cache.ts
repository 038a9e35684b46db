/**
 * What the source says about its holes, asked once per window and kept for the few windows that copies are at. That is
 * sound because a source does not change during a clone (the commit guard sees to it); a destination does, and is always
 * asked anew.
 */
import type { BlockDevice, Extent } from "../device/block-device.ts";

/** Bytes asked about at once: large enough to cross a sparse terabyte in some thousand steps, small enough to bound one answer. */
export const WINDOW_BYTES = 512 * 2 ** 20;
/** Windows kept; the batches in flight lie in one or two. */
const WINDOWS_KEPT = 2;

/** A window-wise cache of a source's extents. */
export class ExtentCache {
  readonly #source: BlockDevice;
  readonly #trusted: boolean;
  readonly #windows = new Map<number, Promise<Extent[]>>();

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
    let window = this.#windows.get(index);
    if (window === undefined) {
      const offset = index * WINDOW_BYTES;
      const asked = this.#source.extents(offset, Math.min(WINDOW_BYTES, this.#source.size - offset));
      // An error is not worth keeping: the next one asks again, unless somebody has done so already.
      asked.catch(() => this.#windows.get(index) === asked && this.#windows.delete(index));
      window = asked;
    } else {
      this.#windows.delete(index);
    }
    this.#windows.set(index, window); // the youngest last
    for (const oldest of this.#windows.keys()) {
      if (this.#windows.size <= WINDOWS_KEPT) break;
      this.#windows.delete(oldest);
    }
    return window;
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

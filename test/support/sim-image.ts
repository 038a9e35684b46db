/** The bytes of a simulated disk: sparse, copied cheaply, and open to be read as a device. */
import type { Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";

/** The unit in which a disk's writes are atomic, bytes. */
export const SECTOR = 512;
const PAGE = 4096;
const ZEROS = Buffer.alloc(PAGE);

/** Pages of 4096 bytes exist once something was written to them; all others are zeros. Counts in whole sectors. */
export class SparseImage {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  readonly pages: Map<number, Buffer>;

  constructor(size: number, pages: Map<number, Buffer> = new Map()) {
    this.size = Math.ceil(size / SECTOR) * SECTOR;
    this.pages = pages;
  }

  static from(content: Uint8Array): SparseImage {
    const image = new SparseImage(content.length);
    image.write(0, content);
    return image;
  }

  copy(): SparseImage {
    return new SparseImage(this.size, new Map([...this.pages].map(([page, bytes]) => [page, Buffer.from(bytes)])));
  }

  read(offset: number, buffer: Uint8Array): void {
    this.#checkRange(offset, buffer.length);
    for (let at = 0; at < buffer.length; ) {
      const [page, start] = placeOf(offset + at);
      const length = Math.min(PAGE - start, buffer.length - at);
      buffer.set((this.pages.get(page) ?? ZEROS).subarray(start, start + length), at);
      at += length;
    }
  }

  write(offset: number, data: Uint8Array): void {
    this.#checkRange(offset, data.length);
    for (let at = 0; at < data.length; ) {
      const [page, start] = placeOf(offset + at);
      const length = Math.min(PAGE - start, data.length - at);
      this.#page(page).set(data.subarray(at, at + length), start);
      at += length;
    }
  }

  /** Whether `length` bytes at `offset`, which lie in one sector, are those at `from` of `other`. */
  holds(offset: number, length: number, other: Buffer, from: number): boolean {
    const [page, start] = placeOf(offset);
    return other.compare(this.pages.get(page) ?? ZEROS, start, start + length, from, from + length) === 0;
  }

  /** The pages that exist and lie in the range, ascending. */
  pagesIn(offset: number, length: number): number[] {
    const [first, last] = [Math.floor(offset / PAGE), Math.ceil((offset + length) / PAGE) - 1];
    if (last - first < this.pages.size) {
      const found: number[] = [];
      for (let page = first; page <= last; page++) if (this.pages.has(page)) found.push(page);
      return found;
    }
    return [...this.pages.keys()].filter((page) => page >= first && page <= last).sort((a, b) => a - b);
  }

  /** Its runs of pages, those that read as zeros told as holes; clipped to the range. */
  extents(offset: number, length: number): Extent[] {
    const end = offset + length;
    const extents: Extent[] = [];
    const add = (until: number, zero: boolean): void => {
      const last = extents.at(-1);
      const start = last === undefined ? offset : last.offset + last.length;
      if (until <= start) return;
      if (last?.zero === zero) last.length = until - last.offset;
      else extents.push({ offset: start, length: until - start, hole: zero, zero });
    };
    for (const page of this.pagesIn(offset, length)) {
      if (ZEROS.equals(this.pages.get(page) as Buffer)) continue;
      add(Math.min(end, page * PAGE), true);
      add(Math.min(end, (page + 1) * PAGE), false);
    }
    add(end, true);
    return extents;
  }

  #page(page: number): Buffer {
    const bytes = this.pages.get(page) ?? Buffer.alloc(PAGE);
    this.pages.set(page, bytes);
    return bytes;
  }

  #checkRange(offset: number, length: number): void {
    if (offset < 0 || offset + length > this.size) throw new RangeError(`${offset}+${length} is beyond ${this.size}`);
  }
}

/** An image as a device whose requests are done at once: for looking at what a crash has left. */
export class ImageDevice extends FilterDevice {
  readonly #image: SparseImage;

  constructor(image: SparseImage, name: string) {
    super(new MemoryDevice({ name, size: image.size }));
    this.#image = image;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.#image.read(offset, buffer);
  }

  override async write(offset: number, data: Uint8Array): Promise<void> {
    this.#image.write(offset, data);
  }

  override tryRead(offset: number, buffer: Uint8Array): boolean {
    this.#image.read(offset, buffer);
    return true;
  }

  override tryWrite(offset: number, data: Uint8Array): boolean {
    this.#image.write(offset, data);
    return true;
  }

  override async zero(offset: number, length: number, _options?: ZeroOptions): Promise<void> {
    for (const { start, end } of pagesOf(this.#image, offset, length))
      this.#image.write(start, ZEROS.subarray(0, end - start));
  }

  override async discard(): Promise<void> {}

  override async extents(offset: number, length: number): Promise<Extent[]> {
    return length === 0 ? [] : this.#image.extents(offset, length);
  }

  override mapRange(): undefined {
    return undefined;
  }
}

/** The parts of a range that lie in pages that exist, ascending; bytes. */
export function pagesOf(image: SparseImage, offset: number, length: number): { start: number; end: number }[] {
  return image.pagesIn(offset, length).map((page) => ({
    start: Math.max(offset, page * PAGE),
    end: Math.min(offset + length, (page + 1) * PAGE),
  }));
}

function placeOf(offset: number): [page: number, start: number] {
  const start = offset % PAGE;
  return [(offset - start) / PAGE, start];
}

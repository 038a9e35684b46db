import type { BlockDevice, Extent, ZeroOptions } from "./block-device.ts";
import { checkRange, checkWritable } from "./range-check.ts";

/** Unit of allocation, bytes. */
const PAGE_SIZE = 4096;

/** How to make a device in memory. */
export interface MemoryDeviceOptions {
  /** Bytes; unwritten ones take no memory. */
  size: number;
  /** Default `memory`. */
  name?: string;
  /** Default 512. */
  blockSize?: number;
  readOnly?: boolean;
  /** Content from byte 0 on; copied. */
  content?: Uint8Array;
}

/** A sparse device in memory: pages of 4096 bytes exist once something was written to them. */
export class MemoryDevice implements BlockDevice {
  readonly name: string;
  readonly size: number;
  readonly blockSize: number;
  readonly readOnly: boolean;
  readonly #pages = new Map<number, Uint8Array>();

  constructor({ size, name = "memory", blockSize = 512, readOnly = false, content }: MemoryDeviceOptions) {
    if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`size ${size} is not a number of bytes`);
    this.size = size;
    this.name = name;
    this.blockSize = blockSize;
    this.readOnly = readOnly;
    if (content !== undefined) {
      checkRange(this, 0, content.length);
      this.#store(0, content);
    }
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.#load(offset, buffer);
  }

  async write(offset: number, data: Uint8Array, _options: { fua?: boolean } = {}): Promise<void> {
    this.#checkChange(offset, data.length);
    this.#store(offset, data);
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    this.#load(offset, buffer);
    return true;
  }

  tryWrite(offset: number, data: Uint8Array): boolean {
    this.#checkChange(offset, data.length);
    this.#store(offset, data);
    return true;
  }

  /** Memory is as durable as it will ever be. */
  async flush(): Promise<void> {}

  async zero(offset: number, length: number, { mayPunch = true }: ZeroOptions = {}): Promise<void> {
    this.#checkChange(offset, length);
    for (const { page, start, end } of pieces(offset, length)) {
      if (mayPunch && end - start === PAGE_SIZE) this.#pages.delete(page);
      else if (!mayPunch || this.#pages.has(page)) this.#page(page).fill(0, start, end);
    }
  }

  async canZeroFast(): Promise<boolean> {
    return !this.readOnly;
  }

  /** Drops the pages inside of the range, which then read as zeros. */
  async discard(offset: number, length: number): Promise<void> {
    this.#checkChange(offset, length);
    for (const { page, start, end } of pieces(offset, length)) if (end - start === PAGE_SIZE) this.#pages.delete(page);
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    const end = offset + length;
    const written = [...this.#pages.keys()]
      .filter((page) => (page + 1) * PAGE_SIZE > offset && page * PAGE_SIZE < end)
      .sort((a, b) => a - b);
    const extents: Extent[] = [];
    const add = (until: number, hole: boolean) => {
      const last = extents.at(-1);
      const start = last === undefined ? offset : last.offset + last.length;
      if (until <= start) return;
      if (last !== undefined && last.hole === hole) last.length = until - last.offset;
      else extents.push({ offset: start, length: until - start, hole, zero: hole });
    };
    for (const page of written) {
      add(page * PAGE_SIZE, true);
      add(Math.min((page + 1) * PAGE_SIZE, end), false);
    }
    add(end, true);
    return extents;
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  #load(offset: number, buffer: Uint8Array): void {
    checkRange(this, offset, buffer.length);
    for (const { page, start, end, at } of pieces(offset, buffer.length)) {
      const bytes = this.#pages.get(page);
      if (bytes === undefined) buffer.fill(0, at, at + (end - start));
      else buffer.set(bytes.subarray(start, end), at);
    }
  }

  #store(offset: number, data: Uint8Array): void {
    for (const { page, start, end, at } of pieces(offset, data.length)) {
      this.#page(page).set(data.subarray(at, at + (end - start)), start);
    }
  }

  #page(page: number): Uint8Array {
    const bytes = this.#pages.get(page) ?? new Uint8Array(PAGE_SIZE);
    this.#pages.set(page, bytes);
    return bytes;
  }

  #checkChange(offset: number, length: number): void {
    checkRange(this, offset, length);
    checkWritable(this);
  }
}

/** The pages a range touches: which bytes `start` … `end` of each, and where they are in a buffer of the range. */
function* pieces(offset: number, length: number): Generator<{ page: number; start: number; end: number; at: number }> {
  for (let at = 0; at < length; ) {
    const start = (offset + at) % PAGE_SIZE;
    const end = Math.min(PAGE_SIZE, start + (length - at));
    yield { page: (offset + at - start) / PAGE_SIZE, start, end, at };
    at += end - start;
  }
}

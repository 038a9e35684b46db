import type { BlockDevice, Extent, ZeroOptions } from "../block-device.ts";
import type { LocatedRange } from "../mapped-range.ts";
import { checkRange } from "../range-check.ts";
import { FilterDevice } from "./filter-device.ts";

/** The bytes `start` … `start + size` of another device, as a device that begins at 0. */
export class SliceDevice extends FilterDevice {
  readonly #start: number;
  readonly #size: number;

  /** `start` and `size` in bytes. @throws {RangeError} where the slice does not lie inside the device */
  constructor(inner: BlockDevice, { start, size }: { start: number; size: number }) {
    super(inner);
    checkRange(inner, start, size);
    this.#start = start;
    this.#size = size;
  }

  override get size(): number {
    return this.#size;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    await this.inner.read(this.#start + offset, buffer);
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    checkRange(this, offset, data.length);
    await this.inner.write(this.#start + offset, data, options);
  }

  override tryRead(offset: number, buffer: Uint8Array): boolean {
    checkRange(this, offset, buffer.length);
    return super.tryRead(this.#start + offset, buffer);
  }

  override tryWrite(offset: number, data: Uint8Array): boolean {
    checkRange(this, offset, data.length);
    return super.tryWrite(this.#start + offset, data);
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    checkRange(this, offset, length);
    await this.inner.zero(this.#start + offset, length, options);
  }

  /** Its whole blocks are blocks of the device beneath only where it begins with one. */
  override async canZeroFast(options: { mayPunch: boolean }): Promise<boolean> {
    return this.#start % this.blockSize === 0 && (await super.canZeroFast(options));
  }

  override async discard(offset: number, length: number): Promise<void> {
    checkRange(this, offset, length);
    await this.inner.discard(this.#start + offset, length);
  }

  override async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    const extents = await this.inner.extents(this.#start + offset, length);
    return extents.map((extent) => ({ ...extent, offset: extent.offset - this.#start }));
  }

  override async reflinkFrom(source: BlockDevice, from: number, offset: number, length: number): Promise<boolean> {
    checkRange(this, offset, length);
    return await super.reflinkFrom(source, from, this.#start + offset, length);
  }

  override mapRange(offset: number, _length: number): LocatedRange | undefined {
    return { device: this.inner, offset: this.#start + offset };
  }
}

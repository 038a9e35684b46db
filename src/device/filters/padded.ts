import { SECTOR_SIZE } from "../../base/geometry.ts";
import type { BlockDevice, Extent, ZeroOptions } from "../block-device.ts";
import type { LocatedRange } from "../mapped-range.ts";
import { checkRange, checkWritable } from "../range-check.ts";
import { FilterDevice } from "./filter-device.ts";

/**
 * A device of odd size, rounded up to whole sectors of 512 bytes. The padding reads as zeros, is a hole to `extents`,
 * and what is written to it is dropped.
 */
export class PaddedDevice extends FilterDevice {
  override get size(): number {
    return Math.ceil(this.inner.size / SECTOR_SIZE) * SECTOR_SIZE;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    const held = this.#held(offset, buffer.length);
    if (held > 0) await this.inner.read(offset, buffer.subarray(0, held));
    buffer.fill(0, held);
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    const held = this.#heldForChange(offset, data.length);
    if (held > 0) await this.inner.write(offset, data.subarray(0, held), options);
  }

  override tryRead(offset: number, buffer: Uint8Array): boolean {
    const held = this.#held(offset, buffer.length);
    if (held === buffer.length) return super.tryRead(offset, buffer);
    if (held > 0 && !super.tryRead(offset, buffer.subarray(0, held))) return false;
    buffer.fill(0, held);
    return true;
  }

  override tryWrite(offset: number, data: Uint8Array): boolean {
    const held = this.#heldForChange(offset, data.length);
    if (held === data.length) return super.tryWrite(offset, data);
    return held === 0 || super.tryWrite(offset, data.subarray(0, held));
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    const held = this.#heldForChange(offset, length);
    if (held > 0) await this.inner.zero(offset, held, options);
  }

  override async discard(offset: number, length: number): Promise<void> {
    const held = this.#heldForChange(offset, length);
    if (held > 0) await this.inner.discard(offset, held);
  }

  override async extents(offset: number, length: number): Promise<Extent[]> {
    const held = this.#held(offset, length);
    const extents = held > 0 ? await this.inner.extents(offset, held) : [];
    if (held === length) return extents;
    const last = extents.at(-1);
    if (last?.hole && last.zero) last.length += length - held;
    else extents.push({ offset: offset + held, length: length - held, hole: true, zero: true });
    return extents;
  }

  override async reflinkFrom(source: BlockDevice, from: number, offset: number, length: number): Promise<boolean> {
    checkRange(source, from, length);
    const held = this.#heldForChange(offset, length);
    return held > 0 && (await super.reflinkFrom(source, from, offset, held));
  }

  override mapRange(offset: number, length: number): LocatedRange | undefined {
    return this.#held(offset, length) === length ? super.mapRange(offset, length) : undefined;
  }

  /** How many bytes of the range lie in the device beneath; the rest is padding. */
  #held(offset: number, length: number): number {
    checkRange(this, offset, length);
    return Math.max(0, Math.min(length, this.inner.size - offset));
  }

  #heldForChange(offset: number, length: number): number {
    checkWritable(this);
    return this.#held(offset, length);
  }
}

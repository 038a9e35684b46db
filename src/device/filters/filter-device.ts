import type { BlockDevice, Extent, ZeroOptions } from "../block-device.ts";
import type { LocatedRange, MappedDevice } from "../mapped-range.ts";

/**
 * Forwards everything to another device, which it owns: disposing of the filter disposes of that. A filter overrides
 * what it changes: with `read()` and `write()` also `tryRead()` and `tryWrite()`, which go past those; one whose bytes
 * are not those beneath overrides `mapRange` too.
 */
export class FilterDevice implements MappedDevice {
  /** The device beneath. */
  protected readonly inner: BlockDevice;

  constructor(inner: BlockDevice) {
    this.inner = inner;
  }

  get name(): string {
    return this.inner.name;
  }

  get size(): number {
    return this.inner.size;
  }

  get readOnly(): boolean {
    return this.inner.readOnly;
  }

  get blockSize(): number {
    return this.inner.blockSize;
  }

  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.inner.read(offset, buffer);
  }

  write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    return this.inner.write(offset, data, options);
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    return this.inner.tryRead?.(offset, buffer) ?? false;
  }

  tryWrite(offset: number, data: Uint8Array): boolean {
    return this.inner.tryWrite?.(offset, data) ?? false;
  }

  flush(): Promise<void> {
    return this.inner.flush();
  }

  zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    return this.inner.zero(offset, length, options);
  }

  async canZeroFast(options: { mayPunch: boolean }): Promise<boolean> {
    return (await this.inner.canZeroFast?.(options)) ?? false;
  }

  discard(offset: number, length: number): Promise<void> {
    return this.inner.discard(offset, length);
  }

  extents(offset: number, length: number): Promise<Extent[]> {
    return this.inner.extents(offset, length);
  }

  async reflinkFrom(source: BlockDevice, sourceOffset: number, offset: number, length: number): Promise<boolean> {
    return (await this.inner.reflinkFrom?.(source, sourceOffset, offset, length)) ?? false;
  }

  mapRange(offset: number, _length: number): LocatedRange | undefined {
    return { device: this.inner, offset };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.inner[Symbol.asyncDispose]();
  }
}

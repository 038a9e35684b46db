import type { BlockDevice } from "../block-device.ts";
import { checkRange, checkWritable } from "../range-check.ts";
import { FilterDevice } from "./filter-device.ts";

/** A device that cannot be changed through this view, whatever it is beneath. Changes are refused with a TypeError. */
export class ReadOnlyDevice extends FilterDevice {
  override get readOnly(): boolean {
    return true;
  }

  override async write(offset: number, data: Uint8Array): Promise<void> {
    this.#refuse(offset, data.length);
  }

  override tryWrite(offset: number, data: Uint8Array): boolean {
    return this.#refuse(offset, data.length);
  }

  /** There is nothing of ours to flush. */
  override async flush(): Promise<void> {}

  override async zero(offset: number, length: number): Promise<void> {
    this.#refuse(offset, length);
  }

  override async canZeroFast(): Promise<boolean> {
    return false;
  }

  override async discard(offset: number, length: number): Promise<void> {
    this.#refuse(offset, length);
  }

  override async reflinkFrom(_source: BlockDevice, _from: number, offset: number, length: number): Promise<boolean> {
    return this.#refuse(offset, length);
  }

  #refuse(offset: number, length: number): never {
    checkRange(this, offset, length);
    checkWritable(this);
    throw new TypeError(`"${this.name}" is open for reading only`);
  }
}

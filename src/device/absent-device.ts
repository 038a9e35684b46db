import { DeviceError } from "../base/errors.ts";
import type { BlockDevice, Extent } from "./block-device.ts";
import { checkRange } from "./range-check.ts";

/** Stands where a device would be that is not needed any more, and is not there: nothing can be read from it. */
export class AbsentDevice implements BlockDevice {
  readonly name: string;
  readonly size: number;
  readonly readOnly = true;
  readonly blockSize = 512;

  constructor(name: string, size: number) {
    this.name = name;
    this.size = size;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    throw new DeviceError(`Cannot read ${buffer.length} bytes at ${offset} from "${this.name}": it is not open`, {
      errno: "ENODEV",
      offset,
      length: buffer.length,
    });
  }

  async write(): Promise<void> {
    throw new TypeError(`"${this.name}" is read-only`);
  }

  async flush(): Promise<void> {}

  async zero(): Promise<void> {
    throw new TypeError(`"${this.name}" is read-only`);
  }

  async discard(): Promise<void> {
    throw new TypeError(`"${this.name}" is read-only`);
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    return [{ offset, length, hole: false, zero: false }];
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

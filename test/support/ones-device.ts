import type { Extent } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";

/** All of it data, a 1 in each page, whatever is written: an image that takes no memory, however large, and little time. */
export class OnesDevice extends FilterDevice {
  constructor(size: number) {
    super(new MemoryDevice({ size }));
  }

  override tryRead(): boolean {
    return false;
  }

  override async read(_offset: number, buffer: Uint8Array): Promise<void> {
    for (let position = 0; position < buffer.length; position += 4096) buffer[position] = 1;
  }

  override tryWrite(): boolean {
    return false;
  }

  override async write(): Promise<void> {}

  override async extents(offset: number, length: number): Promise<Extent[]> {
    return [{ offset, length, hole: false, zero: false }];
  }
}

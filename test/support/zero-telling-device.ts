import type { Extent } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";

const PAGE = 4096;

/** Tells which of its pages of 4096 bytes read as zeros at this moment, as a sparse file tells its holes. */
export class ZeroTellingDevice extends FilterDevice {
  override async extents(offset: number, length: number): Promise<Extent[]> {
    const content = Buffer.alloc(length);
    await this.inner.read(offset, content);
    const extents: Extent[] = [];
    for (let at = offset; at < offset + length; ) {
      const end = Math.min(offset + length, at - (at % PAGE) + PAGE);
      const zero = content.subarray(at - offset, end - offset).every((byte) => byte === 0);
      const last = extents.at(-1);
      if (last?.zero === zero) last.length += end - at;
      else extents.push({ offset: at, length: end - at, hole: zero, zero });
      at = end;
    }
    return extents;
  }
}

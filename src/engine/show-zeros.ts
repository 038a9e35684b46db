import type { ByteRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";

/** The most bytes zeroed by one call: a device may have to write them. */
const ZERO_LENGTH = 32 * 2 ** 20;

/**
 * Makes a range of a destination read as zeros; where it does at this moment nothing is done, so that nothing is allocated
 * or written in vain. It is asked each time, never remembered: what was there before may have reached it late.
 * @throws {DeviceError}
 */
export async function showZeros(
  destination: BlockDevice,
  { offset, length }: ByteRange,
  { mayPunch }: { mayPunch: boolean },
): Promise<void> {
  for (const extent of await destination.extents(offset, length)) {
    if (extent.zero) continue;
    const end = extent.offset + extent.length;
    for (let position = extent.offset; position < end; position += ZERO_LENGTH) {
      await destination.zero(position, Math.min(ZERO_LENGTH, end - position), { mayPunch });
    }
  }
}

import type { ByteRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";

/** The most bytes zeroed by one call, so that nobody waits for it long: a device may have to write them. */
export const ZERO_LENGTH = 32 * 2 ** 20;

/**
 * Makes a range of a destination read as zeros; where it does at this moment nothing is done, so that nothing is allocated
 * or written in vain. It is asked each time, never remembered: what was there before may have reached it late.
 * @throws {DeviceError}
 */
export async function showZeros(
  destination: BlockDevice,
  range: ByteRange,
  { mayPunch }: { mayPunch: boolean },
): Promise<void> {
  await zeroWhereNeeded(destination, range, async (position, most) => {
    const length = Math.min(ZERO_LENGTH, most);
    await destination.zero(position, length, { mayPunch });
    return length;
  });
}

/**
 * Has `zero` make zeros, a part at a time, of what the destination does not show as zeros; it resolves to the bytes that it
 * has made so, of `most` that are to be. @returns the bytes that needed nothing
 */
export async function zeroWhereNeeded(
  destination: BlockDevice,
  { offset, length }: ByteRange,
  zero: (position: number, most: number) => Promise<number>,
): Promise<number> {
  let shown = 0;
  for (const extent of await destination.extents(offset, length)) {
    const end = extent.offset + extent.length;
    if (extent.zero) shown += extent.length;
    else for (let position = extent.offset; position < end; ) position += await zero(position, end - position);
  }
  return shown;
}

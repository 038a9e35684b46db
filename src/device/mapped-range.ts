/** Devices that are a view of another one, and finding the bytes beneath them, which is what reflinks are made of. */
import type { BlockDevice } from "./block-device.ts";

/** Where a range of bytes lies. */
export interface LocatedRange {
  device: BlockDevice;
  offset: number;
}

/** A device whose bytes are those of another one, somewhere. */
export interface MappedDevice extends BlockDevice {
  /** Where the whole range lies, unchanged and in one piece, or undefined where it does not. */
  mapRange(offset: number, length: number): LocatedRange | undefined;
}

/** Follows views down to the device that really holds the range, as far as it is held in one piece. */
export function locateRange(device: BlockDevice, offset: number, length: number): LocatedRange {
  let located: LocatedRange = { device, offset };
  while (isMapped(located.device)) {
    const below = located.device.mapRange(located.offset, length);
    if (below === undefined) break;
    located = below;
  }
  return located;
}

function isMapped(device: BlockDevice): device is MappedDevice {
  return "mapRange" in device;
}

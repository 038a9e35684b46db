import type { BlockDevice } from "./block-device.ts";

/**
 * Refuses a request that does not lie in 0 … size of the device, as every device must.
 * @throws {RangeError} with the device's name, so that the caller's mistake can be found
 */
export function checkRange(device: Pick<BlockDevice, "name" | "size">, offset: number, length: number): void {
  const ok = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
  if (!ok || length > device.size - offset) {
    throw new RangeError(`${length} bytes at ${offset} are outside of "${device.name}" (${device.size} bytes)`);
  }
}

/** Refuses a change to a device opened read-only. @throws {TypeError} */
export function checkWritable(device: Pick<BlockDevice, "name" | "readOnly">): void {
  if (device.readOnly) throw new TypeError(`"${device.name}" is open for reading only`);
}

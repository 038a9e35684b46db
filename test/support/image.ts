/** Whole images of devices, for comparing with what the kernel wrote. */
import { createHash } from "node:crypto";
import type { BlockDevice } from "../../src/device/block-device.ts";

/** All bytes of a device. */
export async function imageOf(device: BlockDevice): Promise<Buffer> {
  const bytes = Buffer.alloc(device.size);
  await device.read(0, bytes);
  return bytes;
}

/** SHA-256 of all bytes of a device, in hex. */
export async function imageHash(device: BlockDevice): Promise<string> {
  return createHash("sha256")
    .update(await imageOf(device))
    .digest("hex");
}

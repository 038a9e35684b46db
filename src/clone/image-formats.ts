/** Image formats that hold a disk inside, known by their first bytes, or their last ones. */
import { ChangedError, DeviceError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";

/** Bytes from the start that `detectFormat` likes to see. */
const HEAD_BYTES = 512;
/** Bytes from the end: the footer of a VHD. */
const TAIL_BYTES = 512;

/** What stands at an offset, one character a byte, and what qemu calls the format. */
const SIGNATURES: readonly { format: string; offset: number; magic: string }[] = [
  { format: "qcow", offset: 0, magic: "QFI\xfb\0\0\0\x01" },
  { format: "qcow2", offset: 0, magic: "QFI\xfb" },
  { format: "qed", offset: 0, magic: "QED\0" },
  { format: "vmdk", offset: 0, magic: "KDMV" },
  { format: "vmdk", offset: 0, magic: "COWD" },
  { format: "vmdk", offset: 0, magic: "# Disk DescriptorFile" },
  { format: "vhdx", offset: 0, magic: "vhdxfile" },
  { format: "vpc", offset: 0, magic: "conectix" },
  { format: "vdi", offset: 64, magic: "\x7f\x10\xda\xbe" },
  { format: "parallels", offset: 0, magic: "WithoutFreeSpace" },
  { format: "parallels", offset: 0, magic: "WithouFreSpacExt" },
];

/** The footer of a VHD ("Virtual Hard Disk Image Format Specification"): offsets in bytes, numbers big-endian. */
const VHD_COOKIE = "conectix";
const VHD_CURRENT_SIZE = 48;
const VHD_DISK_TYPE = 60;
const VHD_CHECKSUM = 64;
const VHD_FIXED = 2;

/**
 * The format of an image, by the name that qemu has for it, or undefined where it is none that holds a disk inside. A LUKS
 * volume is none: its bytes are the disk.
 *
 * @param head its first bytes
 * @param tail its last 512 bytes, which is where a VHD of fixed size says what it is; `size` is that of the whole
 */
export function detectFormat(head: Uint8Array, tail?: { bytes: Uint8Array; size: number }): string | undefined {
  const found = SIGNATURES.find(({ offset, magic }) => standsAt(head, offset, magic));
  if (found !== undefined) return found.format;
  return tail !== undefined && isFixedVhd(tail.bytes, tail.size) ? "vpc" : undefined;
}

/** The format of what a device holds, as `detectFormat` tells it. @throws {DeviceError} where its start cannot be read */
export async function detectImageFormat(device: BlockDevice): Promise<string | undefined> {
  const head = new Uint8Array(Math.min(HEAD_BYTES, device.size));
  await device.read(0, head);
  if (device.size < HEAD_BYTES + TAIL_BYTES) return detectFormat(head);
  return detectFormat(head) ?? detectFormat(head, await tailOf(device));
}

/**
 * The end of a device. One that cannot be read is not known to be an image, and does no harm as a raw one: only 512 bytes
 * more are copied than the disk has.
 */
async function tailOf(device: BlockDevice): Promise<{ bytes: Uint8Array; size: number } | undefined> {
  const bytes = new Uint8Array(TAIL_BYTES);
  try {
    await device.read(device.size - TAIL_BYTES, bytes);
    return { bytes, size: device.size };
  } catch (error) {
    if (error instanceof DeviceError && !(error instanceof ChangedError)) return undefined;
    throw error;
  }
}

/** Whether an image ends like a VHD of fixed size; a cookie alone could be a guest's own data. */
function isFixedVhd(tail: Uint8Array, size: number): boolean {
  if (tail.length !== TAIL_BYTES || !standsAt(tail, 0, VHD_COOKIE)) return false;
  const view = new DataView(tail.buffer, tail.byteOffset, tail.length);
  if (view.getUint32(VHD_DISK_TYPE) !== VHD_FIXED) return false;
  if (view.getBigUint64(VHD_CURRENT_SIZE) > BigInt(size - TAIL_BYTES)) return false;
  let sum = 0;
  for (const [i, byte] of tail.entries()) if (i < VHD_CHECKSUM || i >= VHD_CHECKSUM + 4) sum += byte;
  return view.getUint32(VHD_CHECKSUM) === 2 ** 32 - 1 - sum;
}

function standsAt(bytes: Uint8Array, offset: number, magic: string): boolean {
  return [...magic].every((character, i) => bytes[offset + i] === character.charCodeAt(0));
}

/**
 * Overwrites metadata on a device that has no name beside it where a new file could take its place.
 *
 *     1. block 0: a mark that no program takes for a superblock     durable, before anything that it pointed to is gone
 *     2. everything behind it, up to the end of the image           durable
 *     3. block 0: the superblock                                    durable
 *
 * Cut off at any point, block 0 is the old superblock over the old blocks, the mark, or the new one over the new blocks. The
 * mark is not zero, as the kernel would format what is, and lies within one sector, as the superblock's own bytes do, so
 * that it cannot be torn. The backup has to be durable before.
 */
import type { BlockDevice } from "../device/block-device.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";

const MARK = "dmclone: a repair in place was cut off; backup: ";
const SECTOR = 512;
const PIECE_BYTES = 2 ** 20;

/**
 * Puts a sound image over the beginning of a device. `backup` is the path of the copy of what stood there.
 * @throws {DeviceError} after which the device holds the mark, and the backup is needed
 */
export async function overwriteWithImage(
  device: BlockDevice,
  image: BlockDevice,
  { backup, signal }: { backup: string; signal?: AbortSignal | undefined },
): Promise<void> {
  signal?.throwIfAborted(); // never once it has begun
  await device.write(0, encodeMark(backup));
  await device.flush();
  const buffer = new Uint8Array(PIECE_BYTES);
  for (let offset = BLOCK_SIZE; offset < image.size; offset += PIECE_BYTES) {
    const piece = buffer.subarray(0, Math.min(PIECE_BYTES, image.size - offset));
    await image.read(offset, piece);
    await device.write(offset, piece);
  }
  await device.flush();
  const superblock = new Uint8Array(BLOCK_SIZE);
  await image.read(0, superblock);
  await device.write(0, superblock);
  await device.flush();
}

/** The path of the backup where a first block holds the mark (empty where it was too long for it), else undefined. */
export function readMark(first: Uint8Array): string | undefined {
  const text = Buffer.from(first.subarray(0, SECTOR)).toString("utf8");
  if (!text.startsWith(MARK)) return undefined;
  const end = text.indexOf("\n");
  return end === -1 ? "" : text.slice(MARK.length, end);
}

function encodeMark(backup: string): Uint8Array {
  const block = Buffer.alloc(BLOCK_SIZE);
  const fits = Buffer.byteLength(`${MARK}${backup}\n`) <= SECTOR && !backup.includes("\n");
  block.write(`${MARK}${fits ? backup : ""}\n`, "utf8");
  return block;
}

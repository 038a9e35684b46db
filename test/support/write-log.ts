/**
 * The log of a disk that some other program has kept: dm-log-writes' format (Documentation/admin-guide/device-mapper/
 * log-writes.rst), which qemu's blklogwrites driver writes too. Numbers are little-endian.
 *
 *     sector 0     u64 magic 0x6a736677736872   u64 version 1   u64 entries   u32 sector size
 *     from 1 on    one entry after the other, each from a sector of its own:
 *                  u64 sector   u64 sectors   u64 flags   u64 bytes of a mark
 *                  the data of a write begins in the next sector
 *     flags        1 flush   2 FUA   4 discard   8 mark
 *
 * qemu makes an entry of a request when the disk has answered it, and before its own client hears of that. It turns FUA into a
 * flush, and writes zeros out. A flush has an entry of its own.
 */
import { open, readFile } from "node:fs/promises";

const MAGIC = 0x6a736677736872n;
const FLAG = { flush: 1n, fua: 2n, discard: 4n } as const;
const HEADER_BYTES = 28;

/** What the disk was asked for and has done. Bytes; a flush has no range. */
export type LoggedRequest =
  | { kind: "write"; offset: number; data: Buffer }
  | { kind: "discard"; offset: number; length: number }
  | { kind: "flush" };

/** Reads a log, as far as its superblock says that it goes. @throws {Error} where it is none, or holds what qemu never logs */
export async function readWriteLog(path: string): Promise<LoggedRequest[]> {
  const log = await readFile(path);
  const { entries, sectorSize } = decodeHeader(log);
  const requests: LoggedRequest[] = [];
  let at = sectorSize;
  for (let entry = 0; entry < entries; entry++) {
    const offset = Number(log.readBigUInt64LE(at)) * sectorSize;
    const length = Number(log.readBigUInt64LE(at + 8)) * sectorSize;
    const flags = log.readBigUInt64LE(at + 16);
    at += sectorSize;
    if (flags === FLAG.flush && length === 0) requests.push({ kind: "flush" });
    else if (flags === FLAG.discard) requests.push({ kind: "discard", offset, length });
    else if (flags === 0n) {
      requests.push({ kind: "write", offset, data: log.subarray(at, at + length) });
      at += length;
    } else throw new Error(`entry ${entry} of "${path}" has the flags ${flags}, which qemu never logs`);
  }
  return requests;
}

/** How many entries a log has by now: all that was answered, where qemu brings its superblock up to date each time. */
export async function countLogged(path: string): Promise<number> {
  const file = await open(path, "r");
  try {
    const header = Buffer.alloc(HEADER_BYTES);
    const { bytesRead } = await file.read(header, 0, header.length, 0);
    return decodeHeader(header.subarray(0, bytesRead)).entries;
  } finally {
    await file.close();
  }
}

function decodeHeader(log: Buffer): { entries: number; sectorSize: number } {
  if (log.length === 0) return { entries: 0, sectorSize: 512 }; // nothing has been asked for yet
  if (log.readBigUInt64LE(0) !== MAGIC || log.readBigUInt64LE(8) !== 1n) throw new Error("this is no log of writes");
  return { entries: Number(log.readBigUInt64LE(16)), sectorSize: log.readUInt32LE(24) };
}

/** Opening a regular file or block device by path, and refusing everything else with a clear word. */

import * as fs from "node:fs";
import { type BigIntStats, constants } from "node:fs";
import { promisify } from "node:util";
import { BusyError, CloneError, DeviceError, UsageError } from "../base/errors.ts";
import { blockDeviceUser } from "./block-users.ts";
import { deviceNumber, statDescriptor } from "./file-identity.ts";
import { blockDeviceGeometry } from "./libc.ts";
import { systemErrno } from "./syscall.ts";

/** An open descriptor and what it is open on. Whoever gets it closes `fd`. */
export interface OpenedFile {
  fd: number;
  kind: "file" | "block";
  stats: BigIntStats;
  /** Length in bytes. */
  size: number;
  /** Logical sector of a block device, preferred I/O size of a file (at most 4096): bytes, a power of two. */
  blockSize: number;
}

/** How to open. */
export interface OpenFileOptions {
  access: "read-only" | "read-write";
  /** Make a new sparse file of `size` bytes; one that exists is refused. `mode` (default 0o666) goes through umask. */
  create?: { size: number; mode?: number };
}

/** open(2): a descriptor that only names a file, whatever kind of file that is. Node has no name for it. */
const O_PATH = 0o10000000;

const openFd = promisify(fs.open);
const closeFd = promisify(fs.close);
const truncateFd = promisify(fs.ftruncate);
const unlink = promisify(fs.unlink);

/**
 * Opens a regular file or block device; the latter for writing with O_EXCL, which the kernel refuses while anything
 * else (a mounted file system, swap, device-mapper) has claimed it.
 *
 * @throws {DeviceError} where the path cannot be opened
 * @throws {UsageError} where it is neither a regular file nor a block device
 * @throws {BusyError} where a block device is in use
 */
export async function openFile(path: string, options: OpenFileOptions): Promise<OpenedFile> {
  if (options.create !== undefined) return await createFile(path, options.create);
  // Before opening: to open a FIFO may block for ever, and to open a character device may do anything. What was looked at is
  // what is opened then, whatever the path has come to name meanwhile.
  const found = await openFd(path, O_PATH).catch((error) => refuseOpening("open", path, error));
  try {
    return await openFound(found, path, options.access);
  } finally {
    await closeFd(found);
  }
}

async function openFound(found: number, path: string, access: OpenFileOptions["access"]): Promise<OpenedFile> {
  const before = await statDescriptor(found, { bigint: true });
  const kind = kindOf(path, before);
  const writing = access === "read-write";
  const exclusive = kind === "block" && writing ? constants.O_EXCL : 0;
  const flags = (writing ? constants.O_RDWR : constants.O_RDONLY) | exclusive;
  const fd = await openFd(`/proc/self/fd/${found}`, flags).catch(async (error) => {
    if (systemErrno(error) === "EBUSY" && kind === "block") await refuseBusy(path, before, error);
    // The file itself is open already, whatever becomes of its name: so it is not that which is missing.
    if (systemErrno(error) === "ENOENT") {
      throw new CloneError(
        "failed",
        `Cannot open "${path}": /proc is not mounted, or hidden, and files are opened through it`,
        { cause: error },
      );
    }
    if (systemErrno(error) === "ETXTBSY") {
      throw new BusyError(`Cannot open "${path}" for writing: it is running as a program`, { cause: error });
    }
    return refuseOpening("open", path, error);
  });
  return await describe(fd, path).catch(async (error) => {
    await closeFd(fd);
    throw error;
  });
}

async function createFile(path: string, { size, mode = 0o666 }: { size: number; mode?: number }): Promise<OpenedFile> {
  if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`size ${size} is not a number of bytes`);
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
  const fd = await openFd(path, flags, mode).catch((error) => refuseOpening("create", path, error));
  try {
    await truncateFd(fd, size);
    return await describe(fd, path);
  } catch (error) {
    await closeFd(fd);
    await unlink(path);
    return error instanceof CloneError ? rethrow(error) : refuseOpening("create", path, error);
  }
}

async function describe(fd: number, path: string): Promise<OpenedFile> {
  const stats = await statDescriptor(fd, { bigint: true });
  const kind = kindOf(path, stats);
  const { size, blockSize } =
    kind === "block"
      ? blockGeometry(fd)
      : { size: Number(stats.size), blockSize: fileBlockSize(Number(stats.blksize)) };
  if (!Number.isSafeInteger(size)) throw new UsageError(`Cannot open "${path}": it is larger than 2^53 bytes`);
  return { fd, kind, stats, size, blockSize };
}

function blockGeometry(fd: number): { size: number; blockSize: number } {
  const { size, logicalBlockSize } = blockDeviceGeometry(fd);
  return { size, blockSize: logicalBlockSize };
}

/** Network file systems prefer a megabyte, which is no alignment anybody needs. */
function fileBlockSize(preferred: number): number {
  return Number.isInteger(Math.log2(preferred)) && preferred >= 512 ? Math.min(preferred, 4096) : 4096;
}

function kindOf(path: string, stats: BigIntStats): "file" | "block" {
  if (stats.isFile()) return "file";
  if (stats.isBlockDevice()) return "block";
  throw new UsageError(`Cannot open "${path}": it is ${whatIs(stats)}, not a file or block device`);
}

function whatIs(stats: BigIntStats): string {
  if (stats.isDirectory()) return "a directory";
  if (stats.isCharacterDevice()) return "a character device";
  if (stats.isFIFO()) return "a pipe";
  return stats.isSocket() ? "a socket" : "something else";
}

async function refuseBusy(path: string, stats: BigIntStats, cause: unknown): Promise<never> {
  const user = await blockDeviceUser(deviceNumber(stats.rdev));
  throw new BusyError(`Cannot open "${path}" for writing: it is in use${user === undefined ? "" : ` (${user})`}`, {
    cause,
  });
}

const REASONS: Record<string, string> = {
  EACCES: "permission denied",
  EEXIST: "it exists already",
  EISDIR: "it is a directory",
  ELOOP: "too many symbolic links",
  ENODEV: "no such device",
  ENOENT: "no such file",
  ENOMEDIUM: "no medium",
  ENOSPC: "no space left",
  ENOTDIR: "a part of the path is not a directory",
  ENXIO: "no such device",
  EPERM: "not permitted",
  EROFS: "the file system is read-only",
  EFBIG: "too large for the file system",
};

/** The error for a path that cannot be opened or created, its reason in words. Rethrows what is no system error. */
export function refuseOpening(verb: "open" | "create", path: string, cause: unknown): never {
  const errno = systemErrno(cause);
  if (errno === undefined) throw cause;
  const reason = verb === "create" && errno === "ENOENT" ? `no such directory (${errno})` : inWords(errno);
  throw new DeviceError(`Cannot ${verb} "${path}": ${reason}`, { cause, errno });
}

/** A symbolic errno as people know it, itself in brackets; where there are no words for it, it alone. */
export function inWords(errno: string): string {
  const reason = REASONS[errno];
  return reason === undefined ? errno : `${reason} (${errno})`;
}

function rethrow(error: unknown): never {
  throw error;
}

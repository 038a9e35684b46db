/**
 * The one-writer lock: whoever changes a destination or its metadata holds it, a second one is told who that is.
 *
 * It is an exclusive OFD lock (fcntl_locking(2)) on one byte: it belongs to the open file description, ends with the
 * process whatever happens, and is not lost, as a POSIX lock is, when another descriptor of the file is closed. The
 * byte is the last one that a number here can name, 2^53 - 2: no device reaches that far, and qemu's locks lie on bytes
 * 100 … 103 and 200 … 203, so the two never collide.
 *
 * OFD locks carry no pid. The holder is the process that has in /proc/PID/fdinfo/FD a line as
 * `lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:1234 9007199254740990 9007199254740990`, where /proc/PID/fd/FD is the
 * same file by stat(2) (the line's own device number is another one on btrfs and overlayfs).
 */

import { closeSync } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { BusyError, DeviceError } from "../base/errors.ts";
import { isSameFile, statDescriptor } from "./file-identity.ts";
import { duplicate, isLocked, tryLock, unlock } from "./libc.ts";
import { systemErrno } from "./syscall.ts";

/** The byte that is locked. */
export const LOCK_OFFSET = Number.MAX_SAFE_INTEGER - 1;

/** How a file system says that it has no locks. */
const NO_LOCKS: readonly string[] = ["ENOLCK", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EINVAL"];

/** An open file or block device to lock; a FileDevice is one. `name` is for messages. */
export interface Lockable {
  readonly fd: number;
  readonly name: string;
}

/** A process that holds a lock. Undefined where /proc does not show it (another user's, another container's). */
export interface LockHolder {
  pid: number | undefined;
  /** The command's name, at most 15 characters. */
  command: string | undefined;
}

/** A lock that is held. It outlives the device that it was taken on; let it go before or after closing that. */
export class Lock implements Disposable, AsyncDisposable {
  #fd: number | undefined;

  /** Takes over `fd`, a descriptor of the description that holds the lock. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Lets it go; any number of times. */
  release(): void {
    if (this.#fd === undefined) return;
    const fd = this.#fd;
    this.#fd = undefined;
    try {
      unlock(fd, LOCK_OFFSET, 1);
    } catch (error) {
      if (!NO_LOCKS.includes(systemErrno(error) ?? "")) throw error;
    } finally {
      closeSync(fd);
    }
  }

  [Symbol.dispose](): void {
    this.release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release();
  }
}

/**
 * Takes the lock: `exclusive` to change the file, which must be open for writing; `shared`, by any number at a time, to
 * read what nobody may change meanwhile.
 *
 * @throws {BusyError} where somebody has one that excludes it, with the pid where that can be found out
 * @throws {DeviceError} where the file system has no such locks, and one that excludes is asked for
 * @throws {TypeError} for an exclusive one on a file opened read-only
 */
export async function acquireLock(target: Lockable, kind: "shared" | "exclusive" = "exclusive"): Promise<Lock> {
  // A descriptor of its own for the same description: the device's may be closed, and its number reused, meanwhile.
  const fd = duplicate(target.fd);
  try {
    if (tryLock(fd, kind, LOCK_OFFSET, 1)) return new Lock(fd);
    throw busy(target.name, await findHolder(target.fd, LOCK_OFFSET));
  } catch (error) {
    const errno = systemErrno(error);
    // Where there are no locks nobody can hold one against a reader either, for writers refuse to work there.
    if (kind === "shared" && errno !== undefined && NO_LOCKS.includes(errno)) return new Lock(fd);
    closeSync(fd);
    if (errno === undefined) throw error;
    if (errno === "EBADF") throw new TypeError(`"${target.name}" is open for reading only, which cannot be locked`);
    throw new DeviceError(`Cannot lock "${target.name}": ${lockReason(errno)}`, { errno, cause: error });
  }
}

/** Who has an open file locked to change it, without taking the lock; undefined where nobody has. Readers do not count. */
export async function lockHolder(target: Lockable): Promise<LockHolder | undefined> {
  return isLockedAt(target.fd, "shared", LOCK_OFFSET) ? await findHolder(target.fd, LOCK_OFFSET) : undefined;
}

/** Whether a lock on byte `offset` would keep out one of `kind`; nobody holds one where the file system has none. */
export function isLockedAt(fd: number, kind: "shared" | "exclusive", offset: number): boolean {
  try {
    return isLocked(fd, kind, offset, 1);
  } catch (error) {
    if (NO_LOCKS.includes(systemErrno(error) ?? "")) return false;
    throw error;
  }
}

/** The process that holds an OFD lock, shared or exclusive, on byte `offset` of the file open as `fd`. */
export async function findHolder(fd: number, offset: number): Promise<LockHolder> {
  const file = await statDescriptor(fd, { bigint: true });
  for (const pid of (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name))) {
    for (const number of await readdir(`/proc/${pid}/fdinfo`).catch(goneOrHidden([]))) {
      const info = await readFile(`/proc/${pid}/fdinfo/${number}`, "utf8").catch(goneOrHidden(""));
      if (!hasOfdLock(info, offset)) continue;
      const held = await stat(`/proc/${pid}/fd/${number}`, { bigint: true }).catch(goneOrHidden(undefined));
      if (held === undefined || !isSameFile(held, file)) continue;
      const command = (await readFile(`/proc/${pid}/comm`, "utf8").catch(goneOrHidden(""))).trim();
      return { pid: Number(pid), command: command === "" ? undefined : command };
    }
  }
  return { pid: undefined, command: undefined };
}

/** Whether an fdinfo text (proc_pid_fdinfo(5)) lists an OFD lock that covers byte `offset`. */
export function hasOfdLock(fdinfo: string, offset: number): boolean {
  for (const line of fdinfo.split("\n")) {
    const match = /^lock:\s+\d+: OFDLCK +\S+ +\S+ +\S+ +\S+ +(\d+) +(\d+|EOF)\s*$/.exec(line);
    if (match === null) continue;
    const end = match[2] === "EOF" ? Number.POSITIVE_INFINITY : Number(match[2]); // inclusive
    if (Number(match[1]) <= offset && offset <= end) return true;
  }
  return false;
}

/** How a holder is called in messages: `process 4711 (clone)`. */
export function describeHolder({ pid, command }: LockHolder): string {
  if (pid === undefined) return "another process";
  return pid === process.pid ? "this process" : `process ${pid}${command === undefined ? "" : ` (${command})`}`;
}

function busy(name: string, holder: LockHolder): BusyError {
  return new BusyError(`Cannot lock "${name}": it is in use by ${describeHolder(holder)}`, { pid: holder.pid });
}

function lockReason(errno: string): string {
  if (NO_LOCKS.includes(errno)) return `its file system has no locks (${errno})`;
  return errno;
}

/** Processes end and files are closed while we look, and other users' are not shown: what we cannot see is skipped. */
function goneOrHidden<T>(instead: T): (error: unknown) => T {
  return (error) => {
    if (["ENOENT", "ESRCH", "EACCES", "EPERM", "ENOTDIR"].includes(systemErrno(error) ?? "")) return instead;
    throw error;
  };
}

/**
 * Files that somebody else uses without holding our lock: behind a loop device, by qemu, or as swap. (A block device in
 * use is refused by O_EXCL when it is opened, except by a loop device or qemu on top of it, which are found here.)
 *
 * qemu (block/file-posix.c, raw_apply_lock_bytes) says what it does to an image by shared OFD locks on single bytes:
 * byte 100 + n, that it uses permission n; byte 200 + n, that nobody else may. Permission 0 is consistent reading, 1 is
 * writing. So a lock on 101 means that it writes, on 201 that it wants no other writer (as qemu-img convert does of its
 * source), on 200 that it wants no reader. qemu-nbd and qemu-io that only read allow others to write: we believe them.
 */

import { type BigIntStats, constants } from "node:fs";
import { open, readdir, stat } from "node:fs/promises";
import { BusyError } from "../base/errors.ts";
import { blockDeviceUser, swapPaths } from "./block-users.ts";
import { deviceNumber, type FileIdentity, isSameFile, statDescriptor, sysfsAttribute } from "./file-identity.ts";
import { loopBackingFile } from "./libc.ts";
import { describeHolder, findHolder, isLockedAt, type Lockable } from "./lock.ts";
import { systemErrno } from "./syscall.ts";

const QEMU_WRITES = 101;
const QEMU_UNSHARED_READ = 200;
const QEMU_UNSHARED_WRITE = 201;

/** Somebody who uses a file: in words (`loop device /dev/loop0`), and by pid where there is one process. */
export interface FileUser {
  description: string;
  pid: number | undefined;
}

/**
 * Who stands in the way of using an open file or block device; undefined where nobody is found. Takes no lock.
 *
 * @param purpose `write`: anybody else who uses it. `read`: only who may change it meanwhile.
 */
export async function findUser(target: Lockable, purpose: "read" | "write"): Promise<FileUser | undefined> {
  const file = await statDescriptor(target.fd, { bigint: true });
  return (await loopUser(file, purpose)) ?? (await swapUser(file)) ?? (await qemuUser(target.fd, purpose));
}

/**
 * Refuses a block device that is mounted, swapped to or held by another driver. Opening one for writing does that by
 * itself (O_EXCL); for reading it has to be asked. @throws {BusyError}
 */
export async function refuseClaimed({ name, identity }: { name: string; identity: FileIdentity }): Promise<void> {
  const user = identity.rdev === undefined ? undefined : await blockDeviceUser(identity.rdev);
  if (user !== undefined) throw new BusyError(`Cannot read "${name}": it is in use (${user})`);
}

/** As `findUser`. @throws {BusyError} `Cannot write to "disk.img": it is in use by loop device /dev/loop0` */
export async function refuseInUse(target: Lockable, purpose: "read" | "write"): Promise<void> {
  const user = await findUser(target, purpose);
  if (user === undefined) return;
  const what = purpose === "write" ? "write to" : "read";
  throw new BusyError(`Cannot ${what} "${target.name}": it is in use by ${user.description}`, { pid: user.pid });
}

async function loopUser(file: BigIntStats, purpose: "read" | "write"): Promise<FileUser | undefined> {
  const devices = (await readdir("/sys/block").catch(unknown)) ?? []; // none are shown without sysfs
  for (const loop of devices.filter((name) => name.startsWith("loop"))) {
    const path = await sysfsAttribute(`/sys/block/${loop}`, "loop/backing_file");
    if (path === undefined) continue; // not set up
    const readOnly = (await sysfsAttribute(`/sys/block/${loop}`, "ro")) === "1";
    if (purpose === "read" && readOnly) continue;
    if (await isBacking(loop, path, file)) return { description: `loop device /dev/${loop}`, pid: undefined };
  }
  return undefined;
}

/** The device itself knows its file by number, if we may ask it; else its path, as far as that means the same here. */
async function isBacking(loop: string, path: string, file: BigIntStats): Promise<boolean> {
  const backing = await askLoop(`/dev/${loop}`);
  if (backing !== undefined && !file.isBlockDevice()) {
    return backing.ino === file.ino && deviceNumber(backing.dev) === deviceNumber(file.dev);
  }
  const found = await stat(path, { bigint: true }).catch(unknown);
  return found !== undefined && isSameFile(found, file);
}

async function askLoop(path: string): Promise<{ dev: bigint; ino: bigint } | undefined> {
  const handle = await open(path, constants.O_RDONLY).catch(unknown);
  if (handle === undefined) return undefined;
  try {
    return loopBackingFile(handle.fd);
  } catch (error) {
    return unknown(error); // detached since
  } finally {
    await handle.close();
  }
}

async function swapUser(file: BigIntStats): Promise<FileUser | undefined> {
  for (const path of await swapPaths()) {
    const swap = await stat(path, { bigint: true }).catch(unknown);
    if (swap !== undefined && isSameFile(swap, file)) return { description: "the kernel, as swap", pid: undefined };
  }
  return undefined;
}

async function qemuUser(fd: number, purpose: "read" | "write"): Promise<FileUser | undefined> {
  const bytes = purpose === "write" ? [QEMU_WRITES, QEMU_UNSHARED_WRITE] : [QEMU_WRITES, QEMU_UNSHARED_READ];
  for (const byte of bytes) {
    if (!isLockedAt(fd, "exclusive", byte)) continue;
    const holder = await findHolder(fd, byte);
    const how = byte === QEMU_WRITES ? "writes to it" : "has locked it";
    return { description: `${describeHolder(holder)}, which ${how}`, pid: holder.pid };
  }
  return undefined;
}

/** What is gone, or not ours to open, tells nothing. */
function unknown(error: unknown): undefined {
  const errno = systemErrno(error) ?? "";
  if (["ENOENT", "ENOTDIR", "EACCES", "EPERM", "ENXIO", "ENODEV", "ENOMEDIUM", "EIO", "EBUSY"].includes(errno))
    return undefined;
  throw error;
}

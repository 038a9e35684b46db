/** Whether two devices are the same bytes in disguise. */
import { dirname } from "node:path";
import type { FileDevice } from "./file-device.ts";
import { deviceNumber, sysfsAttribute, sysfsDirectory } from "./file-identity.ts";
import { loopBackingFile } from "./libc.ts";
import { systemErrno } from "./syscall.ts";

/**
 * Whether a write to one may change what the other reads: the same file by whatever path or link, the same block device
 * by whatever node, a loop device and its file, two loop devices of one file, a disk and a partition of it.
 * @throws {SyscallError} where a loop device does not tell its file
 */
export async function sharesStorage(a: FileDevice, b: FileDevice): Promise<boolean> {
  const [ours, theirs] = [await storageOf(a), await storageOf(b)];
  return ours.self === theirs.self || ours.whole === theirs.self || ours.self === theirs.whole;
}

/** Names for the bytes themselves, and for the disk that they are a part of. */
async function storageOf(device: FileDevice): Promise<{ self: string; whole: string | undefined }> {
  const { kind, dev, ino, rdev } = device.identity;
  if (kind === "file" || rdev === undefined) return { self: `file ${dev} ${ino}`, whole: undefined };
  const directory = await sysfsDirectory(rdev);
  const isPartition = directory !== undefined && (await sysfsAttribute(directory, "partition")) !== undefined;
  const backing = fileBehind(device);
  if (backing !== undefined) {
    // Each partition of a loop device lies somewhere in the file, which is as much as a part of it.
    return isPartition ? { self: `block ${rdev}`, whole: backing } : { self: backing, whole: undefined };
  }
  const whole = isPartition ? await sysfsAttribute(dirname(directory), "dev") : undefined;
  return { self: `block ${rdev}`, whole: whole === undefined ? undefined : `block ${whole}` };
}

/** The file behind a loop device; undefined where it is no loop device. */
function fileBehind(device: FileDevice): string | undefined {
  try {
    const { dev, ino } = loopBackingFile(device.fd);
    return `file ${deviceNumber(dev)} ${ino}`;
  } catch (error) {
    // What other drivers say to a question for loop devices.
    if (["ENOTTY", "EINVAL", "ENXIO", "EPERM", "EACCES", "EOPNOTSUPP", "ENOSYS"].includes(systemErrno(error) ?? "")) {
      return undefined;
    }
    throw error;
  }
}

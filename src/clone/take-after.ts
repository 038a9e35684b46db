/** A file that takes the place of another. */
import * as fs from "node:fs/promises";
import { DeviceError, errnoOf } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";

/** What says that the owner is not ours to give (chown(2)). */
const NOT_OURS = ["EPERM", "EINVAL"];

/**
 * Gives a new file owner, group and mode of the old one, so that whoever could use the old one by these can use the new one.
 * Access control lists, extended attributes and security labels are not copied.
 * @param hint what can be done where that cannot
 * @throws {DeviceError} where owner or mode cannot be set
 */
export async function takeAfter(device: FileDevice, old: FileDevice, hint?: string): Promise<void> {
  try {
    await give(device, old);
  } catch (cause) {
    const errno = errnoOf(cause);
    const message = `Cannot replace "${old.path}": its owner or mode cannot be given to the new file: ${errno}`;
    throw new DeviceError(message, { errno, cause, ...(hint === undefined ? {} : { hint }) });
  }
}

/** The same where the owner is ours to give; else the new file stays as it was made. @throws {DeviceError} */
export async function takeAfterIfAllowed(device: FileDevice, old: FileDevice): Promise<void> {
  try {
    await give(device, old);
  } catch (cause) {
    const errno = errnoOf(cause);
    if (errno !== undefined && NOT_OURS.includes(errno)) return;
    const message = `Cannot create "${device.path}": the owner or mode of "${old.path}" cannot be given to it: ${errno}`;
    throw new DeviceError(message, { errno, cause });
  }
}

/** By descriptor: the new file may have no name to be changed by. */
async function give(device: FileDevice, old: FileDevice): Promise<void> {
  const own = `/proc/self/fd/${device.fd}`;
  const [was, is] = [await fs.stat(`/proc/self/fd/${old.fd}`), await fs.stat(own)];
  if (was.uid !== is.uid || was.gid !== is.gid) await fs.chown(own, was.uid, was.gid);
  await fs.chmod(own, was.mode % 0o10000);
}

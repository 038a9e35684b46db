/** A file that takes the place of another. */
import * as fs from "node:fs/promises";
import { DeviceError, errnoOf } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";

/** Whoever could use the old file can use the new one. @throws {DeviceError} where owner or mode cannot be set */
export async function takeAfter(device: FileDevice, old: FileDevice): Promise<void> {
  // By descriptor: the new file may have no name to be changed by.
  const own = `/proc/self/fd/${device.fd}`;
  try {
    const [was, is] = [await fs.stat(`/proc/self/fd/${old.fd}`), await fs.stat(own)];
    if (was.uid !== is.uid || was.gid !== is.gid) await fs.chown(own, was.uid, was.gid);
    await fs.chmod(own, was.mode % 0o10000);
  } catch (cause) {
    const errno = errnoOf(cause);
    const message = `Cannot replace "${old.path}": its owner or mode cannot be given to the new file: ${errno}`;
    throw new DeviceError(message, { errno, cause });
  }
}

/** What a loop device is made of. */
import { dirname } from "node:path";
import { DeviceError } from "../base/errors.ts";
import { FileDevice } from "./file-device.ts";
import { sysfsAttribute, sysfsDirectory } from "./file-identity.ts";
import { sharesStorage } from "./same-storage.ts";

/** What keeps a file from being looked at: it has no name any more, or none here, or belongs to somebody else. */
const OUT_OF_REACH: readonly (string | undefined)[] = ["ENOENT", "ENOTDIR", "EACCES", "EPERM"];

/**
 * Opens, for reading, the file or block device behind a loop device, or behind the one that a partition is of. Undefined where there
 * is none, or it cannot be reached by the name that the kernel tells (sysfs `loop/backing_file`).
 * @throws {DeviceError}
 */
export async function openLoopFile(device: FileDevice): Promise<FileDevice | undefined> {
  const path = await backingPath(device);
  if (path === undefined) return undefined;
  let file: FileDevice;
  try {
    file = await FileDevice.open(path, { access: "read-only", direct: "off" });
  } catch (error) {
    if (error instanceof DeviceError && OUT_OF_REACH.includes(error.errno)) return undefined;
    throw error;
  }
  if (await sharesStorage(device, file)) return file;
  await file[Symbol.asyncDispose](); // another one by that name
  return undefined;
}

async function backingPath({ identity }: FileDevice): Promise<string | undefined> {
  const directory = identity.rdev === undefined ? undefined : await sysfsDirectory(identity.rdev);
  if (directory === undefined) return undefined;
  const path = await sysfsAttribute(directory, "loop/backing_file");
  return path ?? (await sysfsAttribute(dirname(directory), "loop/backing_file"));
}

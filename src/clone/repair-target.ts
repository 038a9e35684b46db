/**
 * Where repaired metadata is to go, and whether it can go there: asked before anything is written, and before the devices are
 * compared, which may take hours. What is asked here is asked in a dry run too.
 */
import * as fs from "node:fs/promises";
import { basename, dirname } from "node:path";
import { DeviceError, errnoOf, UsageError } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";
import { refuseOpening } from "../device/open-file.ts";
import type { PlannedRepair } from "../metadata/repair.ts";
import { imageBytes } from "../metadata/repair-descriptor.ts";
import { parsePath } from "./location.ts";

/** Where the new metadata is to go. */
export type RepairTarget = { kind: "new"; path: string } | { kind: "in place"; backup: string };

/** What the user says of it. Paths as on the command line. */
export interface TargetRequest {
  /** A new file. Default: `METADATA.repaired`. */
  output?: string | undefined;
  /** Whether the metadata is replaced, and kept as `backup`. */
  inPlace?: boolean | undefined;
  /** A new file. Default: `METADATA.backup`. */
  backup?: string | undefined;
  /** Whether nothing is written. */
  dryRun?: boolean | undefined;
}

/**
 * What the options mean. A new file must be possible there.
 * @throws {UsageError} for options that cannot work, and where something stands at the path of the new file
 * @throws {DeviceError} where no file can be made there
 */
export async function chooseTarget(device: FileDevice, request: TargetRequest): Promise<RepairTarget> {
  const { output, inPlace = false, backup, dryRun = false } = request;
  if (inPlace && output !== undefined)
    throw new UsageError("Cannot use --output with --in-place: it is one or the other");
  if (!inPlace && backup !== undefined) throw new UsageError("Cannot use --backup: only --in-place keeps one");
  // A dry run that names neither only asks what there is to be saved.
  if (device.kind !== "file" && output === undefined && backup === undefined && (inPlace || !dryRun)) {
    throw new UsageError(`Cannot repair "${device.path}": it is a device, and nothing can stand beside it`, {
      hint: "--output FILE writes to a new file; --in-place --backup FILE overwrites the device after a copy was made.",
    });
  }
  if (inPlace) return { kind: "in place", backup: parsePath(backup ?? `${device.path}.backup`) };
  const path = parsePath(output ?? `${device.path}.repaired`);
  if (device.kind === "file" || output !== undefined) {
    if (await isTaken(path)) throw alreadyThere(path);
    await refuseDirectory(path);
  }
  return { kind: "new", path };
}

/**
 * Makes sure that a backup can be kept, as far as that can be told. A second name of the very file is one: a repair was cut off
 * after it had given it.
 * @throws {UsageError} where it would be the metadata itself, or another file stands there
 * @throws {DeviceError} where no file can be made there
 */
export async function refuseBackup(device: FileDevice, backup: string): Promise<void> {
  const path = await fs.realpath(device.path);
  await refuseDirectory(backup);
  if (basename(path) === basename(backup) && (await isSameDirectory(dirname(path), dirname(backup)))) {
    throw new UsageError(`Cannot keep "${backup}" as the backup: it is the metadata itself`, {
      hint: "--backup FILE names another one.",
    });
  }
  if (!(await isTaken(backup))) return;
  if (!(await isSecondNameOf(device, backup))) throw alreadyThere(backup);
}

/** @throws {UsageError} where a block device is too small for what is to be written on it */
export function refuseSmallDevice(device: FileDevice, plan: PlannedRepair): void {
  const needed = imageBytes(plan.blockCount, plan.descriptor);
  if (device.kind === "file" || needed <= device.size) return;
  throw new UsageError(
    `Cannot repair "${device.path}" in place: ${needed} bytes are needed and it has ${device.size}`,
    { hint: "--output FILE writes to a new file." },
  );
}

/** Whether the name is another one of the file, which keeps it where the first name is given to something else. */
export async function isSecondNameOf({ fd }: FileDevice, name: string): Promise<boolean> {
  const [ours, there] = [
    await fs.stat(`/proc/self/fd/${fd}`, { bigint: true }),
    await fs.lstat(name, { bigint: true }),
  ];
  return ours.dev === there.dev && ours.ino === there.ino && ours.nlink > 1n;
}

/** What is said where a file that stands there would have to go. */
export function alreadyThere(path: string): UsageError {
  return new UsageError(`Cannot create "${path}": a file stands there already`, {
    hint: "--output FILE, or in place --backup FILE, names another one.",
  });
}

/** Whether the name is given, be it to a link that leads nowhere. @throws {DeviceError} where that cannot be known */
async function isTaken(path: string): Promise<boolean> {
  try {
    await fs.lstat(path);
    return true;
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "ENOENT") return false;
    return refuseOpening("create", path, error);
  }
}

/** @throws {DeviceError} where the directory is not there, or takes no new names from us */
async function refuseDirectory(path: string): Promise<void> {
  const directory = dirname(path);
  await fs.access(directory, fs.constants.W_OK + fs.constants.X_OK).catch((error: unknown) => {
    refuseOpening("create", path, error);
  });
  if (!(await fs.stat(directory)).isDirectory()) {
    throw new DeviceError(`Cannot create "${path}": a part of the path is not a directory (ENOTDIR)`, {
      errno: "ENOTDIR",
    });
  }
}

async function isSameDirectory(a: string, b: string): Promise<boolean> {
  const [ours, theirs] = [await fs.stat(a, { bigint: true }), await fs.stat(b, { bigint: true })];
  return ours.dev === theirs.dev && ours.ino === theirs.ino;
}

/**
 * Metadata files and devices by path: finding the one that a name means, and making a new one, which appears under its
 * name whole or not at all.
 */
import { lstat, realpath, stat, unlink } from "node:fs/promises";
import { type CloneError, DeviceError, errnoOf, UsageError, withHint } from "../base/errors.ts";
import type { Geometry } from "../base/geometry.ts";
import { formatSize } from "../base/units.ts";
import { besideMetadata, bindingPath, fitsSocket } from "../control/control-path.ts";
import { syncDirectoryOf } from "../device/directory.ts";
import type { FileDevice } from "../device/file-device.ts";
import { refuseInUse } from "../device/in-use.ts";
import { acquireLock } from "../device/lock.ts";
import { inWords } from "../device/open-file.ts";
import { UnnamedFile } from "../device/unnamed-file.ts";
import { DESCRIPTOR_BYTES, type Descriptor } from "../metadata/descriptor.ts";
import { describeContent } from "../metadata/foreign-content.ts";
import { writeFormatted } from "../metadata/format-image.ts";
import { metadataByteLength, minimumBlockCount, recommendedBlockCount } from "../metadata/metadata-size.ts";
import { hasSuperblockMagic } from "../metadata/superblock.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";
import { MAX_METADATA_BLOCKS } from "../persistent-data/space-map.ts";
import { lookAtSocket } from "./socket-path.ts";
import { holdsMetadata, holdsSoundMetadata } from "./standing-metadata.ts";

/** What the metadata of a destination file is called by default. */
export function metadataName(destination: string): string {
  return `${destination}.clone`;
}

/**
 * Where the metadata of a destination file is by default: beside the file itself, also where a symbolic link to it is
 * named, so that one file has one place for it.
 */
export async function defaultMetadataPath(destination: string): Promise<string> {
  const isLink = await lstat(destination).then(
    (stats) => stats.isSymbolicLink(),
    () => false, // what is not there is no link
  );
  return metadataName(isLink ? await realpath(destination).catch(() => destination) : destination);
}

/**
 * The metadata that CLONE names: it itself, or the destination it stands beside. Where neither is there, the name itself,
 * so that opening it says what is wrong.
 * @throws {UsageError} where both are
 * @throws {DeviceError} where it cannot be told which of the two is meant
 */
export async function findMetadata(name: string): Promise<FoundMetadata> {
  const beside = await defaultMetadataPath(name);
  if (await isMetadataItself(name, beside)) {
    if (!(await holdsMetadata(beside))) return { path: name, destination: undefined };
    throw new UsageError(`Cannot tell which clone "${name}" means: it is metadata, and so is "${beside}"`, {
      hint: "A copy of metadata is being cloned, it seems: name the metadata of that clone.",
    });
  }
  return (await exists(beside)) ? { path: beside, destination: name } : { path: name, destination: undefined };
}

async function isMetadataItself(name: string, beside: string): Promise<boolean> {
  try {
    return await holdsMetadata(name);
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error;
    // Nobody has to choose where only one of the two is there, or who asks may not even read the other.
    if (error.errno === "EACCES" || !(await exists(beside))) return false;
    throw withHint(error, `If it is the destination of a clone, name its metadata instead: ${beside}`);
  }
}

/** Where the metadata is, and the destination where it was that which was named. */
export interface FoundMetadata {
  path: string;
  destination: string | undefined;
}

/** Whether something stands at the path. @throws {DeviceError} where that cannot be known */
export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return false;
    const errno = errnoOf(error);
    if (errno === undefined) throw error;
    throw new DeviceError(`Cannot look for "${path}": ${inWords(errno)}`, { errno, cause: error });
  }
}

/** Whether a path names a block device. @throws {DeviceError} where that cannot be known */
export async function isBlockDevice(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isBlockDevice();
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return false;
    throw new DeviceError(`Cannot look at "${path}": ${errnoOf(error)}`, { errno: errnoOf(error), cause: error });
  }
}

/** What new metadata is to hold. */
export interface NewMetadata {
  geometry: Geometry;
  descriptor: Descriptor;
}

/**
 * Makes metadata in a new file, fully allocated, so that no commit will ever need space; durable, name and all.
 * @throws {UsageError} where something stands at the path
 * @throws {MetadataError} where that may be what is left of a clone's metadata
 * @throws {DeviceError} where it cannot be made; nothing is then left
 */
export async function createMetadataFile(path: string, content: NewMetadata): Promise<void> {
  if (await exists(path)) throw await alreadyThere(path);
  const blockCount = recommendedBlockCount(content.geometry.regionCount);
  const size = metadataByteLength(blockCount) + DESCRIPTOR_BYTES;
  await using file = await UnnamedFile.create(path);
  await file.device.resize(size);
  await file.device.allocate(0, size);
  await writeFormatted(file.device, { ...content, blockCount, bits: null, isBlank: true });
  if (!(await file.publish())) throw await alreadyThere(path);
}

/** Other metadata is no way round what may be a clone's: its destination would be overwritten. @throws {DeviceError} */
async function alreadyThere(path: string): Promise<CloneError> {
  const isSound = await holdsSoundMetadata(
    path,
    `Cannot create "${path}": it may be the metadata of an unfinished clone`,
  );
  return isSound
    ? new UsageError(`Cannot create "${path}": a clone's metadata stands there already`, {
        hint: "`clone hydrate` goes on with that clone, `clone delete` gives it up.",
      })
    : new UsageError(`Cannot create "${path}": a file stands there already`, {
        hint: "--metadata FILE puts the metadata elsewhere.",
      });
}

/**
 * Makes metadata on a block device. Like the kernel, it takes only one whose first block is zero.
 * @throws {UsageError} where the device holds something, or is too small
 */
export async function createMetadataOnDevice(device: FileDevice, content: NewMetadata): Promise<void> {
  await refuseInUse(device, "write");
  await using _lock = await acquireLock(device);
  const needed = minimumBlockCount(content.geometry.regionCount);
  const blockCount = Math.min(MAX_METADATA_BLOCKS, Math.floor((device.size - DESCRIPTOR_BYTES) / BLOCK_SIZE));
  if (blockCount < needed) {
    const bytes = metadataByteLength(needed) + DESCRIPTOR_BYTES;
    throw new UsageError(
      `Cannot put the metadata on "${device.name}": it has ${formatSize(device.size)} and ${bytes} bytes are needed`,
    );
  }
  const head = new Uint8Array(BLOCK_SIZE);
  await device.read(0, head);
  if (head.some((byte) => byte !== 0)) {
    const what = hasSuperblockMagic(head) ? "a clone's metadata" : (describeContent(head) ?? "data");
    throw new UsageError(`Cannot put the metadata on "${device.name}": its first block holds ${what}`, {
      hint: "Like dm-clone, it takes a device whose first 4096 bytes are zero.",
    });
  }
  await writeFormatted(device, { ...content, blockCount, bits: null });
}

/**
 * Removes a metadata file, durably, and a symbolic link to it with it; also the control socket that a killed process has left
 * beside it. Its lock must be held. @throws {DeviceError}
 */
export async function removeMetadata(path: string): Promise<void> {
  const real = await realpath(path);
  const socket = besideMetadata(real);
  for (const name of [socket, bindingPath(socket)].filter(fitsSocket)) {
    if ((await lookAtSocket(name)) === "leftover") await removeIfThere(name);
  }
  for (const name of new Set([real, path])) {
    await removeIfThere(name);
    await syncDirectoryOf(name);
  }
}

/** Removes a file; none is no error. @throws {DeviceError} */
export async function removeIfThere(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return;
    throw new DeviceError(`Cannot remove "${path}": ${errnoOf(error)}`, { errno: errnoOf(error), cause: error });
  }
}

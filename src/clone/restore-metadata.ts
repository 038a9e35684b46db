/**
 * `clone restore`: a dump becomes metadata again. All of the dump is read and held valid before anything is written.
 *
 *     nothing there           a new file, which appears whole or not at all
 *     a file                  only with --force, and only metadata, sound or not: replaced by a new file in one step
 *     a block device          blank, or with --force one that holds metadata; its superblock is zeroed first and written last
 *
 * Whatever stands there is locked before the dump is read, and a clone in use is refused.
 */
import * as fs from "node:fs/promises";
import { UsageError } from "../base/errors.ts";
import type { Geometry } from "../base/geometry.ts";
import { formatSize } from "../base/units.ts";
import { FileDevice } from "../device/file-device.ts";
import { refuseInUse } from "../device/in-use.ts";
import { acquireLock } from "../device/lock.ts";
import { UnnamedFile } from "../device/unnamed-file.ts";
import { DESCRIPTOR_BYTES } from "../metadata/descriptor.ts";
import { writeFormatted } from "../metadata/format-image.ts";
import { metadataByteLength, minimumBlockCount, recommendedBlockCount } from "../metadata/metadata-size.ts";
import type { RestoredDump } from "../metadata/restore-dump.ts";
import { probeSuperblock } from "../metadata/superblock.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";
import { MAX_METADATA_BLOCKS } from "../persistent-data/space-map.ts";
import { readDumpFrom } from "./dump-input.ts";
import { createLike, permissionsOf } from "./like-file.ts";
import { parsePath } from "./location.ts";
import { defaultMetadataPath, exists } from "./metadata-file.ts";
import { isStillThere } from "./open-metadata.ts";
import { holdsMetadata, mayBeMetadata, probeMetadata } from "./standing-metadata.ts";
import { takeAfter } from "./take-after.ts";

const PIECE_BYTES = 2 ** 20;

/** What to restore, and to where. */
export interface RestoreRequest {
  /** Path of the dump, or `-` for standard input. */
  input: string;
  /** Path of the metadata. */
  output: string;
  /** Whether metadata that stands there is replaced. */
  force: boolean;
  signal?: AbortSignal | undefined;
}

/** The metadata that was made. */
export interface RestoredMetadata {
  path: string;
  geometry: Geometry;
  hydratedRegions: number;
  /** Whether the dump named source and destination. */
  hasDescriptor: boolean;
}

/**
 * Makes metadata from a dump. If it throws, a file is as it was; a block device that it had begun to write holds no clone.
 *
 * @throws {MetadataError} where the input is no dump
 * @throws {UsageError} where the output holds something that may not be replaced, or is too small
 * @throws {BusyError} where it is in use
 * @throws {DeviceError} where something cannot be read or written
 */
export async function restoreMetadata({ input, output, force, signal }: RestoreRequest): Promise<RestoredMetadata> {
  const path = parsePath(output);
  const read = (): Promise<RestoredDump> => readDumpFrom(input, signal);
  const dump = (await exists(path)) ? await restoreOver(path, read, force) : await restoreToNewFile(path, read);
  const { geometry, bits, descriptor } = dump;
  return { path, geometry, hydratedRegions: bits.count(), hasDescriptor: descriptor !== null };
}

async function restoreToNewFile(path: string, read: () => Promise<RestoredDump>): Promise<RestoredDump> {
  if (await isLink(path)) throw new UsageError(`Cannot restore to "${path}": it is a symbolic link that leads nowhere`);
  await using file = await UnnamedFile.create(path);
  const dump = await read();
  await fill(file, dump);
  if (!(await file.publish())) throw new UsageError(`Cannot restore to "${path}": a file has appeared there meanwhile`);
  return dump;
}

async function isLink(path: string): Promise<boolean> {
  return await fs.lstat(path).then(
    (stats) => stats.isSymbolicLink(),
    () => false, // what is wrong with the path is told when the file is made
  );
}

async function restoreOver(path: string, read: () => Promise<RestoredDump>, force: boolean): Promise<RestoredDump> {
  await using device = await FileDevice.open(path, { access: "read-write", direct: "off" });
  await refuseInUse(device, "write");
  await using _lock = await acquireLock(device);
  if (!(await isStillThere(device))) throw new UsageError(`Cannot restore to "${path}": it was replaced just now`);
  await refuseContent(device, force);
  const dump = await read();
  if (device.kind === "block") await writeToDevice(device, dump);
  else {
    await refuseDiskImage(device, dump);
    await replaceFile(device, dump);
  }
  return dump;
}

/** @throws {UsageError} where what stands there is not to be replaced */
async function refuseContent(device: FileDevice, force: boolean): Promise<void> {
  const { path, kind, size } = device;
  if (size === 0 && force) return;
  const probe = await probeSuperblock(device);
  const beside = await defaultMetadataPath(path);
  if (!(await holdsMetadata(path)) && mayBeMetadata(await probeMetadata(beside))) {
    throw new UsageError(`Cannot restore to "${path}": it is the destination of the clone "${beside}"`, {
      hint: "Its metadata is what a dump is restored to.",
    });
  }
  if (probe.verdict === "foreign") throw holds(path, probe.content ?? "data that is not clone metadata");
  const isBlank = await isZero(device, Math.min(size, BLOCK_SIZE));
  const hasOrphans = probe.verdict === "unformatted" && probe.orphans;
  if (force || (isBlank && !hasOrphans && kind === "block")) return;
  const what = size === 0 ? "an empty file" : isBlank && !hasOrphans ? "a file" : "a clone's metadata";
  throw new UsageError(`Cannot restore to "${path}": ${what} stands there already`, {
    hint: "--force replaces it. What it knows and the dump does not is then lost.",
  });
}

/**
 * A first block of zeros is no sign of metadata: many a disk image begins so. A file that does is replaced only where other
 * blocks of metadata follow, or where it could have been made for this clone and nothing is in it.
 * @throws {UsageError} for any other
 */
async function refuseDiskImage(device: FileDevice, dump: RestoredDump): Promise<void> {
  const { path, size } = device;
  if (!(await isZero(device, Math.min(size, BLOCK_SIZE)))) return;
  const probe = await probeSuperblock(device);
  if (probe.verdict === "unformatted" && probe.orphans) return;
  if (size > newSize(dump)) throw holds(path, "zeros at its beginning, and is larger than the metadata would be");
  if (!(await isZero(device, size))) throw holds(path, "data that is not clone metadata");
}

function holds(path: string, what: string): UsageError {
  return new UsageError(`Cannot restore to "${path}": it holds ${what}`, {
    hint: "Name a file that does not exist yet.",
  });
}

/** Whether the first `length` bytes are zero. @throws {DeviceError} */
async function isZero(device: FileDevice, length: number): Promise<boolean> {
  const buffer = new Uint8Array(Math.min(PIECE_BYTES, length));
  for (let offset = 0; offset < length; offset += PIECE_BYTES) {
    const piece = buffer.subarray(0, Math.min(PIECE_BYTES, length - offset));
    await device.read(offset, piece);
    if (piece.some((byte) => byte !== 0)) return false;
  }
  return true;
}

/** Bytes of a new metadata file. */
function newSize({ geometry }: RestoredDump): number {
  return metadataByteLength(recommendedBlockCount(geometry.regionCount)) + DESCRIPTOR_BYTES;
}

/** New metadata, sized as that of a new clone, in a file that has no name yet. */
async function fill({ device }: UnnamedFile, dump: RestoredDump): Promise<void> {
  const blockCount = recommendedBlockCount(dump.geometry.regionCount);
  const size = newSize(dump);
  await device.resize(size);
  await device.allocate(0, size);
  await writeFormatted(device, { ...dump, blockCount, isBlank: true });
}

/** At every moment there is the old file or the new one under the name. */
async function replaceFile(old: FileDevice, dump: RestoredDump): Promise<void> {
  const path = await fs.realpath(old.path); // a symbolic link stays one
  await using file = await createLike(path, await permissionsOf(old));
  await fill(file, dump);
  await takeAfter(file.device, old, "Only its owner and root can replace it. Name a file that does not exist yet.");
  await file.replace();
}

async function writeToDevice(device: FileDevice, dump: RestoredDump): Promise<void> {
  const { geometry, descriptor } = dump;
  // Without a descriptor it is what the kernel's own format makes of the device.
  const trailer = descriptor === null ? 0 : DESCRIPTOR_BYTES;
  const blockCount = Math.min(MAX_METADATA_BLOCKS, Math.floor((device.size - trailer) / BLOCK_SIZE));
  const needed = minimumBlockCount(geometry.regionCount);
  if (blockCount < needed) {
    const bytes = metadataByteLength(needed) + trailer;
    throw new UsageError(
      `Cannot restore to "${device.name}": it has ${formatSize(device.size)} and ${bytes} bytes are needed`,
    );
  }
  await writeFormatted(device, { ...dump, blockCount });
}

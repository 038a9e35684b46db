/**
 * Where repaired metadata goes. It is made whole and checked in a file that has no name yet, whatever becomes of it then:
 *
 *     a new file       gets its name, durably, and never replaces what stands there
 *     a file in place  the old file gets the backup's name as well, durably; then the new one takes its name in one step
 *     a device         is copied to the backup, durably, and then overwritten (`metadata/repair-in-place.ts`)
 */
import * as fs from "node:fs/promises";
import { CloneError, DeviceError, errnoOf } from "../base/errors.ts";
import { syncDirectoryOf } from "../device/directory.ts";
import type { FileDevice } from "../device/file-device.ts";
import { refuseOpening } from "../device/open-file.ts";
import { checkMetadata, formatFinding } from "../metadata/check.ts";
import { CloneMetadata } from "../metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES } from "../metadata/descriptor.ts";
import { metadataByteLength } from "../metadata/metadata-size.ts";
import { type PlannedRepair, writeRepaired } from "../metadata/repair.ts";
import { imageBytes } from "../metadata/repair-descriptor.ts";
import { overwriteWithImage } from "../metadata/repair-in-place.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";
import { createLike, permissionsOf } from "./like-file.ts";
import { alreadyThere, isSecondNameOf, refuseSmallDevice } from "./repair-target.ts";
import { takeAfter, takeAfterIfAllowed } from "./take-after.ts";

/** Blocks of metadata, half-open. */
export interface BlockRange {
  start: number;
  end: number;
}

const PIECE_BYTES = 2 ** 20;
const NOT_THE_OWNER = "Only its owner and root can replace it. --output FILE writes to a new file.";
/** What says that a file cannot be given another name (link(2)). */
const NO_LINKS = ["EPERM", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EMLINK", "EXDEV"];

/**
 * Writes repaired metadata to a new file, which nobody may use who may not use the old one, and which is its owner's where we
 * can give it to them: it is made to take its place.
 * @throws {UsageError} where something stands there
 * @throws {DeviceError} where it cannot be made; nothing is then left
 */
export async function writeToNewFile(old: FileDevice, plan: PlannedRepair, path: string): Promise<void> {
  await using file = await createLike(path, await permissionsOf(old));
  await fill(file.device, plan);
  if (old.kind === "file") await takeAfterIfAllowed(file.device, old);
  if (!(await file.publish())) throw alreadyThere(path);
}

/**
 * Puts repaired metadata in the place of a file, which is kept as `backup`.
 * @returns as `overwriteDevice()`; where the backup is the old file itself, none
 * @throws {UsageError} where another file stands at `backup`
 * @throws {DeviceError} after which the old metadata is still under its name, the new one already, and the backup there
 */
export async function replaceFile(old: FileDevice, plan: PlannedRepair, backup: string): Promise<BlockRange[]> {
  const path = await fs.realpath(old.path); // a symbolic link stays one
  await using file = await createLike(path, await permissionsOf(old));
  await fill(file.device, plan);
  await takeAfter(file.device, old, NOT_THE_OWNER);
  const unreadable = (await giveName(path, old, backup)) ? [] : await copyToNewFile(old, old.size, backup);
  await file.replace();
  return unreadable;
}

/**
 * Overwrites a block device, after a copy of what it holds was made durable.
 * @returns the blocks that could not be read, of 4096 bytes, which the copy has zeros for
 * @throws {UsageError} where something stands at `backup`, or the device is too small
 * @throws {DeviceError} after which, where its hint says so, the backup is needed
 */
export async function overwriteDevice(
  device: FileDevice,
  plan: PlannedRepair,
  { backup, signal }: { backup: string; signal?: AbortSignal | undefined },
): Promise<BlockRange[]> {
  refuseSmallDevice(device, plan);
  const covered = metadataByteLength(plan.blockCount) + DESCRIPTOR_BYTES;
  await using image = await createLike(backup, await permissionsOf(device));
  // What stands where a descriptor could is not to be taken for one, and the place may only be readable once it was written.
  await fill(image.device, plan, device.size < covered ? imageBytes(plan.blockCount, plan.descriptor) : covered);
  const unreadable = await copyToNewFile(device, Math.min(device.size, covered), backup);
  signal?.throwIfAborted(); // never once it has begun
  try {
    await overwriteWithImage(device, image.device, { backup });
    await refuseUnsound(device, plan);
  } catch (error) {
    if (!(error instanceof CloneError)) throw error;
    const errno = errnoOf(error);
    throw new DeviceError(`Cannot repair "${device.path}" in place: ${error.message}`, {
      errno,
      cause: error,
      hint: `It was being overwritten and may hold no clone now; what it held is kept as "${backup}". Copy that to a device or file that takes writes, and repair it there.`,
    });
  }
  return unreadable;
}

/** Makes the metadata and holds it against the plan. @throws {CloneError} where it is not as planned */
async function fill(
  device: FileDevice,
  plan: PlannedRepair,
  size = imageBytes(plan.blockCount, plan.descriptor),
): Promise<void> {
  await device.resize(size);
  await device.allocate(0, size);
  // The file was empty: what is in it from now on is of this clone.
  await writeRepaired(plan, device, { isBlank: true });
  await refuseUnsound(device, plan);
}

/** Where there is no room for a descriptor, what stands behind the metadata was not written, and is nobody's fault. */
async function refuseUnsound(device: FileDevice, plan: PlannedRepair): Promise<void> {
  const { fatal, warnings } = await checkMetadata(device);
  const hasRoom = device.size >= metadataByteLength(plan.blockCount) + DESCRIPTOR_BYTES;
  const finding = [...fatal, ...warnings].find(({ structure }) => structure !== "descriptor" || hasRoom);
  if (finding !== undefined) {
    throw new CloneError(
      "failed",
      `Cannot repair "${device.path}": what was written is not sound, ${formatFinding(finding)}`,
    );
  }
  await using metadata = await CloneMetadata.open(device, { readOnly: true });
  for (const range of plan.bits.ranges()) {
    if (metadata.nextUnhydrated(range.start, range.end) === range.end) continue;
    throw new CloneError("failed", `Cannot repair "${device.path}": what was written is not what was planned`);
  }
  if (metadata.hydratedCount === plan.bits.count()) return;
  throw new CloneError("failed", `Cannot repair "${device.path}": more was written than was planned`);
}

/** Gives the file a second name, durably. False where the file system cannot. */
async function giveName(path: string, file: FileDevice, name: string): Promise<boolean> {
  try {
    await fs.link(path, name);
  } catch (error) {
    const errno = errnoOf(error) ?? "";
    if (NO_LINKS.includes(errno)) return false;
    if (errno !== "EEXIST") return refuseOpening("create", name, error);
    if (!(await isSecondNameOf(file, name))) throw alreadyThere(name); // else a repair was cut off just then
  }
  await syncDirectoryOf(name);
  return true;
}

/**
 * A copy of the first `size` bytes, durable, holes kept, with zeros for blocks that cannot be read: these are returned.
 * @throws {UsageError} where something stands there
 */
async function copyToNewFile(from: FileDevice, size: number, path: string): Promise<BlockRange[]> {
  await using file = await createLike(path, await permissionsOf(from));
  const to = file.device;
  await to.resize(size);
  const buffer = new Uint8Array(PIECE_BYTES);
  const unreadable: BlockRange[] = [];
  for (let offset = 0; offset < size; offset += PIECE_BYTES) {
    const piece = buffer.subarray(0, Math.min(PIECE_BYTES, size - offset));
    await readWhatCanBe(from, offset, piece, unreadable);
    if (piece.some((byte) => byte !== 0)) await to.write(offset, piece);
  }
  await to.flush();
  if (from.kind === "file") await takeAfter(to, from, NOT_THE_OWNER);
  if (!(await file.publish())) throw alreadyThere(path);
  return unreadable;
}

/** What cannot be read is zero, and noted. @throws {DeviceError} where the device as a whole has gone */
async function readWhatCanBe(
  from: FileDevice,
  offset: number,
  piece: Uint8Array,
  unreadable: BlockRange[],
): Promise<void> {
  try {
    await from.read(offset, piece);
    return;
  } catch (error) {
    if (!isUnreadable(error)) throw error;
  }
  for (let at = 0; at < piece.length; at += BLOCK_SIZE) {
    const part = piece.subarray(at, at + BLOCK_SIZE);
    try {
      await from.read(offset + at, part);
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      part.fill(0);
      const block = (offset + at) / BLOCK_SIZE;
      const last = unreadable.at(-1);
      if (last?.end === block) last.end++;
      else unreadable.push({ start: block, end: block + 1 });
    }
  }
}

function isUnreadable(error: unknown): boolean {
  return error instanceof DeviceError && !error.away;
}

/** Opens sources and destinations, and refuses what must not be read or written. */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { DeviceError, errnoOf, UsageError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { FileDevice } from "../device/file-device.ts";
import { PaddedDevice } from "../device/filters/padded.ts";
import { SliceDevice } from "../device/filters/slice.ts";
import { refuseInUse } from "../device/in-use.ts";
import { FADV_SEQUENTIAL, fadvise } from "../device/libc.ts";
import { describeContent } from "../metadata/foreign-content.ts";
import type { Location } from "./location.ts";

const fdatasync = promisify(fs.fdatasync);

/** Formats that hold a disk inside: copied byte for byte they make a copy that no machine boots from. */
const CONTAINER_FORMATS = /qcow2|VMDK|VHDX|VHD|VDI/;

/**
 * Opens a source, read-only, always.
 * @throws {DeviceError} where it cannot be opened
 * @throws {UsageError} where it is nothing that can be copied
 */
export async function openSource({ path }: Location): Promise<FileDevice> {
  const device = await FileDevice.open(path, { access: "read-only" });
  if (device.size > 0) {
    await fadvise(device.fd, 0, 0, FADV_SEQUENTIAL); // doubles what the kernel reads ahead
    return device;
  }
  await device[Symbol.asyncDispose]();
  throw new UsageError(`Cannot clone "${path}": it is empty`);
}

/**
 * Makes the kernel write out what it still has to of a source file, so that where its holes are is settled: file systems
 * have told wrong holes of data that was not on the disk yet. @throws {DeviceError}
 */
export async function settleSource(device: FileDevice): Promise<void> {
  if (device.kind === "block") return;
  try {
    await fdatasync(device.fd);
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "EINVAL" || errno === "EROFS") return; // nothing can be outstanding where nothing can be written
    throw new DeviceError(`Cannot flush "${device.path}": ${errno}`, { errno, cause: error });
  }
}

/** @throws {UsageError} where a source is an image in a format of its own, and `raw` was not asked for on purpose */
export async function refuseContainer(source: FileDevice): Promise<void> {
  const head = new Uint8Array(Math.min(4096, source.size));
  await source.read(0, head);
  const content = describeContent(head);
  if (content === undefined || !CONTAINER_FORMATS.test(content)) return;
  throw new UsageError(`Cannot clone "${source.name}": it is ${content}, and its raw bytes are not the disk inside`, {
    hint: "--source-format raw clones the bytes of the file itself, on purpose.",
  });
}

/**
 * Opens a destination for writing.
 * @throws {BusyError} where somebody else uses it
 */
export async function openDestination({ path }: Location): Promise<FileDevice> {
  const device = await FileDevice.open(path, { access: "read-write", directReads: true });
  try {
    await refuseInUse(device, "write");
    return device;
  } catch (error) {
    await device[Symbol.asyncDispose]();
    throw error;
  }
}

/** A source as the clone sees it: a whole number of sectors. */
export function sourceView(source: BlockDevice): BlockDevice {
  return new PaddedDevice(source);
}

/** A destination as the clone sees it: the clone's bytes and no others, in whole sectors. `exactSize` in bytes. */
export function destinationView(destination: BlockDevice, exactSize: number): BlockDevice {
  return new PaddedDevice(new SliceDevice(destination, { start: 0, size: exactSize }));
}

/** Looked at first; then twice as much each time, since what is empty so far is likely empty further on. */
const FIRST_LOOK_BYTES = 64 * 2 ** 20;
const EDGE_BYTES = 2 ** 20;

/**
 * What shows that a destination holds data, in words, or undefined where nothing does: any allocated extent of a file; on
 * a device a byte that is not zero in its first or last MiB, where every partition table, file system and RAID leaves one.
 */
export async function findData(device: FileDevice): Promise<string | undefined> {
  if (device.kind === "file") {
    for (let offset = 0, length = FIRST_LOOK_BYTES; offset < device.size; offset += length, length *= 2) {
      const extents = await device.extents(offset, Math.min(length, device.size - offset));
      if (extents.some(({ hole }) => !hole)) return await describeHead(device, "data");
    }
    return undefined;
  }
  const length = Math.min(EDGE_BYTES, device.size);
  for (const offset of [0, device.size - length]) {
    const bytes = new Uint8Array(length);
    await device.read(offset, bytes);
    if (bytes.some((byte) => byte !== 0)) return await describeHead(device, "data");
  }
  return undefined;
}

async function describeHead(device: FileDevice, otherwise: string): Promise<string> {
  const head = new Uint8Array(Math.min(EDGE_BYTES, device.size));
  await device.read(0, head);
  return describeContent(head) ?? otherwise;
}

/** Who a file or block device is, so that it is known again after a restart, and told from another. */
import type { BigIntStats } from "node:fs";
import * as fs from "node:fs";
import { readFile, realpath } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { errnoOf } from "../base/errors.ts";
import { ioError } from "./io-error.ts";

/** What identifies a file or block device. All of it is JSON; compare with `===`. */
export interface FileIdentity {
  kind: "file" | "block";
  /** Device number of the file system that holds the file (or the device's node), `major:minor` in decimal. */
  dev: string;
  /** Inode number in decimal; it may exceed 2^53. */
  ino: string;
  /** Length in bytes. */
  size: number;
  /** Time of the last change in ns since 1970, decimal. Of a block device it is the node's, and says nothing. */
  mtimeNs: string;
  /** When a file was made, ns since 1970, decimal; absent where the file system does not remember. */
  birthtimeNs?: string;
  /** Device number of a block device, `major:minor`. It may change at every start of the machine. */
  rdev?: string;
  /** What stays with a block device: `dm-uuid:…`, `wwid:…`, `serial:…`, `uuid:…`, with `:part<n>` for a partition. */
  serial?: string;
}

/** `major:minor` of a device number as stat(2) returns it (gnu_dev_major, gnu_dev_minor; musl has the same). */
export function deviceNumber(dev: bigint): string {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n);
  const minor = (dev & 0xffn) | ((dev >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

/** Whether two stat results are of the same file, by whatever path, or of the same block device by whatever node. */
export function isSameFile(a: BigIntStats, b: BigIntStats): boolean {
  if (a.isBlockDevice() && b.isBlockDevice()) return a.rdev === b.rdev;
  return a.dev === b.dev && a.ino === b.ino;
}

/** The identity of what was opened. `size` is its length in bytes, which stat does not tell of a block device. */
export async function identify(stats: BigIntStats, size: number): Promise<FileIdentity> {
  const common = { dev: deviceNumber(stats.dev), ino: String(stats.ino), size, mtimeNs: String(stats.mtimeNs) };
  if (!stats.isBlockDevice()) {
    const birthtimeNs = stats.birthtimeNs > 0n ? { birthtimeNs: String(stats.birthtimeNs) } : {};
    return { kind: "file", ...common, ...birthtimeNs };
  }
  const rdev = deviceNumber(stats.rdev);
  const serial = await blockDeviceSerial(rdev);
  return { kind: "block", ...common, rdev, ...(serial === undefined ? {} : { serial }) };
}

/** Where sysfs describes a block device (`rdev` is `major:minor`), or undefined where it does not. */
export async function sysfsDirectory(rdev: string): Promise<string | undefined> {
  return await realpath(`/sys/dev/block/${rdev}`).catch(absent);
}

/** A sysfs attribute without the white space around it; undefined where it is missing or empty. */
export async function sysfsAttribute(directory: string, name: string): Promise<string | undefined> {
  const text = (await readFile(join(directory, name), "utf8").catch(absent))?.trim();
  return text === "" ? undefined : text;
}

/**
 * Sectors written to and discarded on a block device since the machine started (sysfs `stat`, fields 7 and 14), or
 * undefined where that is not told. Two equal answers mean that nobody changed it in between.
 */
export async function blockDeviceChanges(rdev: string): Promise<string | undefined> {
  const directory = await sysfsDirectory(rdev);
  const fields = (directory === undefined ? undefined : await sysfsAttribute(directory, "stat"))?.split(/\s+/);
  return fields === undefined ? undefined : `${fields[6]} ${fields[13] ?? 0}`;
}

/** Whether a block device zeroes ranges without being sent the zeros (sysfs `queue/write_zeroes_max_bytes`). */
export async function blockDeviceZeroesFast(rdev: string): Promise<boolean> {
  const directory = await sysfsDirectory(rdev);
  if (directory === undefined) return false;
  const isPartition = (await sysfsAttribute(directory, "partition")) !== undefined;
  const disk = isPartition ? dirname(directory) : directory;
  return Number((await sysfsAttribute(disk, "queue/write_zeroes_max_bytes")) ?? 0) > 0;
}

const fstat = promisify(fs.fstat) as (fd: number, options: { bigint: true }) => Promise<BigIntStats>;
const readlink = promisify(fs.readlink);

/**
 * Status of an open file. Its numbers are bigints: inodes and times exceed 2^53.
 * @throws {DeviceError} where the file system does not tell it: one that has gone down does not
 */
export async function statDescriptor(fd: number, options: { bigint: true }): Promise<BigIntStats> {
  try {
    return await fstat(fd, options);
  } catch (cause) {
    const errno = errnoOf(cause);
    if (errno === undefined) throw cause;
    const link = `/proc/self/fd/${fd}`;
    throw ioError({ verb: "look at", name: await readlink(link).catch(() => link), errno, cause, away: false });
  }
}

async function blockDeviceSerial(rdev: string): Promise<string | undefined> {
  const directory = await sysfsDirectory(rdev);
  if (directory === undefined) return undefined;
  const partition = await sysfsAttribute(directory, "partition");
  const disk = partition === undefined ? directory : dirname(directory);
  for (const [label, attribute] of SERIAL_ATTRIBUTES) {
    const value = await sysfsAttribute(disk, attribute);
    if (value !== undefined) return `${label}:${value}${partition === undefined ? "" : `:part${partition}`}`;
  }
  return undefined;
}

/** The most lasting first: device-mapper, NVMe and SCSI, virtio, MD. */
const SERIAL_ATTRIBUTES = [
  ["dm-uuid", "dm/uuid"],
  ["wwid", "wwid"],
  ["wwid", "device/wwid"],
  ["serial", "serial"],
  ["serial", "device/serial"],
  ["uuid", "md/uuid"],
] as const;

/** What is not there, or not for us to see, or has just gone (ENODEV), is unknown; that is no error here. */
function absent(error: NodeJS.ErrnoException): undefined {
  if (["ENOENT", "EACCES", "EPERM", "ENOTDIR", "ENODEV", "ENXIO", "EINVAL", "EIO"].includes(error.code ?? "")) {
    return undefined;
  }
  throw error;
}

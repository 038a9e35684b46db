/**
 * What a program has open, told by proc(5). Names say what a program should open, and somebody may rename, or write a header anew,
 * between our look and the program's; inodes say what it has opened.
 */

import { type BigIntStats, constants } from "node:fs";
import { lstat, readdir, readlink, stat } from "node:fs/promises";
import { DeviceError, errnoOf } from "../base/errors.ts";
import { FileDevice } from "../device/file-device.ts";

/** A file or device that a program has open. */
export interface OpenedFile {
  /** As `inodeOf()` tells it. */
  inode: string;
  /** Where it is at the moment, as the kernel tells it. */
  path: string;
  /** What opens it again, and nothing else, whatever its path leads to by then; as long as the program has it open. */
  link: string;
  /** Whether it can hold a disk that the program reads: no directory or character device, and nothing that is only written to. */
  isDisk: boolean;
}

/** Nothing of anybody's is in these: null, zero, random, urandom (linux, Documentation/admin-guide/devices.txt). */
const HARMLESS_DEVICES = new Set([0x103n, 0x105n, 0x108n, 0x109n]);

/** What tells a file, or a device by whatever name, from every other one, as long as somebody has it open. */
export function inodeOf(stats: BigIntStats): string {
  if (stats.isBlockDevice() || stats.isCharacterDevice()) {
    return `${stats.isBlockDevice() ? "block" : "character"} device ${stats.rdev}`;
  }
  return `${stats.dev} ${stats.ino}`;
}

/**
 * The files, directories and devices that a process has open.
 * @returns undefined where it has ended
 * @throws a system error where it may not be looked at
 */
export async function filesOpenedBy(pid: number): Promise<OpenedFile[] | undefined> {
  const directory = `/proc/${pid}/fd`;
  const found: OpenedFile[] = [];
  try {
    for (const fd of await readdir(directory)) {
      const file = await openedFile(`${directory}/${fd}`);
      if (file !== undefined) found.push(file);
    }
  } catch (error) {
    if (["ENOENT", "ESRCH"].includes(errnoOf(error) ?? "")) return undefined;
    throw error;
  }
  return found;
}

/**
 * As `filesOpenedBy()`. `name` is what the program serves, for the messages.
 * @throws {DeviceError} where it has ended, or may not be looked at
 */
export async function filesSeenOpen(pid: number | undefined, name: string): Promise<OpenedFile[]> {
  let opened: OpenedFile[] | undefined;
  try {
    opened = pid === undefined ? undefined : await filesOpenedBy(pid);
  } catch (error) {
    const message = `Cannot read "${name}": what the program has opened that reads it cannot be seen`;
    throw new DeviceError(`${message}: ${errnoOf(error)}`, { cause: error });
  }
  if (opened !== undefined) return opened;
  throw new DeviceError(`Cannot read "${name}": the program that reads it has ended`, { errno: "EIO", away: true });
}

/**
 * Opens the files and block devices that a program can read from, each once, read-only; they are the caller's then.
 * @throws {DeviceError} as `filesSeenOpen()`, or where one cannot be opened
 */
export async function openFilesOf(pid: number | undefined, name: string): Promise<FileDevice[]> {
  const files = new Map<string, FileDevice>();
  try {
    for (const { inode, path, link, isDisk } of await filesSeenOpen(pid, name)) {
      if (!isDisk || files.has(inode)) continue;
      const file = await openLink(link, path);
      if (file !== undefined) files.set(inode, file);
      else await filesSeenOpen(pid, name); // closed since, or the program has ended, which this says
    }
    return [...files.values()];
  } catch (error) {
    for (const file of files.values()) await file[Symbol.asyncDispose]();
    throw error;
  }
}

/** Opens what a program has open; undefined where it has it open no longer. @throws {DeviceError} */
async function openLink(link: string, path: string): Promise<FileDevice | undefined> {
  try {
    return await FileDevice.open(link, { access: "read-only", direct: "off", knownAs: path });
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

/** Undefined of what is none: sockets, pipes, what has no file; and of a descriptor that was closed meanwhile. */
async function openedFile(link: string): Promise<OpenedFile | undefined> {
  try {
    const stats = await stat(link, { bigint: true });
    const isDevice = stats.isBlockDevice() || stats.isCharacterDevice();
    if (!isDevice && !stats.isFile() && !stats.isDirectory()) return undefined;
    if (stats.isCharacterDevice() && HARMLESS_DEVICES.has(stats.rdev)) return undefined;
    const path = await readlink(link);
    if (path.startsWith("anon_inode:")) return undefined;
    // The mode of the link tells how it is open (proc_pid_fd(5)).
    const isReadable = ((await lstat(link)).mode & constants.S_IRUSR) !== 0;
    return { inode: inodeOf(stats), path, link, isDisk: isReadable && (stats.isFile() || stats.isBlockDevice()) };
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

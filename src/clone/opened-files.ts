/**
 * What a program has open, told by proc(5). Names say what a program should open, and somebody may rename, or write a header anew,
 * between our look and the program's; inodes say what it has opened.
 */

import type { BigIntStats } from "node:fs";
import { readdir, readlink, stat } from "node:fs/promises";
import { errnoOf } from "../base/errors.ts";

/** A file or device that a program has open. */
export interface OpenedFile {
  /** As `inodeOf()` tells it. */
  inode: string;
  /** Where it is at the moment, as the kernel tells it. */
  path: string;
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

/** Undefined of what is none: sockets, pipes, what has no file; and of a descriptor that was closed meanwhile. */
async function openedFile(link: string): Promise<OpenedFile | undefined> {
  try {
    const stats = await stat(link, { bigint: true });
    const isDevice = stats.isBlockDevice() || stats.isCharacterDevice();
    if (!isDevice && !stats.isFile() && !stats.isDirectory()) return undefined;
    if (stats.isCharacterDevice() && HARMLESS_DEVICES.has(stats.rdev)) return undefined;
    const path = await readlink(link);
    return path.startsWith("anon_inode:") ? undefined : { inode: inodeOf(stats), path };
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

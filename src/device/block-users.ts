/** Who has claimed a block device, so that "busy" can be explained: mounts, swap, and devices stacked on it. */
import { readdir, readFile, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { deviceNumber, sysfsAttribute, sysfsDirectory } from "./file-identity.ts";

/**
 * Says in words who uses a block device, its partitions, or (for a partition) its whole disk: `mounted at /srv`,
 * `active swap`, `held by device-mapper "vg-root"`. Undefined where nobody can be found.
 *
 * @param rdev the device number, `major:minor`
 */
export async function blockDeviceUser(rdev: string): Promise<string | undefined> {
  const family = await relatedDevices(rdev);
  for (const { number, name } of family) {
    const which = number === rdev ? "" : `${name} is `;
    const mountPoint = await mountPointOf(number);
    if (mountPoint !== undefined) return `${which}mounted at ${mountPoint}`;
    if (await isSwap(number)) return `${which}active swap`;
    const holder = await holderOf(number);
    if (holder !== undefined) return `${which}held by ${holder}`;
  }
  return undefined;
}

interface Related {
  number: string;
  name: string;
}

/** The device itself, its partitions, and the disk it is a partition of: to claim one excludes the others. */
async function relatedDevices(rdev: string): Promise<Related[]> {
  const self = await sysfsDirectory(rdev);
  if (self === undefined) return [{ number: rdev, name: rdev }];
  const directories = [self];
  if ((await sysfsAttribute(self, "partition")) !== undefined) directories.push(dirname(self));
  for (const entry of await readdir(self)) {
    if ((await sysfsAttribute(join(self, entry), "partition")) !== undefined) directories.push(join(self, entry));
  }
  const related: Related[] = [];
  for (const directory of directories) {
    const number = await sysfsAttribute(directory, "dev");
    if (number !== undefined) related.push({ number, name: directory.slice(directory.lastIndexOf("/") + 1) });
  }
  return related;
}

async function mountPointOf(number: string): Promise<string | undefined> {
  for (const mount of parseMounts(await readFile("/proc/self/mountinfo", "utf8"))) {
    if (mount.device === number) return mount.mountPoint;
    // btrfs shows a number of its own there, but names the device.
    if (mount.device.startsWith("0:") && (await blockDeviceNumber(mount.source)) === number) return mount.mountPoint;
  }
  return undefined;
}

/** A line of proc_pid_mountinfo(5): `36 35 98:0 /root /mount/point rw - ext3 /dev/root rw`. */
interface Mount {
  device: string;
  mountPoint: string;
  source: string;
}

/** Parses /proc/PID/mountinfo; `\040` and the like in paths are decoded. */
export function parseMounts(mountinfo: string): Mount[] {
  return mountinfo
    .split("\n")
    .map((line) => line.split(" "))
    .filter((fields) => fields.length > 6)
    .map((fields) => ({
      device: fields[2] ?? "",
      mountPoint: decodeOctal(fields[4] ?? ""),
      source: decodeOctal(fields[fields.indexOf("-", 6) + 2] ?? ""),
    }));
}

/** Paths of active swap areas (proc_swaps(5)), files and block devices. */
export async function swapPaths(): Promise<string[]> {
  const lines = (await readFile("/proc/swaps", "utf8").catch(withoutSwap)).split("\n").slice(1);
  return lines.filter((line) => line !== "").map((line) => decodeOctal(line.slice(0, line.search(/[ \t]/))));
}

/** A kernel built without swap has no such file. */
function withoutSwap(error: NodeJS.ErrnoException): string {
  if (error.code === "ENOENT") return "";
  throw error;
}

async function isSwap(number: string): Promise<boolean> {
  for (const path of await swapPaths()) if ((await blockDeviceNumber(path)) === number) return true;
  return false;
}

async function holderOf(number: string): Promise<string | undefined> {
  const directory = await sysfsDirectory(number);
  if (directory === undefined) return undefined;
  const [holder] = await readdir(join(directory, "holders")).catch(nothing);
  if (holder === undefined) return undefined;
  const dmName = await sysfsAttribute(`/sys/block/${holder}`, "dm/name");
  return dmName === undefined ? holder : `device-mapper "${dmName}"`;
}

async function blockDeviceNumber(path: string): Promise<string | undefined> {
  if (!path.startsWith("/")) return undefined;
  // A path of another mount namespace, or a node since removed, names nothing here.
  const stats = await stat(path, { bigint: true }).catch(() => undefined);
  return stats?.isBlockDevice() ? deviceNumber(stats.rdev) : undefined;
}

function nothing(error: NodeJS.ErrnoException): string[] {
  if (error.code === "ENOENT") return [];
  throw error;
}

function decodeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits) => String.fromCharCode(Number.parseInt(digits, 8)));
}

/** Places for tests to work in, which clean up after themselves: directories, loop devices, mounted file systems. */
import { execFile } from "node:child_process";
import { closeSync, existsSync, openSync, readdirSync } from "node:fs";
import { mkdir, mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { guard } from "./guardian.ts";

const execute = promisify(execFile);

/** The PATH of users often lacks the directories that mkfs and losetup are in. */
const { PATH = "" } = process.env;
const SEARCH_PATH = `${PATH}:/usr/local/sbin:/usr/sbin:/sbin`;

/** Runs a program to its end and resolves to its standard output. Rejects where it fails. */
export async function run(command: string, ...args: string[]): Promise<string> {
  return (await execute(command, args, { env: { ...process.env, PATH: SEARCH_PATH } })).stdout;
}

/** Whether a program is installed. */
export function hasProgram(name: string): boolean {
  return SEARCH_PATH.split(":").some((directory) => directory !== "" && existsSync(join(directory, name)));
}

/** Why loop devices and mounts cannot be used here, or undefined where they can. */
export const noLoopDevices: string | undefined = whyNoLoopDevices();

function whyNoLoopDevices(): string | undefined {
  if (process.getuid?.() !== 0) return "needs root";
  try {
    closeSync(openSync("/dev/loop-control", "r+"));
  } catch {
    return "needs loop devices";
  }
  return readdirSync("/sys/block").some((name) => name.startsWith("loop")) ? undefined : "needs loop devices";
}

/** Why a file system cannot be made and mounted here, or undefined where it can. */
export function noFileSystem(type: string): string | undefined {
  return noLoopDevices ?? (hasProgram(`mkfs.${type}`) ? undefined : `needs mkfs.${type}`);
}

/** The name of a test that is skipped for a reason says the reason. */
export function withReason(name: string, reason: string | undefined): string {
  return reason === undefined ? name : `${name} (skipped: ${reason})`;
}

/** A place that is gone once it is disposed of. */
export interface Scratch extends AsyncDisposable {
  readonly path: string;
}

/** An empty directory; under the system's directory for temporary files, unless told where. */
export async function scratchDirectory(parent: string = tmpdir()): Promise<Scratch> {
  const path = await mkdtemp(join(parent, "clone-test-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** A loop device over `file`, which must exist. `path` is the device's. */
export async function loopDevice(
  file: string,
  options: { sectorSize?: number; readOnly?: boolean } = {},
): Promise<Scratch> {
  const args = ["--find", "--show"];
  if (options.sectorSize !== undefined) args.push("--sector-size", String(options.sectorSize));
  if (options.readOnly) args.push("--read-only");
  const path = (await run("losetup", ...args, file)).trim();
  const guardian = guard("loop device", path);
  return {
    path,
    async [Symbol.asyncDispose]() {
      await run("losetup", "--detach", path);
      await guardian[Symbol.asyncDispose]();
    },
  };
}

/** A loop device over a new sparse file of `size` bytes. */
export async function scratchLoopDevice(size: number, options: { sectorSize?: number } = {}): Promise<Scratch> {
  const directory = await scratchDirectory();
  const file = join(directory.path, "backing");
  await writeFile(file, "");
  await truncate(file, size);
  const device = await loopDevice(file, options);
  return {
    path: device.path,
    async [Symbol.asyncDispose]() {
      await device[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** A new file system of a type (`ext4`, `xfs`, `btrfs`) and size in bytes, mounted at `path`. */
export async function mountedFileSystem(
  type: string,
  size: number,
  ...mkfsOptions: string[]
): Promise<Scratch & { device: string }> {
  const device = await scratchLoopDevice(size);
  await run(`mkfs.${type}`, "-q", ...mkfsOptions, device.path);
  const directory = await scratchDirectory();
  const path = join(directory.path, "mnt");
  await mkdir(path);
  await run("mount", "-t", type, device.path, path);
  return {
    path,
    device: device.path,
    async [Symbol.asyncDispose]() {
      await run("umount", path);
      await device[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** A tmpfs of `size` bytes, mounted at `path`: a file system that is full in no time. Needs root. */
export function mountedTmpfs(size: number): Promise<Scratch> {
  return mounted("tmpfs", `size=${size}`);
}

/** A ramfs, mounted at `path`: a file system with nothing but reading and writing. Needs root. */
export function mountedRamfs(): Promise<Scratch> {
  return mounted("ramfs", "mode=755");
}

async function mounted(type: string, options: string): Promise<Scratch> {
  const directory = await scratchDirectory();
  await run("mount", "-t", type, "-o", options, type, directory.path);
  return {
    path: directory.path,
    async [Symbol.asyncDispose]() {
      await run("umount", directory.path);
      await directory[Symbol.asyncDispose]();
    },
  };
}

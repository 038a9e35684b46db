/** An NBD export as a block device of this machine, without a kernel that knows NBD: nbdfuse shows a file, a loop device is over it. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { guard } from "./guardian.ts";
import { eventually } from "./run-clone.ts";
import { loopDevice, noLoopDevices, run, type Scratch, scratchDirectory } from "./scratch.ts";

/** Why this machine cannot, or undefined where it can. */
export const noNbdLoop: string | undefined = noLoopDevices ?? (existsSync("/dev/fuse") ? undefined : "needs /dev/fuse");

/** Shows what an NBD server exports as a file, at `path`. `what` is a URI, or `[`, a server's command line, `]`. */
export async function nbdFile(what: readonly string[], options: readonly string[] = []): Promise<Scratch> {
  const directory = await scratchDirectory();
  const mount = join(directory.path, "mnt");
  await mkdir(mount);
  const path = join(mount, "disk");
  const nbdfuse = spawn("nbdfuse", [...options, path, ...what], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  nbdfuse.stderr.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  const ended = once(nbdfuse, "exit");
  await eventually("nbdfuse shows the file", () => {
    if (nbdfuse.exitCode !== null) throw new Error(`nbdfuse: ${said}`);
    return existsSync(path);
  });
  const guardian = guard("mount", mount);
  return {
    path,
    async [Symbol.asyncDispose]() {
      await run("fusermount3", "-u", mount);
      await ended;
      await guardian[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** A loop device over an NBD export; `path` is the device's. */
export async function nbdLoopDevice(uri: string): Promise<Scratch> {
  const file = await nbdFile([uri]);
  const device = await loopDevice(file.path);
  return {
    path: device.path,
    async [Symbol.asyncDispose]() {
      await device[Symbol.asyncDispose]();
      // The device goes when its last user has gone, a moment later.
      await eventually(
        "the loop device is gone",
        async () =>
          !(await run("losetup", "--list", "--noheadings", "--output", "NAME")).split("\n").includes(device.path),
      );
      await file[Symbol.asyncDispose]();
    },
  };
}

/** Mounts a block device at `path`, a new directory, until it is disposed of. */
export async function mountedDevice(device: string, type: string, ...options: string[]): Promise<Scratch> {
  const directory = await scratchDirectory();
  const path = join(directory.path, "mnt");
  await mkdir(path);
  await run("mount", "-t", type, ...(options.length === 0 ? [] : ["-o", options.join(",")]), device, path);
  return {
    path,
    async [Symbol.asyncDispose]() {
      await run("umount", path);
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** File systems of some MiB that fill up, grow and turn read-only, on loop devices of their own. They need root. */
import { open, readFile, stat, truncate, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { guard } from "./guardian.ts";
import { loopDevice, noFileSystem, noLoopDevices, run, type Scratch, scratchDirectory } from "./scratch.ts";

const MIB = 2 ** 20;

/** The kinds there are, why one cannot be had here, and what a new one is like. */
export const SMALL_FILE_SYSTEMS = {
  // No reserve for root, or it is not full for us.
  ext4: { machine: noFileSystem("ext4"), programs: ["mkfs.ext4", "e2fsck"], size: 16 * MIB, mkfs: ["-q", "-m", "0"] },
  // What mkfs.xfs calls supported begins at 300 MiB.
  xfs: { machine: noFileSystem("xfs"), programs: ["mkfs.xfs", "xfs_repair"], size: 320 * MIB, mkfs: ["-q"] },
  tmpfs: { machine: noLoopDevices, programs: [], size: 16 * MIB, mkfs: [] },
} as const;

/** One of them. */
export type SmallKind = keyof typeof SMALL_FILE_SYSTEMS;

/** A file system mounted at `path`. Disposed of, it is gone. */
export interface SmallFileSystem extends Scratch {
  /** Fills it with a file, but for some bytes, or a little less. */
  fill(left: number): Promise<void>;
  /** Makes it 16 MiB larger. Where it does not grow in use, nothing of it may be open. */
  grow(): Promise<void>;
  /** Whether it can grow while files of it are open: the kernel lets only who has CAP_SYS_RESOURCE make an ext4 larger. */
  readonly growsInUse: boolean;
  /** Mounts it anew, read-only or not; no file of it may be open for writing. */
  remount(how: "ro" | "rw"): Promise<void>;
  /** Has it go down as after an error of its disk, whoever uses it: ext4 turns read-only, XFS refuses everything. */
  die(): Promise<void>;
  /** Mounts it again after that, with whatever recovery it takes; no file of it may be open. */
  revive(): Promise<void>;
  /** The loop device; undefined where there is none. */
  readonly device: string | undefined;
}

/** Makes one, empty. */
export async function smallFileSystem(kind: SmallKind): Promise<SmallFileSystem> {
  const directory = await scratchDirectory();
  const path = join(directory.path, "mnt");
  await run("mkdir", path);
  let { size }: { size: number } = SMALL_FILE_SYSTEMS[kind];
  const backing = join(directory.path, "backing");
  let device: Scratch | undefined;
  if (kind === "tmpfs") await run("mount", "-t", "tmpfs", "-o", `size=${size}`, "tmpfs", path);
  else {
    await writeFile(backing, "");
    await truncate(backing, size);
    device = await loopDevice(backing);
    await run(`mkfs.${kind}`, ...SMALL_FILE_SYSTEMS[kind].mkfs, device.path);
    await run("mount", "-t", kind, device.path, path);
  }
  const guardian = guard("mount", path);
  const growsInUse = kind !== "ext4" || (await mayUseResources());
  return {
    path,
    device: device?.path,
    growsInUse,
    fill: (left) => fill(join(path, "ballast"), left),
    async grow() {
      size += 16 * MIB;
      if (device === undefined) return void (await run("mount", "-o", `remount,size=${size}`, path));
      await truncate(backing, size);
      await run("losetup", "--set-capacity", device.path);
      if (kind === "xfs") return void (await run("xfs_growfs", path));
      if (!growsInUse) await run("umount", path);
      if (!growsInUse) await run("e2fsck", "-f", "-y", device.path);
      await run("resize2fs", device.path);
      if (!growsInUse) await run("mount", "-t", kind, device.path, path);
    },
    async die() {
      if (kind === "xfs") await run("xfs_io", "-x", "-c", "shutdown", path);
      else await run("mount", "-o", "remount,abort", path);
    },
    async revive() {
      if (device === undefined) throw new Error(`${kind} does not die`);
      await run("umount", path);
      // It corrects what it finds, and says so by its exit code.
      if (kind === "ext4") await run("e2fsck", "-f", "-y", device.path).catch(refuseMore);
      await run("mount", "-t", kind, device.path, path);
    },
    remount: async (how) => void (await run("mount", "-o", `remount,${how}`, path)),
    async [Symbol.asyncDispose]() {
      await run("umount", path);
      await device?.[Symbol.asyncDispose]();
      await guardian[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** e2fsck(8): 1 is "errors corrected". */
function refuseMore(error: { code?: number }): void {
  if (error.code !== 1) throw error;
}

/** Whether this process has CAP_SYS_RESOURCE (include/uapi/linux/capability.h). */
async function mayUseResources(): Promise<boolean> {
  const [, effective = "0"] = /^CapEff:\s*([0-9a-f]+)$/m.exec(await readFile("/proc/self/status", "utf8")) ?? [];
  return (BigInt(`0x${effective}`) / 2n ** 24n) % 2n === 1n;
}

/** Takes space in steps that become smaller, until there is none; then gives back what is to be left. */
async function fill(path: string, left: number): Promise<void> {
  let length = await stat(path).then(
    ({ size }) => size,
    () => 0, // the first time
  );
  for (let step = 64 * MIB; step >= 4096; ) {
    try {
      await run("fallocate", "--offset", `${length}`, "--length", `${step}`, path);
      length += step;
    } catch {
      step /= 2;
    }
  }
  const file = await open(path, "r+");
  try {
    await file.truncate(Math.max(0, length - left));
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Takes away what fills it. */
export async function unfill(fileSystem: SmallFileSystem): Promise<void> {
  await unlink(join(fileSystem.path, "ballast"));
}

/** Where the destination and the metadata of a clone are: in plain files, or behind caches that a power cut empties. */
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { eventually } from "../support/run-clone.ts";
import { hasProgram, run } from "../support/scratch.ts";
import { type Running, startNbdkit, startProgram } from "../support/source-servers.ts";

/** The disks of one clone. */
export interface Disks {
  /** What programs are told to create and open. */
  readonly destination: string;
  readonly metadata: string;
  /** The files in which all that is durable is, to be looked at while the disks are off. */
  readonly destinationFile: string;
  readonly metadataFile: string;
  on(): Promise<void>;
  /** Takes the power away: what is in a cache is gone. To be called when nobody can ask for anything any more. */
  off(): Promise<void>;
}

/** Files of a directory: what a process has written stays in the page cache when it is killed. */
export function plainFiles(cwd: string): Disks {
  const [destinationFile, metadataFile] = [join(cwd, "copy.img"), join(cwd, "copy.img.clone")];
  const nothing = async (): Promise<void> => undefined;
  return {
    destination: "copy.img",
    metadata: "copy.img.clone",
    destinationFile,
    metadataFile,
    on: nothing,
    off: nothing,
  };
}

/** Why disks with a cache cannot be had here, or undefined where they can. */
export const noCachedDisks: string | undefined = existsSync("/dev/fuse") ? undefined : "needs /dev/fuse";
/** What they need. */
export const CACHED_DISK_PROGRAMS = ["nbdkit", "nbdfuse", "fusermount3"] as const;

/**
 * Disks with a volatile cache: nbdkit's cache filter keeps what is written in an unnamed file until it is told to flush, and
 * takes it along when it is killed. The destination is one over NBD, the metadata one that nbdfuse shows as a file.
 * @param mode `unsafe` is a disk that lies about flushes
 */
export function cachedDisks(cwd: string, mode: "writeback" | "unsafe" = "writeback"): Disks {
  const [destinationFile, metadataFile] = [join(cwd, "copy.img"), join(cwd, "copy.meta")];
  const sockets = [join(cwd, "destination.sock"), join(cwd, "metadata.sock")] as const;
  const mount = join(cwd, "mnt");
  const metadata = join(mount, "disk");
  let running: Running[] = [];
  const serve = (socket: string, file: string): Promise<Running> =>
    startNbdkit(cwd, socket, "--filter=cache", "file", file, `cache=${mode}`, "cache-min-block-size=4096");
  return {
    destination: `nbd+unix:///?socket=${sockets[0]}`,
    metadata,
    destinationFile,
    metadataFile,
    async on() {
      await mkdir(mount, { recursive: true });
      running = await Promise.all([serve(sockets[0], destinationFile), serve(sockets[1], metadataFile)]);
      const words = ["nbdfuse", metadata, `nbd+unix:///?socket=${sockets[1]}`];
      running.push(await startProgram(words, { cwd, ready: () => existsSync(metadata) }));
    },
    async off() {
      if (running.length === 0) return;
      await Promise.all(running.map((program) => program.kill("SIGKILL")));
      running = [];
      await run("fusermount3", "-u", mount);
      await eventually("the mount is gone", () => !existsSync(metadata));
    },
  };
}

/** Whether this machine has them. */
export function hasCachedDisks(): boolean {
  return noCachedDisks === undefined && CACHED_DISK_PROGRAMS.every(hasProgram);
}

/** Where the destination and the metadata of a clone are: in plain files, or behind caches that a power cut empties. */
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { run } from "../support/scratch.ts";
import { type Running, startNbdkit, startProgram } from "../support/source-servers.ts";

/** The disks of one clone. */
export interface Disks {
  /** What programs are told to open. */
  readonly destination: string;
  readonly metadata: string;
  /** The files in which all that is durable is, to be looked at while the disks are off. */
  readonly destinationFile: string;
  readonly metadataFile: string;
  /** Whether what was discarded reads as zeros afterwards. */
  readonly discardsToZeros: boolean;
  on(): Promise<void>;
  /** Takes the power away, whoever is at work: what is in a cache is gone. */
  cut(): Promise<void>;
  /** Takes the power away when nobody has them open any more. */
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
    discardsToZeros: true,
    on: nothing,
    cut: nothing,
    off: nothing,
  };
}

/** Why disks with a cache cannot be had here, or undefined where they can. */
export const noCachedDisks: string | undefined = existsSync("/dev/fuse") ? undefined : "needs /dev/fuse";
/** What they need. */
export const CACHED_DISK_PROGRAMS = ["nbdkit", "nbdfuse", "fusermount3"] as const;

/**
 * Disks with a volatile cache: nbdkit's cache filter keeps what is written in an unnamed file until it is told to flush, and
 * takes it along when it is killed. The destination is one over NBD, the metadata one that nbdfuse shows as a file, once there is any.
 * @param flushes whether the destination does what it is told, or lies
 */
export function cachedDisks(cwd: string, flushes: "truly" | "falsely" = "truly"): Disks {
  const [destinationFile, metadataFile] = [join(cwd, "copy.img"), join(cwd, "copy.meta")];
  const sockets = [join(cwd, "destination.sock"), join(cwd, "metadata.sock")] as const;
  const mount = join(cwd, "mnt");
  const metadata = join(mount, "disk");
  let running: Running[] = [];
  const serve = (socket: string, file: string, cache: string): Promise<Running> =>
    startNbdkit(cwd, socket, "--filter=cache", "file", file, `cache=${cache}`, "cache-min-block-size=4096");
  const cut = async (): Promise<void> => {
    // The destination first: what has been flushed to it may be vouched for, and nothing else.
    await Promise.all(running.map((program) => program.kill("SIGKILL")));
  };
  return {
    destination: `nbd+unix:///?socket=${sockets[0]}`,
    metadata,
    destinationFile,
    metadataFile,
    discardsToZeros: false, // NBD says nothing of it, and this cache shows what it still has
    async on() {
      running = [await serve(sockets[0], destinationFile, flushes === "truly" ? "writeback" : "unsafe")];
      if (!existsSync(metadataFile)) return;
      await mkdir(mount, { recursive: true });
      running.push(await serve(sockets[1], metadataFile, "writeback"));
      const words = ["nbdfuse", metadata, `nbd+unix:///?socket=${sockets[1]}`];
      running.push(await startProgram(words, { cwd, ready: () => existsSync(metadata) }));
    },
    cut,
    async off() {
      await cut();
      if (running.length > 1) await run("fusermount3", "-u", mount);
      running = [];
    },
  };
}

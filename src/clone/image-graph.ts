/**
 * What qemu is told to open: every file by its driver and path, backing files included. So qemu guesses no format, takes no name
 * for a protocol or an option, and opens nothing that was not looked at here.
 */
import { createHash } from "node:crypto";
import { stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ChangedError, CloneError, DeviceError, errnoOf, UsageError } from "../base/errors.ts";
import { FileDevice } from "../device/file-device.ts";
import { detectImageFormat } from "./image-formats.ts";
import { type ImageReference, readReferences, refuseReferences } from "./image-references.ts";
import { filesSeenOpen, inodeOf } from "./opened-files.ts";

/** A node of qemu's block graph (BlockdevOptions of its QMP reference). */
export type ImageNode = { [field: string]: string | boolean | null | ImageNode };

/** Formats that hold a disk, by qemu's names. */
export const IMAGE_FORMATS: readonly string[] = [
  ...["qcow2", "vmdk", "vhdx", "vpc", "vdi", "qcow", "qed", "parallels", "bochs", "cloop", "dmg"],
];

/** More files than any chain has that somebody made on purpose. */
const LONGEST_CHAIN = 64;

/**
 * A file that was changed later than this before our look is looked at again, ms: file systems keep times in steps (10 ms and
 * less), and what follows within one leaves no trace.
 */
const TIME_STEP_MS = 20;
const MOST_LOOKS = 50;

/** The graph of an image in local files. */
export interface LocalImage {
  node: ImageNode;
  /** The files that it is read from, the image first. */
  files: readonly string[];
  /** Tells the others from what they were before, over restarts of the machine; undefined where there are none. */
  tag: string | undefined;
  /** @throws {ChangedError} where one of the files is not what it was when the graph was made */
  check(): Promise<void>;
  /**
   * Whether a program that was told to open the graph has opened it, and nothing else: what a header names, or a path leads to, may
   * be another file by the time that a program looks. For a first start it is seen to as well that nobody has touched them since.
   * @throws {ChangedError} where it has other files open
   * @throws {DeviceError} where it has ended meanwhile
   */
  checkOpened(pid: number | undefined, options: { isFirst: boolean }): Promise<void>;
}

/** By the name that qemu has for it. @throws {UsageError} where there is no such format */
export function imageFormat(name: string): string {
  const format = name === "vhd" ? "vpc" : name.toLowerCase();
  if (IMAGE_FORMATS.includes(format)) return format;
  throw new UsageError(`Cannot open an image of the format "${name}": there is no such format`, {
    hint: `Formats are raw, ${IMAGE_FORMATS.join(", ")}.`,
  });
}

/**
 * The graph of an image in a local file, with all that it refers to where that may be.
 * @param mayRefer whether it may be read together with the files that it names
 * @throws {DeviceError} where a file cannot be read, or it refers to others and may not
 */
export async function localImage(path: string, format: string, mayRefer: boolean): Promise<LocalImage> {
  const chain = new Chain(mayRefer);
  const node = await chain.node(path, format);
  return {
    node,
    files: chain.paths,
    tag: chain.tag(),
    check: () => chain.check(),
    checkOpened: (pid, { isFirst }) => chain.checkOpened(pid, isFirst),
  };
}

class Chain {
  readonly #mayRefer: boolean;
  readonly #files = new Map<string, FileState>();
  #depth = 0;

  constructor(mayRefer: boolean) {
    this.#mayRefer = mayRefer;
  }

  get paths(): string[] {
    return [...this.#files.keys()];
  }

  tag(): string | undefined {
    const [, ...others] = this.#files.values();
    if (others.length === 0) return undefined;
    const hash = createHash("sha256");
    for (const { lasting } of others) hash.update(`${lasting}\n`);
    return `"${hash.digest("hex").slice(0, 32)}"`;
  }

  async check(): Promise<void> {
    for (const [path, { now }] of this.#files) {
      if ((await stateOf(path)).now === now) continue;
      throw this.#changed(`"${path}" has been changed`);
    }
  }

  async checkOpened(pid: number | undefined, isFirst: boolean): Promise<void> {
    const opened = await filesSeenOpen(pid, this.paths[0] ?? "");
    const known = new Set([...this.#files.values()].map(({ inode }) => inode));
    const other = opened.find(({ inode }) => !known.has(inode));
    if (other !== undefined) throw this.#changed(`what it is read from was exchanged for "${other.path}"`);
    if (!isFirst) return;
    // Now, and not later: who makes a backup, or changes a mode, changes this time too.
    for (const [path, { touched }] of this.#files) {
      if ((await stateOf(path)).touched !== touched) throw this.#changed(`"${path}" has been changed`);
    }
  }

  #changed(difference: string): ChangedError {
    return new ChangedError(`Cannot read "${this.paths[0]}" any more: ${difference}`, { difference });
  }

  /** The node of an image and of what it refers to. */
  async node(path: string, format: string): Promise<ImageNode> {
    const file = await this.#file(path);
    if (format === "raw") return { driver: "raw", file };
    await using device = await FileDevice.open(path, { access: "read-only" });
    const references = await readReferences(device, format);
    if (!this.#mayRefer)
      refuseReferences(references, path, `--source-format ${format} reads them together, on purpose.`);
    const node: ImageNode = { driver: format, file, backing: null };
    for (const reference of references) {
      const name = this.#pathOf(path, reference);
      if (reference.role === "backing file") node.backing = await this.node(name, await backingFormat(name, reference));
      if (reference.role === "data file") node["data-file"] = await this.#file(name);
      // qemu opens the extents of a VMDK itself, by paths from its own; one may be named several times.
      if (reference.role === "extent") this.#files.set(name, await calmStateOf(name));
    }
    return node;
  }

  async #file(path: string): Promise<ImageNode> {
    const state = await calmStateOf(path);
    if (this.#files.has(path)) throw new CloneError("failed", `Cannot open "${path}": it refers to itself`);
    this.#depth += 1;
    if (this.#depth > LONGEST_CHAIN) {
      throw new CloneError("failed", `Cannot open "${this.paths[0]}": it refers to more than ${LONGEST_CHAIN} files`);
    }
    this.#files.set(path, state);
    return { driver: state.isDevice ? "host_device" : "file", filename: path };
  }

  #pathOf(path: string, { role, name }: ImageReference): string {
    const plain = name.startsWith("file:") && !name.startsWith("file://") ? name.slice("file:".length) : name;
    // As qemu tells protocols: a colon before any slash.
    if (!/^[^/]*:/.test(plain) && plain !== "" && !plain.includes("\0")) return resolve(dirname(path), plain);
    throw new DeviceError(`Cannot open "${path}": its ${role} "${name}" is no file`, {
      hint: 'Only files are followed. json:{"driver":…} names a chain of anything, each with its driver.',
    });
  }
}

/**
 * The format of a backing file. Where the image does not tell, as old ones do, it is looked at; then it may not refer to further
 * files: what is raw for its user may have been given a header by a guest.
 */
async function backingFormat(path: string, { format }: ImageReference): Promise<string> {
  // Names of protocols, which some have written for raw.
  if (format !== undefined) return ["raw", "file", "host_device"].includes(format) ? "raw" : imageFormat(format);
  await using device = await FileDevice.open(path, { access: "read-only" });
  const found = (await detectImageFormat(device)) ?? "raw";
  if (found !== "raw") {
    const hint = `qemu-img rebase -u -F ${found} writes into the image above it which format it has.`;
    refuseReferences(await readReferences(device, found), path, hint);
  }
  return found;
}

interface FileState {
  isDevice: boolean;
  /** What tells it from another file and from what it was before, as long as the machine runs. */
  now: string;
  /** And as long as the file lives: device numbers change, and a device has no time of change. */
  lasting: string;
  /** As `inodeOf()` tells it. */
  inode: string;
  /** When it, its name or its mode were changed, ns; nobody can set it. Zero of a device. */
  touched: bigint;
}

/** The state of a file that nobody is changing. @throws {DeviceError} */
async function calmStateOf(path: string): Promise<FileState> {
  for (let look = 0; look < MOST_LOOKS; look++) {
    const state = await stateOf(path);
    const sinceMs = Date.now() - Number(state.touched / 1_000_000n);
    if (sinceMs < 0 || sinceMs > TIME_STEP_MS) return state; // below zero: the clock was set, or is another machine's
    await sleep(TIME_STEP_MS);
  }
  throw new DeviceError(`Cannot open "${path}": it is being changed`);
}

/** @throws {DeviceError} */
async function stateOf(path: string): Promise<FileState> {
  try {
    const stats = await stat(path, { bigint: true });
    const isDevice = stats.isBlockDevice();
    if (!isDevice && !stats.isFile()) throw new UsageError(`Cannot open "${path}": it is no file or block device`);
    const inode = inodeOf(stats);
    if (isDevice) return { isDevice, now: String(stats.rdev), lasting: path, inode, touched: 0n };
    const lasting = [stats.ino, stats.size, stats.mtimeNs].join(" ");
    return { isDevice, now: `${stats.dev} ${lasting}`, lasting, inode, touched: stats.ctimeNs };
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === undefined) throw error;
    throw new DeviceError(`Cannot open "${path}": ${errno}`, { errno, cause: error });
  }
}

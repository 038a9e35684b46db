/**
 * A new file that appears under its name whole or not at all: made without a name (open(2), O_TMPFILE), so that nothing
 * is left of it if we are killed, and given one by linkat(2), which never replaces what stands there.
 *
 * Where the file system cannot do that it gets a random name beside the final one, made with O_EXCL, so that nobody's file
 * is ever taken over; killed in between, that one stays.
 */
import { randomBytes } from "node:crypto";
import * as fs from "node:fs/promises";
import { dirname } from "node:path";
import { DeviceError } from "../base/errors.ts";
import { syncDirectoryOf } from "./directory.ts";
import { FileDevice } from "./file-device.ts";
import { linkDescriptor } from "./libc.ts";
import { refuseOpening } from "./open-file.ts";
import { systemErrno } from "./syscall.ts";

/** asm-generic/fcntl.h: __O_TMPFILE, which O_TMPFILE is together with O_DIRECTORY. */
const TMPFILE = 0o20000000;
/** What says that a file system has no O_TMPFILE (open(2)). */
const NO_TMPFILE = ["EOPNOTSUPP", "EISDIR", "EINVAL", "ENOSYS"];

/** What says that a file system has no hard links (link(2)). */
const NO_LINKS = ["EPERM", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EMLINK"];

/** Whatever umask says, not everybody may write it: who writes metadata chooses what is copied where. */
const DEFAULT_MODE = 0o664;

/** A file being made. Disposing of it closes it; if it was not published, it is gone then. */
export class UnnamedFile implements AsyncDisposable {
  /** To write it by. */
  readonly device: FileDevice;
  readonly #path: string;
  /** Where it has no unnamed files. */
  #provisional: string | undefined;

  private constructor(path: string, device: FileDevice, provisional: string | undefined) {
    this.#path = path;
    this.device = device;
    this.#provisional = provisional;
  }

  /**
   * Begins the file that will be `path`, empty.
   * @param mode its permissions, of which umask takes some
   * @throws {DeviceError} where none can be made there
   */
  static async create(path: string, { mode = DEFAULT_MODE }: { mode?: number } = {}): Promise<UnnamedFile> {
    const options = { access: "read-write", direct: "off", knownAs: path } as const;
    const flags = fs.constants.O_RDWR + fs.constants.O_DIRECTORY + TMPFILE;
    const handle = await fs.open(dirname(path), flags, mode).catch((error: unknown) => {
      if (NO_TMPFILE.includes(systemErrno(error) ?? "")) return undefined;
      return refuseOpening("create", path, error);
    });
    if (handle === undefined) {
      const provisional = provisionalName(path);
      const device = await FileDevice.open(provisional, { ...options, create: { size: 0, mode } });
      return new UnnamedFile(path, device, provisional);
    }
    try {
      const device = await FileDevice.open(`/proc/self/fd/${handle.fd}`, options).catch((error: unknown) =>
        // A umask that leaves nothing to its owner: it is the path that people know.
        refuseOpening("create", path, error instanceof DeviceError ? error.cause : error),
      );
      return new UnnamedFile(path, device, undefined);
    } finally {
      await handle.close();
    }
  }

  /**
   * Gives it its name, durably; its content must have been flushed before.
   * @returns false where something stands there already, which is then untouched
   * @throws {DeviceError} where it cannot be named; it is then not there
   */
  async publish(): Promise<boolean> {
    try {
      if (this.#provisional === undefined) linkDescriptor(this.device.fd, this.#path);
      else await nameWithoutReplacing(this.#provisional, this.#path);
    } catch (error) {
      if (systemErrno(error) === "EEXIST") return false;
      return refuseOpening("create", this.#path, error);
    }
    await this.#removeProvisional();
    try {
      await syncDirectoryOf(this.#path);
    } catch (error) {
      await fs.unlink(this.#path); // ours, and not to be relied on
      throw error;
    }
    return true;
  }

  /**
   * Gives it the name of the file that stands there, which is gone then: at every moment it is the one or the other that has
   * the name. Its content must have been flushed before. Mode and owner are the caller's part.
   * @throws {DeviceError} where that cannot be done, or was not made durable
   */
  async replace(): Promise<void> {
    try {
      if (this.#provisional === undefined) {
        const provisional = provisionalName(this.#path);
        linkDescriptor(this.device.fd, provisional);
        this.#provisional = provisional;
      }
      await fs.rename(this.#provisional, this.#path);
    } catch (error) {
      return refuseOpening("create", this.#path, error);
    }
    this.#provisional = undefined;
    await syncDirectoryOf(this.#path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#removeProvisional();
    await this.device[Symbol.asyncDispose]();
  }

  async #removeProvisional(): Promise<void> {
    const provisional = this.#provisional;
    this.#provisional = undefined;
    if (provisional !== undefined) await fs.unlink(provisional).catch(alreadyGone);
  }
}

/** Where it stands until it has its own name; beside that, and nobody's. */
function provisionalName(path: string): string {
  return `${path}.${randomBytes(6).toString("hex")}.part`;
}

/** Link where there are hard links; else reserve the name with an empty file, which only the rename replaces. */
async function nameWithoutReplacing(from: string, to: string): Promise<void> {
  try {
    await fs.link(from, to);
  } catch (error) {
    if (!NO_LINKS.includes(systemErrno(error) ?? "")) throw error;
    await (await fs.open(to, "wx")).close();
    await fs.rename(from, to);
  }
}

/** It was renamed. */
function alreadyGone(error: unknown): void {
  if (systemErrno(error) !== "ENOENT") throw error;
}

/**
 * A unix socket that somebody listens on and that has no name: it was bound in a private directory, and the directory is gone.
 *
 *     bind DIR/nbd ──► open it with O_PATH as N ──► remove DIR ──► connect to /proc/self/fd/N, as often as wanted
 *
 * So nobody but who has the descriptor can connect, and nothing is left in the file system whatever ends the process. The kernel
 * finds who listens by the inode, whatever name, or none, it was reached by (unix(7), open(2) on O_PATH).
 */
import { closeSync, openSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CloneError, errnoOf } from "../base/errors.ts";
import { replaceDescriptor } from "./libc.ts";

/** open(2): a descriptor that only names a file. The same on all that we run on; Node has no name for it. */
const O_PATH = 0o10000000;
const O_CLOEXEC = 0o2000000;
/** `sun_path` without its NUL, bytes. */
const LONGEST_PATH = 107;
const NAME = "nbd";

/** Holds a socket's inode. Disposing of it closes the descriptor; whoever listens goes on. */
export class UnnamedSocket implements Disposable {
  #fd = -1;

  /** The descriptor, which another process may inherit; -1 before `bind()`. */
  get fd(): number {
    return this.#fd;
  }

  /** What to connect to in this process, the same for ever; in another one it has the descriptor's number there. */
  get path(): string {
    return pathOfDescriptor(this.#fd);
  }

  /**
   * Has a socket bound, and holds it in place of the one before.
   * @param listen binds the path that it is given, and listens there
   * @throws {CloneError} where no directory can be made, and whatever `listen` throws
   */
  async bind(listen: (path: string) => Promise<void>): Promise<void> {
    const directory = await privateDirectory();
    try {
      const path = join(directory, NAME);
      await listen(path);
      const fd = openSync(path, O_PATH + O_CLOEXEC);
      if (this.#fd === -1) this.#fd = fd;
      else {
        try {
          replaceDescriptor(fd, this.#fd);
        } finally {
          closeSync(fd);
        }
      }
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }

  [Symbol.dispose](): void {
    if (this.#fd !== -1) closeSync(this.#fd);
    this.#fd = -1;
  }
}

/** Under which a process connects to the socket that it has as a descriptor. */
export function pathOfDescriptor(fd: number): string {
  return `/proc/self/fd/${fd}`;
}

/** A new directory that only this user can enter, in the first place where one can be and a socket's path fits. */
async function privateDirectory(): Promise<string> {
  const { XDG_RUNTIME_DIR: runtime } = process.env;
  const places = [...(runtime?.startsWith("/") ? [runtime] : []), tmpdir(), "/tmp"];
  let failure: unknown;
  for (const place of places) {
    const prefix = join(place, "clone-");
    if (Buffer.byteLength(join(`${prefix}XXXXXX`, NAME)) > LONGEST_PATH) continue;
    try {
      return await mkdtemp(prefix);
    } catch (error) {
      failure ??= error;
    }
  }
  throw new CloneError(
    "failed",
    `Cannot make a directory in "${tmpdir()}": ${errnoOf(failure) ?? "its path is too long"}`,
    {
      cause: failure,
    },
  );
}

/**
 * A file that tells who serves: there from the moment the server is ready until it ends. It is whole from the start, and a
 * process that is killed while it makes it leaves nothing else.
 */
import type { BigIntStats } from "node:fs";
import { lstat, readFile, unlink } from "node:fs/promises";
import { CloneError, errnoOf } from "../base/errors.ts";
import { isSameFile, statDescriptor } from "../device/file-identity.ts";
import { UnnamedFile } from "../device/unnamed-file.ts";

/** Whatever the umask allows more, others read it, and no more. */
const MODE = 0o644;
/** How often somebody else may put another file in its place meanwhile. */
const MOST_ATTEMPTS = 10;
const CONTENT = Buffer.from(`${process.pid}\n`);

/** Removes the file when it is disposed of, if it is still ours. What else stands there is never opened. */
export class PidFile implements AsyncDisposable {
  readonly #path: string;
  readonly #written: BigIntStats;

  private constructor(path: string, written: BigIntStats) {
    this.#path = path;
    this.#written = written;
  }

  /**
   * Writes this process's pid, in place of a file or symbolic link that stands there; the latter is not followed.
   * @throws {CloneError} where that cannot be, or what stands there is no file
   */
  static async write(path: string): Promise<PidFile> {
    try {
      await using file = await UnnamedFile.create(path, { mode: MODE });
      const { device } = file;
      await device.resize(CONTENT.length);
      await device.write(0, CONTENT);
      const written = await statDescriptor(device.fd, { bigint: true });
      for (let attempt = 1; attempt <= MOST_ATTEMPTS; attempt++) {
        await removeFile(path);
        if (await file.publish()) return new PidFile(path, written);
      }
      throw new CloneError("failed", `Cannot write the pid file "${path}": others write it, too`);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined) throw error;
      throw new CloneError("failed", `Cannot write the pid file "${path}": ${errno}`, { cause: error });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const standing = await lstat(this.#path, { bigint: true }).catch(absent);
    // Numbers of inodes are used again, for a FIFO too, which would hang us.
    if (!standing?.isFile() || !isSameFile(standing, this.#written)) return;
    // Another process may have written its own into it.
    const content = await readFile(this.#path).catch(absent);
    if (content?.equals(CONTENT)) await unlink(this.#path).catch(absent);
  }
}

/** `--pidfile /dev/null` must not be the end of /dev/null. @throws {CloneError} where what stands there is no file */
async function removeFile(path: string): Promise<void> {
  const standing = await lstat(path).catch(absent);
  if (standing === undefined) return;
  if (!standing.isFile() && !standing.isSymbolicLink()) {
    throw new CloneError("failed", `Cannot write the pid file "${path}": what stands there is no file`);
  }
  await unlink(path).catch((error: unknown) => {
    if (errnoOf(error) !== "ENOENT") throw error;
  });
}

/** What is not there any more is not ours to remove, nor what we cannot look at; to put another in its place says why not. */
function absent(error: unknown): undefined {
  if (errnoOf(error) === undefined) throw error;
}

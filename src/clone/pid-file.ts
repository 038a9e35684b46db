/**
 * A file that tells who serves: there from the moment the server is ready until it ends. It is whole from the start, and a
 * process that is killed while it makes it leaves nothing else.
 */
import { fchmod, fstat } from "node:fs";
import { readFile, unlink } from "node:fs/promises";
import { promisify } from "node:util";
import { CloneError, errnoOf } from "../base/errors.ts";
import { UnnamedFile } from "../device/unnamed-file.ts";

/** Whatever the umask allows more, others read it, and no more. */
const MODE = 0o644;
/** How often somebody else may put another file in its place meanwhile. */
const MOST_ATTEMPTS = 10;

/** Removes the file when it is disposed of, if it is still ours. */
export class PidFile implements AsyncDisposable {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** Writes this process's pid, in place of what stands there. @throws {CloneError} where that cannot be */
  static async write(path: string): Promise<PidFile> {
    try {
      await using file = await UnnamedFile.create(path);
      const { device } = file;
      const { mode } = await promisify(fstat)(device.fd);
      await promisify(fchmod)(device.fd, mode & MODE);
      const text = Buffer.from(`${process.pid}\n`);
      await device.resize(text.length);
      await device.write(0, text);
      for (let attempt = 1; attempt <= MOST_ATTEMPTS; attempt++) {
        await unlink(path).catch(absent);
        if (await file.publish()) return new PidFile(path);
      }
      throw new CloneError("failed", `Cannot write the pid file "${path}": others write it, too`);
    } catch (error) {
      if (error instanceof CloneError && errnoOf(error) === undefined) throw error;
      throw new CloneError("failed", `Cannot write the pid file "${path}": ${errnoOf(error)}`, { cause: error });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const text = await readFile(this.#path, "utf8").catch(absent);
    if (text === `${process.pid}\n`) await unlink(this.#path).catch(absent);
  }
}

function absent(error: unknown): void {
  if (errnoOf(error) !== "ENOENT") throw error;
}

/** A file that tells who serves: there from the moment the server is ready until it ends. */
import { readFile, rename, unlink, writeFile } from "node:fs/promises";
import { CloneError, errnoOf } from "../base/errors.ts";

/** Removes the file when it is disposed of, if it is still ours. */
export class PidFile implements AsyncDisposable {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** Writes this process's pid, whole from the start. @throws {CloneError} where that cannot be */
  static async write(path: string): Promise<PidFile> {
    const unfinished = `${path}.${process.pid}`;
    try {
      await writeFile(unfinished, `${process.pid}\n`, { flag: "wx", mode: 0o644 });
      await rename(unfinished, path);
    } catch (error) {
      await unlink(unfinished).catch((second: unknown) => {
        if (errnoOf(second) !== "ENOENT") throw second;
      });
      throw new CloneError("failed", `Cannot write the pid file "${path}": ${errnoOf(error)}`, { cause: error });
    }
    return new PidFile(path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      if ((await readFile(this.#path, "utf8")) === `${process.pid}\n`) await unlink(this.#path);
    } catch (error) {
      if (errnoOf(error) !== "ENOENT") throw error;
    }
  }
}

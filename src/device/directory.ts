import * as fs from "node:fs/promises";
import { dirname } from "node:path";
import { ioError } from "./io-error.ts";
import { systemErrno } from "./syscall.ts";

/**
 * Makes the creation, removal or renaming of a path durable: fsync of the directory that holds it, without which a
 * file may be gone after a power cut though its content was flushed. A file system that cannot do that for directories
 * (EINVAL) is taken to need none.
 *
 * @param path the file, there or not; for a symbolic link to one, the real path is wanted
 * @throws {DeviceError} where the directory cannot be opened or synced
 */
export async function syncDirectoryOf(path: string): Promise<void> {
  const directory = dirname(path);
  try {
    const handle = await fs.open(directory, fs.constants.O_RDONLY + fs.constants.O_DIRECTORY);
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (cause) {
    const errno = systemErrno(cause);
    if (errno === undefined) throw cause;
    if (errno !== "EINVAL") throw ioError({ verb: "flush", name: directory, errno, cause });
  }
}

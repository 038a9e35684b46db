/** Certificates, keys and passwords from files, the only place besides the environment that they are taken from. */
import { constants, open } from "node:fs/promises";
import { CloneError, errnoOf } from "../base/errors.ts";

/** No file of credentials is larger, bytes: the authorities of a whole system are about 300 KiB. */
const MOST_BYTES = 16 * 1024 * 1024;
const CHUNK_BYTES = 65536;

/** How a file of credentials is read. */
export interface CredentialFileOptions {
  /** It may be missing: then undefined. */
  optional?: boolean;
  /** Bytes that it may have. */
  most?: number;
  /** It holds a secret; told, in a sentence, where others than its owner can read that. */
  onExposed?: ((sentence: string) => void) | undefined;
  /** Its group may read it: keys are often those of a service. */
  groupMayRead?: boolean;
}

/**
 * The text of a file, or of a pipe. However long what the path names may be, no more of it is read than credentials have.
 * @throws {CloneError} where it cannot be read; nothing of its content is shown
 */
export async function readCredentialFile(
  path: string,
  options?: CredentialFileOptions & { optional?: false },
): Promise<string>;
export async function readCredentialFile(path: string, options: CredentialFileOptions): Promise<string | undefined>;
export async function readCredentialFile(
  path: string,
  { optional = false, most = MOST_BYTES, onExposed, groupMayRead = false }: CredentialFileOptions = {},
): Promise<string | undefined> {
  try {
    await using file = await open(path, constants.O_RDONLY);
    if (onExposed !== undefined) {
      const others = groupMayRead ? constants.S_IROTH : constants.S_IROTH + constants.S_IRGRP;
      const isExposed = ((await file.stat()).mode & others) !== 0; // permissions, no offset or size
      if (isExposed) {
        onExposed(`"${path}" holds credentials and can be read by other users: chmod ${groupMayRead ? 640 : 600} it`);
      }
    }
    const pieces: Buffer[] = [];
    for (let length = 0; length <= most; ) {
      const { buffer, bytesRead } = await file.read(Buffer.allocUnsafe(CHUNK_BYTES), 0, CHUNK_BYTES, null);
      if (bytesRead === 0) return Buffer.concat(pieces).toString("utf8");
      pieces.push(buffer.subarray(0, bytesRead));
      length += bytesRead;
    }
  } catch (cause) {
    const errno = errnoOf(cause);
    if (errno === undefined) throw cause;
    if (optional && (errno === "ENOENT" || errno === "ENOTDIR")) return undefined;
    throw new CloneError("failed", `Cannot read "${path}": ${errno === "ENOENT" ? "no such file (ENOENT)" : errno}`, {
      cause,
    });
  }
  throw new CloneError("failed", `Cannot read "${path}": it is longer than ${most} bytes, too long for credentials`);
}

/** Certificates, keys and passwords from files, the only place besides the environment that they are taken from. */
import { readFile } from "node:fs/promises";
import { CloneError, errnoOf } from "../base/errors.ts";

/** No file of credentials is larger, bytes: the authorities of a whole system are about 300 KiB. */
const MOST_BYTES = 16 * 1024 * 1024;

/**
 * The text of a file.
 * @param optional whether it may be missing: then undefined
 * @throws {CloneError} where it cannot be read; nothing of its content is shown
 */
export async function readCredentialFile(path: string): Promise<string>;
export async function readCredentialFile(path: string, options: { optional: true }): Promise<string | undefined>;
export async function readCredentialFile(path: string, { optional = false } = {}): Promise<string | undefined> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    const errno = errnoOf(cause);
    if (optional && (errno === "ENOENT" || errno === "ENOTDIR")) return undefined;
    const why = errno === "ENOENT" ? "no such file (ENOENT)" : (errno ?? String(cause));
    throw new CloneError("failed", `Cannot read "${path}": ${why}`, { cause });
  }
  if (bytes.length > MOST_BYTES)
    throw new CloneError("failed", `Cannot read "${path}": it is too large for credentials`);
  return bytes.toString("utf8");
}

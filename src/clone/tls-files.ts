/** Certificates and keys from files, in the layout that qemu, nbdkit and libnbd share. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { CloneError, errnoOf } from "../base/errors.ts";
import { parsePskFile } from "../nbd/psk-file.ts";

/** A server's certificate and key, and the authority that its clients are checked against; PEM texts. */
export interface ServerCertificates {
  certificate: string;
  key: string;
  authority: string | undefined;
}

/**
 * Reads `server-cert.pem`, `server-key.pem` and, where it is there, `ca-cert.pem`.
 * @throws {CloneError} where one is missing or cannot be read
 */
export async function readServerCertificates(directory: string): Promise<ServerCertificates> {
  const [certificate, key, authority] = await Promise.all([
    readSecret(join(directory, "server-cert.pem")),
    readSecret(join(directory, "server-key.pem")),
    readSecret(join(directory, "ca-cert.pem"), { optional: true }),
  ]);
  return { certificate: certificate as string, key: key as string, authority };
}

/**
 * Reads a file of pre-shared keys, as psktool(1) of GnuTLS makes it: the key by the user's name.
 * @throws {CloneError} where it cannot be read
 * @throws {UsageError} where it is something else
 */
export async function readPresharedKeys(path: string): Promise<Map<string, Uint8Array>> {
  return parsePskFile((await readSecret(path)) as string, path);
}

async function readSecret(path: string, { optional = false } = {}): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    const errno = errnoOf(error);
    if (optional && errno === "ENOENT") return undefined;
    const why = errno === "ENOENT" ? "no such file (ENOENT)" : errno;
    throw new CloneError("failed", `Cannot read "${path}": ${why}`, { cause: error });
  }
}

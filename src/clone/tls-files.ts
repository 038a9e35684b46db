/** Certificates and keys from files, in the layout that qemu, nbdkit and libnbd share. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { CloneError, errnoOf, UsageError } from "../base/errors.ts";

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
 * Reads a file of pre-shared keys, a line `USER:HEXKEY` each, as GnuTLS's psktool(1) makes it.
 * @throws {CloneError} where it cannot be read
 * @throws {UsageError} where a line is something else; the line is not shown
 */
export async function readPresharedKeys(path: string): Promise<Map<string, Buffer>> {
  const text = (await readSecret(path)) as string;
  const keys = new Map<string, Buffer>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line === "" || line.startsWith("#")) continue;
    const match = /^([^:]+):((?:[0-9a-f]{2})+)$/i.exec(line);
    if (match === null) throw new UsageError(`Cannot use "${path}": line ${index + 1} is not USER:HEXKEY`);
    keys.set(match[1] as string, Buffer.from(match[2] as string, "hex"));
  }
  if (keys.size === 0) throw new UsageError(`Cannot use "${path}": it holds no key`);
  return keys;
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

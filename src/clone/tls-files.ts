/** Certificates and keys from files, in the layout that qemu, nbdkit and libnbd share. */
import { join } from "node:path";
import { readCredentialFile } from "../device/credential-file.ts";
import { parsePskFile } from "../nbd/psk-file.ts";

/** Told, in a sentence, of a key that every user of the machine can read. */
export type OnExposed = ((sentence: string) => void) | undefined;

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
export async function readServerCertificates(directory: string, onExposed?: OnExposed): Promise<ServerCertificates> {
  const [certificate, key, authority] = await Promise.all([
    readCredentialFile(join(directory, "server-cert.pem")),
    readCredentialFile(join(directory, "server-key.pem"), { onExposed, groupMayRead: true }),
    readCredentialFile(join(directory, "ca-cert.pem"), { optional: true }),
  ]);
  return { certificate, key, authority };
}

/**
 * Reads a file of pre-shared keys, as psktool(1) of GnuTLS makes it: the key by the user's name.
 * @throws {CloneError} where it cannot be read
 * @throws {UsageError} where it is something else
 */
export async function readPresharedKeys(path: string, onExposed?: OnExposed): Promise<Map<string, Uint8Array>> {
  return parsePskFile(await readCredentialFile(path, { onExposed, groupMayRead: true }), path);
}

/** Whose certificates are believed: the machine's authorities, as for every other program on it, not a list of our own. */
import { readFile } from "node:fs/promises";
import { createSecureContext, rootCertificates, type SecureContext } from "node:tls";
import { CloneError, errnoOf } from "../../base/errors.ts";
import type { Environment } from "./credentials.ts";

/** Where distributions keep them all in one file: Debian, Fedora, openSUSE, Alpine. */
const SYSTEM_BUNDLES = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/ssl/cert.pem",
];

/**
 * What TLS connections are checked against: the file that SSL_CERT_FILE names, else the machine's authorities, else those
 * that Node brings; and besides, what NODE_EXTRA_CA_CERTS names. Made once: parsing takes longer than a handshake.
 * @throws {CloneError} where a file that is named cannot be read, or holds no certificates
 */
export async function trustedAuthorities(environment: Environment): Promise<SecureContext> {
  const { SSL_CERT_FILE: only = "", NODE_EXTRA_CA_CERTS: extra = "" } = environment;
  const bundle = only !== "" ? await certificatesIn(only) : await systemBundle();
  const ca = [...(bundle === undefined ? rootCertificates : [bundle])];
  if (extra !== "") ca.push(await certificatesIn(extra));
  return createSecureContext({ ca, minVersion: "TLSv1.2" });
}

async function systemBundle(): Promise<string | undefined> {
  for (const path of SYSTEM_BUNDLES) {
    const text = await readFile(path, "utf8").catch(() => "");
    if (text.includes("-----BEGIN")) return text;
  }
  return undefined;
}

async function certificatesIn(path: string): Promise<string> {
  try {
    const text = await readFile(path, "utf8");
    if (!text.includes("-----BEGIN")) throw new CloneError("failed", `Cannot use "${path}": it holds no certificates`);
    createSecureContext({ ca: text }); // so that the file that is broken is the one that is named
    return text;
  } catch (error) {
    if (error instanceof CloneError) throw error;
    const why = errnoOf(error) ?? "it holds no certificates that can be read";
    throw new CloneError("failed", `Cannot read "${path}": ${why}`, { cause: error });
  }
}

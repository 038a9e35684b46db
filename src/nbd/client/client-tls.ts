/**
 * Encryption from a client's side: what of the two ways of knowing each other a URI asks for, with files as GnuTLS's programs
 * have them. The files are read anew for each connection, so that a certificate that was renewed is used.
 */

import { isIP, type Socket } from "node:net";
import { homedir, userInfo } from "node:os";
import { join } from "node:path";
import { type ConnectionOptions, checkServerIdentity, connect, createSecureContext, type TLSSocket } from "node:tls";
import { CloneError } from "../../base/errors.ts";
import { readCredentialFile } from "../../device/credential-file.ts";
import { trustedAuthorities } from "../../device/http/trusted-authorities.ts";
import { parsePskFile } from "../psk-file.ts";
import { describeTlsError, PSK_CIPHERS } from "../tls-upgrade.ts";
import { HandshakeError } from "./handshake-error.ts";
import type { NbdPlace, NbdTls } from "./nbd-uri.ts";

/** How a connection is to be encrypted, ready to be used once. */
export type TlsSettings = Omit<ConnectionOptions, "socket" | "host" | "port" | "path">;

/** Where libnbd looks for `ca-cert.pem` when it is not told. */
function usualDirectories(): string[] {
  return [join(homedir(), ".pki", "libnbd"), join(homedir(), ".config", "pki", "libnbd"), "/etc/pki/libnbd"];
}

/**
 * Reads what a connection needs.
 * @throws {CloneError} where a file cannot be read or used, {UsageError} for a file of keys that is none
 */
export async function tlsSettings(tls: NbdTls, place: NbdPlace): Promise<TlsSettings> {
  return tls.type === "psk" ? await keySettings(tls) : await certificateSettings(tls, place);
}

/**
 * Does the client's part of TLS on a connection whose server has agreed to it.
 * @throws {HandshakeError} where the two do not trust each other, or cannot; the socket is destroyed then
 */
export function secure(socket: Socket, settings: TlsSettings): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const fail = (cause: unknown): void => {
      tls.destroy();
      socket.destroy();
      reject(new HandshakeError(`TLS failed: ${describeTlsError(cause)}`, { cause, ...hintFor(cause) }));
    };
    const closed = (): void => fail(new Error("the server hung up"));
    const tls = connect({ ...settings, socket });
    tls.once("error", fail);
    tls.once("close", closed);
    tls.once("secureConnect", () => {
      tls.off("error", fail);
      tls.off("close", closed);
      resolve(tls);
    });
  });
}

/** A name that a certificate is checked against; undefined where any name will do. */
function expectedName(tls: NbdTls, place: NbdPlace): string | undefined {
  return tls.hostname ?? ("host" in place ? place.host.replace(/%.*$/, "") : undefined);
}

async function certificateSettings(tls: NbdTls, place: NbdPlace): Promise<TlsSettings> {
  const name = expectedName(tls, place);
  const common: TlsSettings = {
    minVersion: "TLSv1.2",
    rejectUnauthorized: tls.verifyPeer,
    servername: name === undefined || isIP(name) !== 0 ? "" : name,
    checkServerIdentity: (_, certificate) => (name === undefined ? undefined : checkServerIdentity(name, certificate)),
  };
  const directory = tls.certificates ?? (await firstWithAuthority(usualDirectories()));
  if (directory === undefined) {
    return tls.verifyPeer ? { ...common, secureContext: await trustedAuthorities(process.env) } : common;
  }
  const at = (file: string): string => join(directory, file);
  const authority = tls.verifyPeer
    ? await readCredentialFile(at("ca-cert.pem"))
    : await readCredentialFile(at("ca-cert.pem"), { optional: true });
  const certificate = await readCredentialFile(at("client-cert.pem"), { optional: true });
  const key = certificate === undefined ? undefined : await readCredentialFile(at("client-key.pem"));
  const context = {
    minVersion: "TLSv1.2" as const,
    ...(authority === undefined ? {} : { ca: authority }),
    ...(certificate === undefined ? {} : { cert: certificate, key }),
  };
  try {
    return { ...common, secureContext: createSecureContext(context) };
  } catch (cause) {
    const files = certificate === undefined ? "ca-cert.pem" : "ca-cert.pem, client-cert.pem and client-key.pem";
    throw new CloneError("failed", `Cannot use ${files} of "${directory}": ${describeTlsError(cause)}`, { cause });
  }
}

async function firstWithAuthority(directories: readonly string[]): Promise<string | undefined> {
  for (const directory of directories) {
    if ((await readCredentialFile(join(directory, "ca-cert.pem"), { optional: true })) !== undefined) return directory;
  }
  return undefined;
}

async function keySettings(tls: NbdTls): Promise<TlsSettings> {
  const file = tls.pskFile as string; // parseNbdUri() lets no address without it pass
  const keys = parsePskFile(await readCredentialFile(file), file);
  const user = tls.username ?? (keys.size === 1 ? (keys.keys().next().value as string) : userInfo().username);
  const key = keys.get(user);
  if (key === undefined) {
    throw new CloneError("failed", `Cannot use "${file}": it has no key of the user "${user}"`, {
      hint: "The URI names the user: nbds://USER@HOST/?tls-psk-file=FILE",
    });
  }
  return {
    minVersion: "TLSv1.2",
    rejectUnauthorized: true, // whatever NODE_TLS_REJECT_UNAUTHORIZED says
    ciphers: PSK_CIPHERS,
    pskCallback: () => ({ psk: key, identity: user }),
    // Who shows a certificate instead has not proved that it knows the key.
    checkServerIdentity: (_, certificate) =>
      Object.keys(certificate ?? {}).length === 0 ? undefined : new Error("the server does not know the key"),
  };
}

function hintFor(cause: unknown): { hint?: string } {
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  if (typeof code !== "string") return {};
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID")
    return { hint: "tls-hostname=NAME says which name its certificate has." };
  if (!/CERT|ISSUER|SIGNED|VERIFY/.test(code)) return {};
  return { hint: "tls-certificates=DIR names a directory with the ca-cert.pem that signed its certificate." };
}

/** Encryption: what a server needs for it, and how a connection takes it on after NBD_OPT_STARTTLS. */
import type { Socket } from "node:net";
import { createServer, type TLSSocket, type TlsOptions } from "node:tls";
import { UsageError } from "../base/errors.ts";

/** Who the server is, and who its clients have to be. */
export type TlsCredentials =
  | {
      kind: "certificates";
      /** PEM texts: the server's certificate (and what is between it and the root), and its key. */
      certificate: string;
      key: string;
      /** The authorities that clients' certificates have to be signed by; PEM. */
      authorities?: string;
      /** Whether clients have to show a certificate. */
      verifyPeer: boolean;
    }
  | {
      kind: "psk";
      /** The key of a user, or undefined where there is none of that name. */
      keyOf: (user: string) => Uint8Array | undefined;
    };

/**
 * The suites of TLS 1.3, where a shared key goes with any that hashes as it does, and those of TLS 1.2 that add an
 * exchange of Diffie and Hellman: who learns the key later cannot read what was said before.
 */
export const PSK_CIPHERS = [
  "TLS_AES_128_GCM_SHA256",
  "TLS_CHACHA20_POLY1305_SHA256",
  "TLS_AES_256_GCM_SHA384",
  "ECDHE-PSK-CHACHA20-POLY1305",
  "ECDHE-PSK-AES256-CBC-SHA384",
  "ECDHE-PSK-AES128-CBC-SHA256",
].join(":");

/** @throws {UsageError} where the certificate, key or authorities cannot be used */
export function checkCredentials(credentials: TlsCredentials): void {
  if (credentials.kind === "certificates" && credentials.verifyPeer && credentials.authorities === undefined) {
    throw new UsageError("Cannot verify clients: there is no certificate of an authority");
  }
  try {
    createServer(tlsOptions(credentials));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    // OpenSSL's own words, without the number before them: "x509 certificate routines::key values mismatch".
    const words = reason.replace(/^error:[0-9a-f]+:/i, "");
    throw new UsageError(`Cannot use server-cert.pem, server-key.pem and ca-cert.pem: ${words}`, { cause });
  }
}

/**
 * Resolves when the client has done its part, with the socket that speaks in the clear to us. A server of its own for
 * each connection: that is the documented way to have the client's certificate judged, and to know whose it is.
 *
 * @throws whatever is wrong with the client's TLS; its socket is closed then
 */
export function upgradeToTls(socket: Socket, credentials: TlsCredentials): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const server = createServer(tlsOptions(credentials));
    // A client whose certificate is judged and found wanting is closed without an event of the server.
    const closed = (): void => reject(new Error("the client's certificate is not trusted"));
    socket.once("close", closed);
    socket.allowHalfOpen = false; // its stream over TLS inherits that: a client that goes before is gone
    server.once("tlsClientError", reject);
    server.once("secureConnection", (secure) => {
      socket.off("close", closed);
      secure.allowHalfOpen = true;
      resolve(secure);
    });
    server.emit("connection", socket);
  });
}

/** What was wrong with a client's TLS, in a few words; OpenSSL's own message has several lines. */
export function describeTlsError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if ("reason" in error && typeof error.reason === "string") return error.reason;
  if ("code" in error && error.code === "ECONNRESET") return "the client went away";
  return error.message.split("\n", 1)[0] as string;
}

function tlsOptions(credentials: TlsCredentials): TlsOptions {
  const common: TlsOptions = { minVersion: "TLSv1.2" };
  if (credentials.kind === "psk") {
    const pskCallback = (_socket: TLSSocket, user: string): Uint8Array | null => credentials.keyOf(user) ?? null;
    return { ...common, ciphers: PSK_CIPHERS, pskCallback: pskCallback as NonNullable<TlsOptions["pskCallback"]> };
  }
  const { certificate, key, authorities, verifyPeer } = credentials;
  return {
    ...common,
    cert: certificate,
    key,
    ...(authorities === undefined ? {} : { ca: authorities }),
    requestCert: verifyPeer,
    rejectUnauthorized: verifyPeer,
  };
}

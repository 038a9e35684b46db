/** What went wrong between us and a server, in words. */
import { errnoOf } from "../../base/errors.ts";
import { OverlongError, SilenceError } from "./exchange.ts";

/** A failure to get a reply, or to get it whole. */
export interface TransportError {
  /** `connection refused (ECONNREFUSED)`. */
  why: string;
  errno: string | undefined;
  hint?: string;
  /**
   * - `cut`: the connection broke, and may be better the next time
   * - `unreachable`: there was none; when a source is opened that is more likely a mistake than an outage
   * - `wrong`: what came is no HTTP, or not what its head said
   * - `untrusted`: it is not who it should be
   */
  kind: "cut" | "unreachable" | "wrong" | "untrusted";
}

const UNREACHABLE: Record<string, string> = {
  ECONNREFUSED: "connection refused",
  ENOTFOUND: "no host has this name",
  EAI_AGAIN: "the host's name cannot be resolved now",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "no route to the network",
  EADDRNOTAVAIL: "no local address to connect from",
  EACCES: "connecting is not permitted",
  EPERM: "connecting is not permitted",
};

/** The code of an error that says that a proxy has ended the connection before it was one with the server. */
export const PROXY_HUNG_UP = "ERR_PROXY_HUNG_UP";

const CUT: Record<string, string> = {
  [PROXY_HUNG_UP]: "the proxy closed the connection",
  ECONNRESET: "the connection was reset",
  ECONNABORTED: "the connection was aborted",
  EPIPE: "the server closed the connection",
  ETIMEDOUT: "the server does not answer",
  UND_ERR_SOCKET: "the server closed the connection",
  UND_ERR_CONNECT_TIMEOUT: "the server does not answer",
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: "the reply ended too early",
};

const UNTRUSTED =
  /^(CERT_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|ERR_TLS_CERT|HOSTNAME_MISMATCH|INVALID_CA|PATH_LENGTH|INVALID_PURPOSE|CRL_|ERR_SSL_.*CERT|UND_ERR_PRX_TLS)/;

/** Puts a failed exchange in words. Takes nothing from it but codes: a message may hold what is not to be shown. */
export function transportError(error: Error): TransportError {
  if (error instanceof SilenceError) {
    return { kind: "cut", why: "the server does not answer (ETIMEDOUT)", errno: "ETIMEDOUT" };
  }
  if (error instanceof OverlongError)
    return { kind: "wrong", why: "it sends more than it announces", errno: undefined };
  const code = "code" in error && typeof error.code === "string" ? error.code : "";
  const errno = errnoOf(error);
  if (Object.hasOwn(UNREACHABLE, code)) return { kind: "unreachable", why: `${UNREACHABLE[code]} (${code})`, errno };
  if (Object.hasOwn(CUT, code)) {
    const known =
      { UND_ERR_SOCKET: "ECONNRESET", [PROXY_HUNG_UP]: "ECONNRESET", UND_ERR_CONNECT_TIMEOUT: "ETIMEDOUT" }[code] ??
      errno;
    return { kind: "cut", why: errno === undefined ? (CUT[code] as string) : `${CUT[code]} (${code})`, errno: known };
  }
  if (UNTRUSTED.test(code)) return untrusted(error, code);
  const proxyStatus = /^Proxy response \((\d{3})\)/.exec(error.message)?.[1];
  if (proxyStatus !== undefined) return refusedByProxy(proxyStatus);
  if (error.name === "HTTPParserError") return { kind: "wrong", why: "its reply is no HTTP", errno: undefined };
  if (code === "UND_ERR_HEADERS_OVERFLOW")
    return { kind: "wrong", why: "its reply has too many headers", errno: undefined };
  if (code === "EPROTO" || code.startsWith("ERR_SSL_")) {
    return { kind: "wrong", why: `no TLS connection can be made (${tlsReason(error) ?? code})`, errno };
  }
  return { kind: "cut", why: `the connection failed${code === "" ? "" : ` (${code})`}`, errno };
}

function untrusted(error: Error, code: string): TransportError {
  const cause = error.cause instanceof Error && "code" in error.cause ? error.cause.code : undefined;
  const reason = typeof cause === "string" ? cause : code;
  return {
    kind: "untrusted",
    why: `the server's certificate is not trusted (${reason})`,
    errno: undefined,
    hint: "Where an authority of your own signed it, name the authority's certificate in SSL_CERT_FILE.",
  };
}

function refusedByProxy(status: string): TransportError {
  const passing = ["429", "502", "503", "504"].includes(status);
  return {
    kind: passing ? "cut" : "untrusted",
    why: `the proxy refuses to connect (HTTP ${status})`,
    errno: undefined,
    ...(status === "407" ? { hint: "The proxy's user and password belong into the URL in https_proxy." } : {}),
  };
}

/** OpenSSL's word for it, as `wrong version number`. */
function tlsReason(error: Error): string | undefined {
  return "reason" in error && typeof error.reason === "string" ? error.reason.slice(0, 64) : undefined;
}

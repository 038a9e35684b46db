import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { CloneError, UsageError } from "../base/errors.ts";

/** A place to listen in. */
export type ListenAddress =
  | {
      /** A socket file, which must not exist. */
      path: string;
      /** Who may connect; default 0600, the owner alone. */
      mode?: number;
    }
  | {
      /** A name or address. */
      host: string;
      /** 0 for any that is free. */
      port: number;
      /** The name that clients are told, where that is another: certificates are for names. */
      name?: string;
    }
  | {
      /** A socket that listens already, as from systemd. It is the server's from now on. */
      fd: number;
      /** The socket file that it is bound to, where that is known: for its URI. */
      path?: string;
    };

/** `sun_path` without its NUL, bytes. */
const MAX_SOCKET_PATH = 107;
/** Connections that wait to be accepted. */
const BACKLOG = 128;

/** What a listener tells. */
export interface ListenerEvents {
  onSocket: (socket: Socket) => void;
  onError: (reason: string) => void;
}

/** A socket that clients connect to. */
export class Listener {
  readonly #server: Server;
  readonly #address: ListenAddress;

  private constructor(server: Server, address: ListenAddress) {
    this.#server = server;
    this.#address = address;
  }

  /**
   * @param events `onSocket` gets every socket accepted, nothing read from it yet; `onError` is told where one could not be
   * @throws {CloneError} where the place is taken, or may not be had
   * @throws {UsageError} where it can never be one
   */
  static async open(address: ListenAddress, events: ListenerEvents): Promise<Listener> {
    const where = describe(address);
    if (!("fd" in address) && "path" in address && Buffer.byteLength(address.path) > MAX_SOCKET_PATH) {
      throw new UsageError(`Cannot listen on ${where}: a socket's path has at most ${MAX_SOCKET_PATH} bytes`);
    }
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true, keepAlive: true });
    server.on("connection", events.onSocket);
    const listening = once(server, "listening");
    try {
      if ("fd" in address) server.listen({ fd: address.fd, backlog: BACKLOG });
      else if ("path" in address) bindPath(server, address.path, address.mode ?? 0o600);
      else server.listen({ host: address.host, port: address.port, backlog: BACKLOG });
      await listening;
    } catch (cause) {
      throw new CloneError("failed", `Cannot listen on ${where}: ${reasonOf(cause, address)}`, { cause });
    }
    server.on("error", (error) => events.onError(reasonOf(error, address))); // for want of descriptors, say
    return new Listener(server, address);
  }

  /** What clients are told to open; undefined of a descriptor whose path is not known. */
  uri({ tls, name }: { tls: boolean; name: string }): string | undefined {
    const scheme = tls ? "nbds" : "nbd";
    const path = encodeURIComponent(name);
    const address = this.#address;
    const socket = "path" in address ? address.path : undefined;
    if (socket !== undefined) return `${scheme}+unix:///${path}?socket=${encodeSocketPath(socket)}`;
    const bound = this.#server.address();
    if (bound === null || typeof bound === "string" || bound.port === undefined) return undefined;
    const literal = bound.family === "IPv6" ? `[${bound.address}]` : bound.address;
    const host = ("name" in address ? address.name : undefined) ?? literal;
    return `${scheme}://${host}:${bound.port}/${path}`;
  }

  /** Listens no more; a socket file of its own is gone then. Those who are connected stay so. */
  close(): void {
    this.#server.close();
  }
}

/**
 * Binds a socket file that nobody but those of `mode` can ever open: its mode is made from the process's umask, when it
 * is bound. `listen()` binds before it returns.
 */
function bindPath(server: Server, path: string, mode: number): void {
  const umask = process.umask(0o777 - mode);
  try {
    server.listen({ path, backlog: BACKLOG });
  } finally {
    process.umask(umask);
  }
}

function describe(address: ListenAddress): string {
  if ("fd" in address) return `descriptor ${address.fd}`;
  if ("path" in address) return `"${address.path}"`;
  return address.host.includes(":") ? `"[${address.host}]:${address.port}"` : `"${address.host}:${address.port}"`;
}

function reasonOf(error: unknown, address: ListenAddress): string {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (code === "EADDRINUSE") return "it is in use";
  // libuv calls a directory that does not exist EACCES too, as Windows would
  if (code === "EACCES") return "path" in address ? "no such directory, or permission denied" : "permission denied";
  if (code === "EADDRNOTAVAIL") return "it is no address of this machine";
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") return "there is no such host";
  return typeof code === "string" ? code : String(error);
}

/** As in a query: what would end it or change its meaning is written in hexadecimal, slashes stay. */
function encodeSocketPath(path: string): string {
  return encodeURIComponent(path).replaceAll("%2F", "/");
}

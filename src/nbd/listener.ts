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
    }
  | {
      /** A socket that listens already, as from systemd. */
      fd: number;
    };

/** `sun_path` without its NUL, bytes. */
const MAX_SOCKET_PATH = 107;
/** Connections that wait to be accepted. */
const BACKLOG = 128;

/** A socket that clients connect to. */
export class Listener {
  readonly #server: Server;
  readonly #address: ListenAddress;

  private constructor(server: Server, address: ListenAddress) {
    this.#server = server;
    this.#address = address;
  }

  /**
   * @param onSocket gets every socket accepted, nothing read from it yet
   * @throws {CloneError} where the place is taken, or may not be had
   * @throws {UsageError} where it can never be one
   */
  static async open(address: ListenAddress, onSocket: (socket: Socket) => void): Promise<Listener> {
    const where = describe(address);
    if ("path" in address && Buffer.byteLength(address.path) > MAX_SOCKET_PATH) {
      throw new UsageError(`Cannot listen on ${where}: a socket's path has at most ${MAX_SOCKET_PATH} bytes`);
    }
    const server = createServer(
      { allowHalfOpen: true, pauseOnConnect: true, noDelay: true, keepAlive: true },
      onSocket,
    );
    const listening = once(server, "listening");
    try {
      if ("path" in address) bindPath(server, address.path, address.mode ?? 0o600);
      else if ("fd" in address) server.listen({ fd: address.fd, backlog: BACKLOG });
      else server.listen({ host: address.host, port: address.port, backlog: BACKLOG });
      await listening;
    } catch (cause) {
      throw new CloneError("failed", `Cannot listen on ${where}: ${reasonOf(cause)}`, { cause });
    }
    server.on("error", () => {}); // an accept that failed, for want of descriptors: the next one may not
    return new Listener(server, address);
  }

  /** What clients are told to open. */
  uri({ tls, name }: { tls: boolean; name: string }): string {
    const scheme = tls ? "nbds" : "nbd";
    const path = encodeURIComponent(name);
    const bound = this.#server.address();
    if (typeof bound === "string") return `${scheme}+unix:///${path}?socket=${encodeSocketPath(bound)}`;
    if (bound !== null) {
      const host = bound.family === "IPv6" ? `[${bound.address}]` : bound.address;
      return `${scheme}://${host}:${bound.port}/${path}`;
    }
    return describe(this.#address);
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
  if ("path" in address) return `"${address.path}"`;
  if ("fd" in address) return `descriptor ${address.fd}`;
  return address.host.includes(":") ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

function reasonOf(error: unknown): string {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (code === "EADDRINUSE") return "it is in use";
  if (code === "EACCES") return "permission denied";
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") return "there is no such host";
  return typeof code === "string" ? code : String(error);
}

/** As in a query: what would end it or change its meaning is written in hexadecimal, slashes stay. */
function encodeSocketPath(path: string): string {
  return encodeURIComponent(path).replaceAll("%2F", "/");
}

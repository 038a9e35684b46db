/** Where a server listens: a place that the user names, sockets that systemd hands over, or a socket only we know. */
import { mkdtemp, rm, unlink } from "node:fs/promises";
import { isIP } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { BusyError, CloneError, errnoOf, UsageError } from "../base/errors.ts";
import { isLoopback, type ListenAddress, resolveHost } from "./listen-address.ts";
import { lookAtSocket } from "./socket-path.ts";

/** What the user names: a unix socket, or TCP. */
export type ListenPlace = { socket: string } | ListenAddress;

/** What a server can listen on. */
export type ListenTarget = { path: string } | { host: string; port: number; name?: string } | { fd: number };

/** Places to listen in; disposing of them removes what was made for them. */
export interface ListenPlaces extends AsyncDisposable {
  targets: ListenTarget[];
  /**
   * `all` of them; those that are `available`, of a name with addresses of a protocol that may be switched off here; or the
   * `first` that can be had.
   */
  need: "all" | "available" | "first";
}

/** Listens in as many of the places as are needed. @throws what `listen` throws */
export async function listenIn(
  { targets, need }: ListenPlaces,
  listen: (target: ListenTarget) => Promise<void>,
): Promise<void> {
  let listening = 0;
  let missing: unknown;
  for (const target of targets) {
    try {
      await listen(target);
      listening++;
      if (need === "first") break;
    } catch (error) {
      const errno = error instanceof Error ? errnoOf(error.cause) : undefined;
      if (need === "all" || (errno !== "EADDRNOTAVAIL" && errno !== "EAFNOSUPPORT")) throw error;
      missing ??= error;
    }
  }
  if (listening === 0) throw missing;
}

/** What is asked for. */
export interface PlacesRequest {
  place: ListenPlace | undefined;
  /** Sockets that systemd handed over. */
  inherited: readonly number[];
  /** Where there is neither, make a socket that only we know. */
  privateSocket: boolean;
  /** Whether clients have to encrypt. */
  encrypted: boolean;
  /** Others may come without. */
  insecure: boolean;
}

/**
 * Settles where to listen; a socket that a dead server has left is removed.
 * @throws {UsageError} where others could come in without encryption, or nothing says where
 * @throws {BusyError} where another server answers there
 * @throws {CloneError} where something else stands there, or a host is not known
 */
export async function listenPlaces(request: PlacesRequest): Promise<ListenPlaces> {
  const { place, inherited, privateSocket } = request;
  const nothing = async (): Promise<void> => {};
  if (place !== undefined && "socket" in place) {
    const path = resolve(place.socket);
    await makeFree(path);
    return { targets: [{ path }], need: "all", [Symbol.asyncDispose]: nothing };
  }
  if (place !== undefined) {
    const hosts = await resolveHost(place.host);
    const open = hosts.find((host) => !isLoopback(host));
    if (open !== undefined && !request.encrypted && !request.insecure) {
      throw new UsageError(`Cannot listen on "${place.host}" (${open}): others than this machine can reach it`, {
        hint: "--tls require with certificates or keys protects the disk; --insecure lets anybody read and write it.",
      });
    }
    const isName = place.host !== "" && isIP(place.host) === 0;
    const targets = hosts.map((host) => ({ host, port: place.port, ...(isName ? { name: place.host } : {}) }));
    return { targets, need: place.host === "" ? "first" : "available", [Symbol.asyncDispose]: nothing };
  }
  if (inherited.length > 0) {
    return { targets: inherited.map((fd) => ({ fd })), need: "all", [Symbol.asyncDispose]: nothing };
  }
  if (!privateSocket) {
    throw new UsageError("Cannot serve: nothing says where to listen", {
      hint: "--socket PATH, --listen HOST:PORT, or --run COMMAND.",
    });
  }
  const directory = await mkdtemp(join(tmpdir(), "clone-"));
  return {
    targets: [{ path: join(directory, "socket") }],
    need: "all",
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }),
  };
}

async function makeFree(path: string): Promise<void> {
  const found = await lookAtSocket(path).catch((error: unknown) => {
    throw new CloneError("failed", `Cannot listen on "${path}": ${errnoOf(error)}`, { cause: error });
  });
  if (found === "answered") throw new BusyError(`Cannot listen on "${path}": another server answers there`);
  if (found === "other") throw new CloneError("failed", `Cannot listen on "${path}": something else stands there`);
  if (found === "leftover") await removeOldSocket(path);
}

/** @throws {CloneError} where it is another user's, in a directory like /tmp */
async function removeOldSocket(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "ENOENT") return;
    throw new CloneError(
      "failed",
      `Cannot listen on "${path}": the socket that stands there cannot be removed (${errno})`,
      {
        cause: error,
      },
    );
  }
}

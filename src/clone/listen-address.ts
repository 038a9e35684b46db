/** Where a server listens: what `--listen` says, and whom that lets in. */
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { CloneError, errnoOf, UsageError } from "../base/errors.ts";

/** A TCP address. An empty host is every address of the machine; port 0 is any free one. */
export interface ListenAddress {
  host: string;
  port: number;
}

/** NBD's own port (IANA). */
export const NBD_PORT = 10809;

/**
 * `HOST:PORT`, `[IPV6]:PORT`, `HOST` (then NBD's own port), or `:PORT` for every address of the machine.
 * @throws {UsageError}
 */
export function parseListenAddress(text: string): ListenAddress {
  const refuse = (why: string): never => {
    throw new UsageError(`Cannot use --listen: "${text}" ${why}`);
  };
  const bracketed = /^\[([^\]]*)\](?::(\d+))?$/.exec(text);
  if (bracketed !== null) {
    const [, host = "", port] = bracketed;
    if (isIP(host) !== 6) refuse("has no IPv6 address in its brackets");
    return { host, port: portOf(port, refuse) };
  }
  const plain = /^([^:\s]*)(?::(\d+))?$/.exec(text);
  if (plain === null || text === "") return refuse("is not HOST:PORT, as localhost:10809 or [::1]:10809");
  const [, host = "", port] = plain;
  if (/^\d+$/.test(host)) refuse("has a port and no host: localhost:PORT, or :PORT for every address of the machine");
  return { host, port: portOf(port, refuse) };
}

function portOf(text: string | undefined, refuse: (why: string) => never): number {
  if (text === undefined) return NBD_PORT;
  const port = Number(text);
  return port <= 65535 ? port : refuse("has no port from 0 to 65535");
}

/**
 * The addresses that a host means, each of them a literal one: resolved here once, so that what was judged is what is
 * listened on.
 * @throws {CloneError} where its name has none
 */
export async function resolveHost(host: string): Promise<string[]> {
  if (host === "") return ["::", "0.0.0.0"];
  if (isIP(host) !== 0) return [host];
  try {
    const found = await lookup(host, { all: true });
    return [...new Set(found.map(({ address }) => address))];
  } catch (error) {
    throw new CloneError("failed", `Cannot listen on "${host}": its address is not known (${errnoOf(error)})`, {
      cause: error,
    });
  }
}

/** Whether only this machine can reach an address (RFC 1122, RFC 4291). */
export function isLoopback(address: string): boolean {
  return /^127\.\d+\.\d+\.\d+$/.test(address) || address === "::1" || /^::ffff:127\./i.test(address);
}

/** An address as a URI has it. */
export function hostAndPort(host: string, port: number): string {
  const literal = isIP(host) === 6 ? `[${host}]` : host;
  return port === NBD_PORT ? literal : `${literal}:${port}`;
}

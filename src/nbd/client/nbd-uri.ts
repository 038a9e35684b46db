/**
 * What names an export of a server: the URIs of the NBD project's `doc/uri.md`, with the parameters that libnbd adds
 * (`tls-certificates`, `tls-psk-file`), and on input the form that qemu had before, `nbd:HOST:PORT:exportname=NAME`.
 *
 *     nbds://alice@example.com:10809/disk?tls-psk-file=/etc/keys.psk
 *     nbd+unix:///disk?socket=/run/nbd.sock
 *
 * The text is taken apart by RFC 3986 here rather than by `URL`, which would resolve `..` in an export's name.
 */
import { isIP } from "node:net";
import { resolve } from "node:path";
import { UsageError } from "../../base/errors.ts";
import { MAX_STRING_LENGTH } from "../protocol.ts";

/** NBD's own port (IANA). */
export const NBD_PORT = 10809;

/** Where a server listens. The path of a socket is absolute. */
export type NbdPlace = { readonly host: string; readonly port: number } | { readonly path: string };

/** How a connection is kept private, and how the two sides know each other. */
export interface NbdTls {
  /** By certificates, or by a key that both have. */
  readonly type: "x509" | "psk";
  /** Whose certificate the server has to show; default the host's. A unix socket has no default: any that is signed. */
  readonly hostname?: string;
  /** Whether the server's certificate has to be a good one. */
  readonly verifyPeer: boolean;
  /** Directory of `ca-cert.pem`, `client-cert.pem` and `client-key.pem`, absolute; default where libnbd looks. */
  readonly certificates?: string;
  /** File of keys, `user:key` in hexadecimal, absolute. Always there where the type is `psk`. */
  readonly pskFile?: string;
  /** Whose key of that file is used; default the one who runs this program. */
  readonly username?: string;
}

/** An export of a server. It holds no secret: those are in the files that it names. */
export interface NbdAddress {
  readonly place: NbdPlace;
  /** Up to 4096 bytes of UTF-8; empty for the server's default. */
  readonly exportName: string;
  /** Absent where the connection is in the clear. */
  readonly tls?: NbdTls;
}

/** `scheme:`, `//authority`, path, `?query`, `#fragment` (RFC 3986, appendix B). */
const URI = /^([a-z][a-z0-9+.-]*):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?$/is;
/** `user@`, and a host with perhaps a port. */
const AUTHORITY = /^(?:([^@]*)@)?(\[[^\]]*\]|[^:@[\]]*)(?::(\d*))?$/;
const TLS_PARAMETERS = ["tls-type", "tls-hostname", "tls-verify-peer", "tls-certificates", "tls-psk-file"];
const LEGACY_NAME = ":exportname=";

/** Whether a text is meant to be the URI of an export, good or bad. */
export function isNbdUri(text: string): boolean {
  return /^nbds?(\+[a-z0-9]+)?:/i.test(text);
}

/**
 * The export that a URI names. Relative paths of sockets and files are those of the working directory, and become absolute.
 * @throws {UsageError} where it names none, or something that cannot be done; the message shows no password
 */
export function parseNbdUri(text: string): NbdAddress {
  if (/^nbd:(?!\/\/)/i.test(text)) return parseLegacy(text);
  const refuse = refusing(text);
  const parts = URI.exec(text);
  const scheme = parts?.[1]?.toLowerCase() ?? "";
  if (scheme.endsWith("+vsock")) refuse("Node.js has no vsock sockets", "nbdkit's nbd plugin can pass it on");
  const match = /^nbd(s?)(\+unix)?$/.exec(scheme);
  if (parts === null || match === null) return refuse("it is not nbd://, nbds://, nbd+unix:// or nbds+unix://");
  const [, , authority, path = "", query = "", fragment] = parts;
  if (authority === undefined && match[2] === undefined) return refuse('it needs "//" behind its scheme');
  if (fragment !== undefined) refuse('"#" ends a URI: write %23 for one in a name');
  const { user, host, port } = parseAuthority(authority ?? "", refuse);
  const decode = decoder(refuse);
  const parameters = parseQuery(query, decode, refuse);
  const place =
    match[2] === undefined ? tcpPlace(host, port, parameters, refuse) : unixPlace(authority, parameters, refuse);
  const tls = match[1] === "s" ? tlsOf(user === undefined ? undefined : decode(user), parameters, refuse) : undefined;
  if (tls === undefined) {
    const meant = parameters.keys().next().value ?? (user === undefined ? undefined : `a user's name`);
    if (meant !== undefined) refuse(`${meant} is of TLS, which it does not ask for`, `nbds${match[2] ?? ""}:// does`);
  }
  const exportName = checkName(decode(path.replace(/^\//, "")), refuse);
  return { place, exportName, ...(tls === undefined ? {} : { tls }) };
}

/** The URI of an export, always the same for the same. */
export function formatNbdUri({ place, exportName, tls }: NbdAddress): string {
  const scheme = `${tls === undefined ? "nbd" : "nbds"}${"path" in place ? "+unix" : ""}`;
  const user = tls?.username === undefined ? "" : `${encodeURIComponent(tls.username)}@`;
  const parameters: [string, string | undefined][] = [
    ["socket", "path" in place ? place.path : undefined],
    ["tls-hostname", tls?.hostname],
    ["tls-verify-peer", tls?.verifyPeer === false ? "0" : undefined],
    ["tls-certificates", tls?.certificates],
    ["tls-psk-file", tls?.pskFile],
  ];
  const query = parameters.flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${encode(value)}`]));
  const end = query.length === 0 ? "" : `?${query.join("&")}`;
  return `${scheme}://${user}${"path" in place ? "" : authorityOf(place)}/${encode(exportName)}${end}`;
}

type Refuse = (why: string, hint?: string) => never;

function refusing(text: string): Refuse {
  return (why, hint) => {
    throw new UsageError(`Cannot use "${withoutSecrets(text)}": ${why}`, hint === undefined ? {} : { hint });
  };
}

/**
 * What may be shown of a text that is perhaps no good URI: nothing before the last `@`, for a password that was not
 * encoded may hold anything, and of parameters that are not known only their names.
 */
function withoutSecrets(text: string): string {
  const at = text.lastIndexOf("@");
  const shown = at < 0 ? text : text.replace(/^([a-z0-9+.-]*:(?:\/\/)?)?.*@/is, "$1…@");
  return shown.replace(/([?&])([^=&]*)=[^&]*/g, (all, before, name) =>
    isParameter(name) ? all : `${before}${name}=…`,
  );
}

function isParameter(name: string): boolean {
  return name === "socket" || TLS_PARAMETERS.includes(name);
}

function parseAuthority(text: string, refuse: Refuse): { user: string | undefined; host: string; port: number } {
  const match = AUTHORITY.exec(text);
  if (match === null) return refuse('what is behind "//" is not HOST, HOST:PORT or USER@HOST:PORT');
  const [, user, host = "", port = ""] = match;
  if (user?.includes(":")) refuse("a password in a URI is seen by others", "tls-psk-file names a file with the key");
  if (user === "") refuse('no name stands before its "@"');
  if (port !== "" && (Number(port) < 1 || Number(port) > 65535)) refuse("its port is not from 1 to 65535");
  return { user, host, port: port === "" ? NBD_PORT : Number(port) };
}

/** Each parameter once, by its name, all of them known. */
function parseQuery(query: string, decode: (text: string) => string, refuse: Refuse): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const each of query.split("&").filter((part) => part !== "")) {
    const [, name = "", value] = /^([^=]*)(?:=(.*))?$/s.exec(each) ?? [];
    if (!isParameter(name)) refuse(`it has a parameter that is not known: ${name}`);
    if (parameters.has(name)) refuse(`it has ${name} twice`);
    if (value === undefined || value === "") refuse(`its ${name} is empty`);
    parameters.set(name, decode(value as string));
  }
  return parameters;
}

function tcpPlace(encoded: string, port: number, parameters: Map<string, string>, refuse: Refuse): NbdPlace {
  if (parameters.has("socket")) refuse("socket is for nbd+unix:// and nbds+unix://");
  return { host: parseHost(encoded, refuse), port };
}

/** A host in lower case; without one it is this machine, as for libnbd. */
function parseHost(encoded: string, refuse: Refuse): string {
  if (encoded.startsWith("[")) {
    const address = encoded.slice(1, -1).replace(/%25/, "%");
    if (isIP(address) !== 6) refuse("what is in brackets is no IPv6 address");
    return address.toLowerCase();
  }
  const host = decoder(refuse)(encoded).toLowerCase();
  if (host === "") return "localhost";
  if (/[\s/:@?#[\]%]|\p{Cc}/u.test(host)) refuse("its host is no name or address");
  return host;
}

function unixPlace(authority: string | undefined, parameters: Map<string, string>, refuse: Refuse): NbdPlace {
  if (authority !== undefined && authority.replace(/^[^@]*@/, "") !== "") {
    refuse("a unix socket has no host", "nbd+unix:///EXPORT?socket=PATH has three slashes before the export");
  }
  const path = parameters.get("socket");
  if (path === undefined) return refuse("it needs socket=PATH", "nbd+unix:///EXPORT?socket=PATH");
  parameters.delete("socket");
  // Node's name for one is as long as a name can be, filled up with NULs: nobody else's socket is called that.
  if (path.startsWith("\0")) refuse("Node.js cannot reach abstract sockets", "socat can pass one on to a socket file");
  return { path: resolve(withoutNul(path, refuse)) };
}

function tlsOf(username: string | undefined, parameters: Map<string, string>, refuse: Refuse): NbdTls {
  const file = (name: string): string | undefined => {
    const path = parameters.get(name);
    return path === undefined ? undefined : resolve(withoutNul(path, refuse));
  };
  const [certificates, pskFile, hostname] = [
    file("tls-certificates"),
    file("tls-psk-file"),
    parameters.get("tls-hostname"),
  ];
  const type = parameters.get("tls-type") ?? (pskFile === undefined ? "x509" : "psk");
  if (type === "anon") refuse("tls-type=anon would not know who the server is", "use tls-type=x509 or tls-type=psk");
  if (type !== "x509" && type !== "psk") return refuse("its tls-type is not x509 or psk");
  if (type === "psk" && pskFile === undefined) refuse("tls-type=psk needs tls-psk-file=FILE");
  if (type === "psk" && certificates !== undefined) refuse("tls-certificates is not for tls-type=psk");
  if (type === "x509" && pskFile !== undefined) refuse("tls-psk-file is not for tls-type=x509");
  if (type === "x509" && username !== undefined) refuse("a user's name is for tls-type=psk");
  if (username !== undefined) withoutNul(username, refuse);
  if (hostname !== undefined && /[\s/]|\p{Cc}/u.test(hostname)) refuse("its tls-hostname is no name or address");
  const verify = parameters.get("tls-verify-peer") ?? "1";
  if (verify !== "0" && verify !== "1") refuse("its tls-verify-peer is not 0 or 1");
  return {
    type,
    verifyPeer: verify === "1",
    ...(hostname === undefined ? {} : { hostname }),
    ...(certificates === undefined ? {} : { certificates }),
    ...(pskFile === undefined ? {} : { pskFile }),
    ...(username === undefined ? {} : { username }),
  };
}

/** `nbd:HOST:PORT` or `nbd:unix:PATH`, and perhaps `:exportname=NAME`, of which nothing is encoded (qemu). */
function parseLegacy(text: string): NbdAddress {
  const refuse = refusing(text);
  const rest = text.slice("nbd:".length);
  const nameAt = rest.indexOf(LEGACY_NAME);
  const where = nameAt < 0 ? rest : rest.slice(0, nameAt);
  const exportName = checkName(nameAt < 0 ? "" : rest.slice(nameAt + LEGACY_NAME.length), refuse);
  if (where.startsWith("unix:")) {
    const path = where.slice("unix:".length);
    if (path === "") refuse("it has no path behind nbd:unix:");
    return { place: { path: resolve(withoutNul(path, refuse)) }, exportName };
  }
  const match = /^(\[[^\]]*\]|[^:@[\]]+):(\d+)$/.exec(where);
  if (match === null)
    return refuse("it is not nbd:HOST:PORT or nbd:unix:PATH", "nbd://HOST:PORT/EXPORT is the URI of one");
  const { host, port } = parseAuthority(where, refuse);
  return { place: { host: parseHost(host, refuse), port }, exportName };
}

function decoder(refuse: Refuse): (text: string) => string {
  return (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return refuse("what follows a % in it is not UTF-8 in hexadecimal");
    }
  };
}

function checkName(name: string, refuse: Refuse): string {
  if (name.includes("\0")) refuse("the name of an export holds no NUL");
  if (/\p{Surrogate}/u.test(name)) refuse("the name of its export is not Unicode");
  if (Buffer.byteLength(name) > MAX_STRING_LENGTH)
    refuse(`the name of an export has at most ${MAX_STRING_LENGTH} bytes`);
  return name;
}

function withoutNul(text: string, refuse: Refuse): string {
  return text.includes("\0") ? refuse("a path or name in it holds a NUL") : text;
}

function authorityOf({ host, port }: { host: string; port: number }): string {
  const literal = isIP(host) === 6 ? `[${host.replace("%", "%25")}]` : host;
  return port === NBD_PORT ? literal : `${literal}:${port}`;
}

/** What would end a part of a URI or change its meaning is written in hexadecimal; slashes stay. */
function encode(text: string): string {
  return encodeURIComponent(text).replaceAll("%2F", "/");
}

/** What SOURCE and DEST name: a path, a URI, or a command that serves a disk. Nothing is opened here. */
import { basename, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { UsageError } from "../base/errors.ts";
import { printable } from "../base/printable.ts";
import { safeUrl } from "../device/http/safe-url.ts";
import { formatNbdUri, isNbdUri, type NbdAddress, parseNbdUri } from "../nbd/client/nbd-uri.ts";
import { commandWords, displayCommand } from "./command-text.ts";
import { refuseCredentials } from "./image-location.ts";

/** A file or block device, by absolute path. Symbolic links stay: `/dev/disk/by-id/…` outlives `/dev/sdb`. */
export interface FileLocation {
  kind: "file";
  path: string;
}

/** Where the bytes are. */
export type Location =
  | FileLocation
  | { kind: "nbd"; address: NbdAddress }
  /** The whole URL, of which not everything may be shown. */
  | { kind: "http"; url: string }
  | { kind: "s3"; bucket: string; key: string }
  /** A name that qemu's block layer understands: `rbd:pool/image`, `ssh://…`. */
  | { kind: "qemu"; filename: string }
  /** A program that serves NBD on the socket it is handed; without its words where only metadata names it. */
  | { kind: "command"; program: string; words: string[] | undefined };

/** Schemes that qemu takes without `//`; any other text before a colon is a file's name. */
const BARE_SCHEMES = ["rbd", "ssh", "iscsi", "nbd", "json", "command"];

/** Protocols of qemu's block drivers (qemu-block-drivers(7)) besides those that are read without it. */
const QEMU_SCHEMES = [
  ...["rbd", "ssh", "iscsi", "iser", "nfs", "json"],
  ...["gluster", "gluster+tcp", "gluster+unix", "gluster+rdma"],
];

/**
 * The location that a command line, or metadata, names. `[ COMMAND … ]` comes as `commandText()` writes it.
 * @throws {UsageError} for what cannot be opened, without the credentials that it may hold
 */
export function parseLocation(text: string): Location {
  if (text === "") throw new UsageError(`Cannot open "": a path is needed`);
  const words = commandWords(text);
  if (words !== undefined) return { kind: "command", program: basename(words[0] as string), words };
  const [whole, name, slashes] = /^([a-z][a-z0-9+.-]*):(\/\/)?/i.exec(text) ?? [];
  const scheme = name?.toLowerCase();
  if (whole === undefined || scheme === undefined || (slashes === undefined && !BARE_SCHEMES.includes(scheme))) {
    return { kind: "file", path: resolve(withoutNul(text, text)) };
  }
  if (scheme === "file") return fileLocation(text);
  if (isNbdUri(text)) return { kind: "nbd", address: parseNbdUri(text) };
  if (scheme === "http" || scheme === "https") return httpLocation(text);
  if (scheme === "s3") return s3Location(text);
  if (scheme === "command") return { kind: "command", program: text.slice(whole.length), words: undefined };
  if (QEMU_SCHEMES.includes(scheme)) {
    refuseCredentials(text);
    return { kind: "qemu", filename: text };
  }
  throw new UsageError(`Cannot open "${withoutCredentials(text)}": no kind of URI begins with "${name}:"`, {
    hint: "Paths, file:, nbd:, nbds:, nbd+unix:, nbds+unix:, http:, https:, s3: and what qemu opens (rbd:, ssh:, iscsi:) can be.",
  });
}

/** The path of what can only be a file or block device. @throws {UsageError} where it is a URI of another kind */
export function parsePath(text: string): string {
  const location = parseLocation(text);
  if (location.kind === "file") return location.path;
  throw new UsageError(`Cannot open "${displayName(location)}": only a path can be used here`, {
    hint: "A clone is named by its metadata, or by a destination file beside which that stands.",
  });
}

function fileLocation(text: string): Location {
  const path = pathOfUri(text);
  if (path instanceof Error) throw new UsageError(`Cannot open "${text}": ${path.message}`, { cause: path });
  return { kind: "file", path: resolve(withoutNul(path, text)) };
}

/** Whatever the last character is: the WHATWG's URL drops control characters at its end before they are encoded. */
function fileUri(path: string): string {
  return pathToFileURL(`${path}.`).href.slice(0, -1);
}

/** The path that a `file:` URI names, or why it names none: one that metadata records may be anything. */
function pathOfUri(uri: string): string | Error {
  try {
    return fileURLToPath(uri);
  } catch (error) {
    return error as Error;
  }
}

/** No file has such a name: to Node.js it is a mistake of the program. */
function withoutNul(path: string, text: string): string {
  if (!path.includes("\0")) return path;
  throw new UsageError(`Cannot open "${text.replaceAll("\0", "�")}": the name of a file holds no NUL`);
}

function httpLocation(text: string): Location {
  const shown = withoutCredentials(text);
  if (!URL.canParse(text)) throw new UsageError(`Cannot open "${shown}": it is no URL`);
  if (text.includes("…")) {
    throw new UsageError(`Cannot open "${shown}": the rest of it is a credential, which is kept nowhere`, {
      hint: "Name the whole URL again with --source.",
    });
  }
  // The WHATWG's URL drops slashes without a host between them, and takes the path for one.
  if (!/^https?:\/\/[^/\\?#\s]/i.test(text)) throw new UsageError(`Cannot open "${shown}": it names no host`);
  const { username, password } = new URL(text);
  if (username === "" && password === "") return { kind: "http", url: text };
  throw new UsageError(`Cannot open "${shown}": a URL with a password would be seen by others`, {
    hint: "A netrc file holds it by host, or --header-file names a file with the headers to send.",
  });
}

/** The key is taken as it stands, without decoding: keys may hold any character. */
function s3Location(text: string): Location {
  const [, bucket = "", key = ""] = /^s3:\/\/([^/]*)\/?(.*)$/is.exec(text) ?? [];
  if (/^[a-z0-9][a-z0-9._-]{1,254}$/i.test(bucket) && key !== "") return { kind: "s3", bucket, key };
  throw new UsageError(`Cannot open "${withoutCredentials(text)}": s3://BUCKET/KEY is needed`);
}

/** The URI of a location, as the descriptor and `status --json` hold it; never holds a credential. */
export function uriOf(location: Location): string {
  switch (location.kind) {
    case "file":
      return fileUri(location.path);
    case "nbd":
      return formatNbdUri(location.address);
    case "http":
      return safeUrl(location.url).text;
    case "s3":
      return `s3://${location.bucket}/${location.key}`;
    case "qemu":
      return location.filename;
    case "command":
      return `command:${location.program}`;
  }
}

/**
 * Whether its URI is all that is needed to open it again: not that of a command or of drivers of qemu's, which metadata
 * must not choose, nor one that holds a credential, which metadata must not keep.
 */
export function isReopenable(location: Location): boolean {
  if (location.kind === "http") return safeUrl(location.url).isComplete;
  if (location.kind === "qemu") return !/^json:/i.test(location.filename);
  return location.kind !== "command";
}

/** A location for people: a file's as its plain path. */
export function displayName(location: Location): string {
  if (location.kind === "command" && location.words !== undefined) return displayCommand(location.words);
  return location.kind === "file" ? location.path : displayUri(uriOf(location));
}

/**
 * A URI for people: a file's as its path. One that metadata records may be anything; it then is shown as it is. Holds nothing
 * that a terminal obeys.
 */
export function displayUri(uri: string): string {
  const path = recordedPath(uri);
  if (path !== undefined) return printable(path);
  return printable(uri.startsWith("command:") ? `[ ${uri.slice("command:".length)} … ]` : uri);
}

/** The path that the URI of a file names; undefined of any other, and of one that names none. */
export function recordedPath(uri: string): string | undefined {
  if (!uri.startsWith("file://")) return undefined;
  const path = pathOfUri(uri);
  return path instanceof Error ? undefined : path;
}

/** A URI's text without what stands before `@`: passwords are never printed. */
function withoutCredentials(text: string): string {
  return text.replace(/^([^/]*\/\/)[^/@]*@/, "$1").replace(/\?.*$/s, "?…");
}

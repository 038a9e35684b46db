/** What SOURCE and DEST name: a path, or a URI. */
import { resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { UsageError } from "../base/errors.ts";

/** A file or block device, by absolute path. Symbolic links stay: `/dev/disk/by-id/…` outlives `/dev/sdb`. */
export interface Location {
  path: string;
}

/** Schemes that qemu takes without `//`; any other text before a colon is a file's name. */
const BARE_SCHEMES = ["rbd", "ssh", "iscsi", "nbd", "json"];

/**
 * The location that a command line names.
 * @throws {UsageError} for a URI of a kind that cannot be opened
 */
export function parseLocation(text: string): Location {
  if (text === "") throw new UsageError(`Cannot open "": a path is needed`);
  const scheme = /^([a-z][a-z0-9+.-]*):(\/\/)?/i.exec(text);
  if (scheme === null || (scheme[2] === undefined && !BARE_SCHEMES.includes((scheme[1] as string).toLowerCase()))) {
    return { path: resolve(text) };
  }
  if ((scheme[1] as string).toLowerCase() !== "file") {
    throw new UsageError(`Cannot open "${withoutCredentials(text)}": only paths and file:/// URIs can be opened`);
  }
  try {
    return { path: fileURLToPath(text) };
  } catch (error) {
    throw new UsageError(`Cannot open "${text}": ${(error as Error).message}`, { cause: error });
  }
}

/** The URI of a location, as the descriptor and `status --json` hold it. */
export function uriOf({ path }: Location): string {
  return pathToFileURL(path).href;
}

/** A URI for people: a file's as its plain path. */
export function displayUri(uri: string): string {
  return uri.startsWith("file://") ? fileURLToPath(uri) : uri;
}

/** A URI's text without what stands before `@`: passwords are never printed. */
function withoutCredentials(text: string): string {
  return text.replace(/^([^/]*\/\/)[^/@]*@/, "$1");
}

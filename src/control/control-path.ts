/**
 * Where the control socket of a running clone is. The first of these that can be:
 *
 *     METADATA.sock                                beside the metadata, where that is a file
 *     $XDG_RUNTIME_DIR/clone/DEV-INODE.sock        DEV as major:minor; of a block device MAJOR:MINOR.sock, its own number
 *     /run/user/UID/clone/DEV-INODE.sock
 *     /run/clone/DEV-INODE.sock                    which only root can make
 *
 * The first cannot be where the path is too long for a socket, the directory cannot be written, the file system has no
 * sockets, or something else stands there. Whoever looks for a clone looks at all of them, since the server may run in other
 * surroundings, and asks whoever answers which clone it has: a socket may be a leftover, or that of a namesake.
 */
import { join } from "node:path";
import type { FileIdentity } from "../device/file-identity.ts";

/** The longest path of a socket, bytes: `sun_path` of unix(7) has 108, the last of which is 0. */
export const LONGEST_SOCKET_PATH = 107;

/** Metadata as its sockets are named after it. */
export interface ControlledMetadata {
  /** Its path, all symbolic links resolved: one file has one place for its socket. */
  path: string;
  identity: Pick<FileIdentity, "kind" | "dev" | "ino" | "rdev">;
}

/** Where sockets can be besides the metadata. */
export interface RuntimeDirectories {
  /** `$XDG_RUNTIME_DIR`; relative ones do not count (XDG Base Directory Specification). */
  runtimeDirectory: string | undefined;
  /** The users whose directories below /run/user count. */
  userIds: readonly number[];
}

/** What names the metadata among all that this machine has open, under whatever path. */
export function metadataId({ kind, dev, ino, rdev }: ControlledMetadata["identity"]): string {
  return kind === "block" ? `${rdev}` : `${dev}-${ino}`;
}

/** The place beside a metadata file. */
export function besideMetadata(path: string): string {
  return `${path}.sock`;
}

/** The places of a clone's socket, in the order in which they are tried; only such as a socket can be bound to. */
export function controlPaths(metadata: ControlledMetadata, where: RuntimeDirectories): string[] {
  const { runtimeDirectory, userIds } = where;
  const name = `${metadataId(metadata.identity)}.sock`;
  const paths = [
    ...(metadata.identity.kind === "file" ? [besideMetadata(metadata.path)] : []),
    ...(runtimeDirectory?.startsWith("/") ? [join(runtimeDirectory, "clone", name)] : []),
    ...userIds.map((uid) => `/run/user/${uid}/clone/${name}`),
    `/run/clone/${name}`,
  ];
  return [...new Set(paths)].filter(fitsSocket);
}

/**
 * Where a socket is bound before it takes its place at `path`: beside it, no longer than it, and always the same, so that what a
 * killed process leaves there is found by the next.
 */
export function bindingPath(path: string): string {
  return `${path.slice(0, -1)}~`;
}

/** Whether a socket can have this path. */
export function fitsSocket(path: string): boolean {
  return Buffer.byteLength(path) <= LONGEST_SOCKET_PATH;
}

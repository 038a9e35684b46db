/**
 * Opens the control socket of a clone that this process has locked. The lock is what makes it safe to take the place of a
 * leftover: nobody else can have the clone open, so a socket that nobody answers is one that a killed process has left.
 *
 *     1. bind under another name in the same directory, for this user alone; what a killed process has left there goes first
 *     2. rename onto the socket's name: a leftover goes and ours appears in one step
 *     3. at the end remove the name, if it still is of our socket
 *
 * The detour by a second name is because libuv, when it closes a socket, removes the name that it bound, whatever stands there
 * by then.
 */
import assert from "node:assert";
import { lstatSync, renameSync } from "node:fs";
import { lstat, mkdir, realpath, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { CloneError, errnoOf } from "../base/errors.ts";
import { bindingPath, controlPaths } from "../control/control-path.ts";
import type { ControlServer } from "../control/control-server.ts";
import type { ControlTarget } from "../control/control-target.ts";
import { isSameFile } from "../device/file-identity.ts";
import type { Clone } from "./clone.ts";
import { lookAtSocket, removeLeftover } from "./socket-path.ts";

/** Permissions that let others put something in our place. */
const WRITABLE_BY_OTHERS = 0o022;

/** An open control socket. */
export interface LiveSocket extends AsyncDisposable {
  readonly path: string;
  /** Removes it, and lets answers under way arrive. To be done before the clone's lock is let go. Any number of times. */
  close(): Promise<void>;
}

/**
 * Opens the control socket of `clone`, which must be open for writing, in the first place where that works.
 * @param onDetail told of each place where it does not, and why
 * @returns undefined where it works nowhere: then nobody can ask, and all else goes on
 */
export async function openLiveSocket(
  clone: Pick<Clone, "path" | "metadata" | "metadataDevice">,
  target: ControlTarget,
  onDetail: (line: string) => void = () => {},
): Promise<LiveSocket | undefined> {
  assert(!clone.metadata.readOnly, "only who has locked the metadata may take the place of a socket");
  const { ControlServer } = await import("../control/control-server.ts"); // not needed by whoever opens none
  const metadata = { path: await realpath(clone.path), identity: clone.metadataDevice.identity };
  const uid = process.geteuid?.() ?? 0;
  for (const path of controlPaths(metadata, { runtimeDirectory: process.env.XDG_RUNTIME_DIR, userIds: [uid] })) {
    const server = new ControlServer(target);
    try {
      if (dirname(path) !== dirname(metadata.path)) await makePrivateDirectory(dirname(path), uid);
      await refuseTaken(path);
      return await bind(server, path);
    } catch (error) {
      await server.close();
      if (!(error instanceof CloneError) && errnoOf(error) === undefined) throw error;
      onDetail(`no control socket at ${path}: ${(error as Error).message}`);
    }
  }
  onDetail("no control socket: `clone status` shows what was last committed, and `clone tune` changes nothing");
  return undefined;
}

async function bind(server: ControlServer, path: string): Promise<LiveSocket> {
  const own = bindingPath(path);
  await removeLeftover(own);
  await server.listen(own, () => renameSync(own, path));
  const bound = lstatSync(path, { bigint: true });
  const close = async (): Promise<void> => {
    try {
      const standing = await lstat(path, { bigint: true }).catch(leftBehind);
      if (standing !== undefined && isSameFile(standing, bound)) await unlink(path).catch(leftBehind);
    } finally {
      await server.close(); // or the process never ends
    }
  };
  return { path, close, [Symbol.asyncDispose]: close };
}

/** Makes a directory that nobody else can write to. @throws {CloneError} where what stands there is not one */
async function makePrivateDirectory(path: string, uid: number): Promise<void> {
  await mkdir(path, { mode: 0o700 }).catch((error: unknown) => {
    if (errnoOf(error) !== "EEXIST") throw error;
  });
  const stats = await lstat(path);
  if (!stats.isDirectory() || stats.uid !== uid || (stats.mode & WRITABLE_BY_OTHERS) !== 0) {
    throw new CloneError("failed", `"${path}" is not a directory that only we can write to`);
  }
}

/** @throws {CloneError} where something stands at the path that is no leftover */
async function refuseTaken(path: string): Promise<void> {
  const found = await lookAtSocket(path);
  if (found === "other") throw new CloneError("failed", "something else stands there");
  if (found === "answered") throw new CloneError("failed", "another process answers there");
}

/** A socket that cannot be removed, or not even looked at, is one that the next process replaces. */
function leftBehind(error: unknown): undefined {
  if (errnoOf(error) === undefined) throw error;
}

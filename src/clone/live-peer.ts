/**
 * Finds the process that has a clone open by its control socket, so that it can be asked. A socket is believed only if it is
 * this user's, root's, or, for root, that of the metadata's owner; and only if whoever answers has this very metadata open.
 */
import { lstat, realpath, stat } from "node:fs/promises";
import { CloneError, errnoOf } from "../base/errors.ts";
import { type ControlClient, ControlError } from "../control/control-client.ts";
import { besideMetadata, controlPaths, fitsSocket, metadataId } from "../control/control-path.ts";
import { deviceNumber } from "../device/file-identity.ts";
import { describeHolder, lockHolder } from "../device/lock.ts";
import { Clone } from "./clone.ts";
import type { CloneStatus } from "./clone-status.ts";
import { parsePath } from "./location.ts";
import { defaultMetadataPath, findMetadata } from "./metadata-file.ts";

/** A process that has the clone open and answers for it. */
export interface LivePeer {
  client: ControlClient;
  /** What it said first. */
  status: CloneStatus;
}

/** What a search has found. */
export interface PeerSearch {
  peer: LivePeer | undefined;
  /** A socket that may be the clone's and could not be asked; the first one. */
  unanswered: ControlError | undefined;
}

/** Where to ask, and how to tell that it is the clone that is meant. */
interface Place {
  path: string;
  isMeant: (status: CloneStatus) => boolean;
}

/**
 * Asks at every place where the clone's control socket can be.
 * @param name what the user called it: its metadata, or its destination
 * @throws {UsageError} where the name could mean two clones
 */
export async function findLivePeer(name: string, signal?: AbortSignal): Promise<PeerSearch> {
  let unanswered: ControlError | undefined;
  for (const { path, isMeant } of await placesOf(name)) {
    const { ControlClient } = await import("../control/control-client.ts"); // most clones have no socket at all
    const client = new ControlClient(path);
    try {
      const status = await client.status(signal);
      if (isStatus(status) && isMeant(status)) return { peer: { client, status }, unanswered: undefined };
    } catch (error) {
      if (!(error instanceof ControlError)) throw error;
      if (error.reason !== "gone") unanswered ??= error; // a leftover tells nothing
    }
  }
  return { peer: undefined, unanswered };
}

/**
 * The process that has a clone open, which there must be.
 * @throws {CloneError} where there is none, or it does not answer; what `Clone.open` throws where there is no clone
 */
export async function requireLivePeer(name: string, signal?: AbortSignal): Promise<LivePeer> {
  const { peer, unanswered } = await findLivePeer(name, signal);
  if (peer !== undefined) return peer;
  await using clone = await Clone.open({ name, access: "any", signal });
  if (unanswered !== undefined) throw unanswered;
  const holder = await lockHolder(clone.metadataDevice);
  if (holder !== undefined) {
    throw new CloneError(
      "failed",
      `Cannot tune "${name}": ${describeHolder(holder)} has it open, and no control socket`,
    );
  }
  throw new CloneError("failed", `Cannot tune "${name}": nothing hydrates or serves it at the moment`, {
    hint: `\`clone hydrate ${name}\` hydrates it; \`clone serve\` serves it to clients meanwhile.`,
  });
}

/** The process that serves a clone to clients, if there is one. */
export async function findServer(name: string, signal?: AbortSignal): Promise<LivePeer | undefined> {
  const { peer } = await findLivePeer(name, signal);
  return peer === undefined || peer.status.server === null ? undefined : peer;
}

/** The places where a socket stands that may be believed. */
async function placesOf(name: string): Promise<Place[]> {
  const named = parsePath(name);
  const { path } = await findMetadata(named);
  const stats = await stat(path, { bigint: true }).catch(absent);
  if (stats === undefined) return [];
  const identity = {
    kind: stats.isBlockDevice() ? ("block" as const) : ("file" as const),
    dev: deviceNumber(stats.dev),
    ino: String(stats.ino),
    rdev: deviceNumber(stats.rdev),
  };
  const uid = process.geteuid?.() ?? 0;
  const owner = Number(stats.uid);
  const users = uid === 0 ? [0, owner] : [uid];
  const real = await realpath(path).catch(absent);
  if (real === undefined) return [];
  const metadata = { path: real, identity };
  const id = metadataId(identity);
  const places = controlPaths(metadata, { runtimeDirectory: process.env.XDG_RUNTIME_DIR, userIds: users }).map(
    (socket): Place => ({ path: socket, isMeant: (status) => status.metadata.id === id }),
  );
  // A server that has finalized its clone goes on serving, and its metadata is gone: what stands there is the destination.
  const beside = await defaultMetadataPath(named);
  const finalized: Place = {
    path: besideMetadata(beside),
    isMeant: (status) => status.state === "finalized" && status.metadata.path === beside,
  };
  const standing = [];
  for (const place of beside === path ? places : [...places, finalized]) {
    if (fitsSocket(place.path) && (await isBelieved(place.path, [...users, 0]))) standing.push(place);
  }
  return standing;
}

/** Whether a socket of one of these users stands at a path. */
async function isBelieved(path: string, users: readonly number[]): Promise<boolean> {
  const stats = await lstat(path).catch(absent);
  return stats?.isSocket() === true && users.includes(stats.uid);
}

/** Whether an answer is a status, as far as anybody here relies on it; a newer program may say more. */
function isStatus(value: object): value is CloneStatus {
  const { state, regions, metadata, hydration } = value as Partial<Record<keyof CloneStatus, unknown>>;
  return typeof state === "string" && typeof regions === "number" && isObject(metadata) && isObject(hydration);
}

function isObject(value: unknown): boolean {
  return typeof value === "object" && value !== null;
}

/** What is not there, or cannot be seen, is no place; whoever opens the metadata instead says what is wrong. */
function absent(error: unknown): undefined {
  if (errnoOf(error) === undefined) throw error;
}

/** Whether a socket's path is free: sockets stay behind when a process is killed, and bind(2) refuses a path that is taken. */
import { lstat, unlink } from "node:fs/promises";
import { connect } from "node:net";
import { systemClock } from "../base/clock.ts";
import { startDeadline } from "../base/deadline.ts";
import { errnoOf } from "../base/errors.ts";

/** How long a socket that stands there may take to accept, ms. */
const PROBE_TIMEOUT_MS = 1000;

/**
 * What stands at a path: nothing, a socket that nobody answers any more, a socket that is answered, or something else.
 * Rejects where that cannot be known.
 */
export async function lookAtSocket(path: string): Promise<"free" | "leftover" | "answered" | "other"> {
  const stats = await lstat(path).catch((error: unknown) => {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  });
  if (stats === undefined) return "free";
  if (!stats.isSocket()) return "other";
  return (await isAnswered(path)) ? "answered" : "leftover";
}

/** Removes a socket that nobody answers; leaves everything else. Rejects where it cannot be removed. */
export async function removeLeftover(path: string): Promise<void> {
  if ((await lookAtSocket(path)) !== "leftover") return;
  await unlink(path).catch((error: unknown) => {
    if (errnoOf(error) !== "ENOENT") throw error;
  });
}

/** Whether anybody listens at a socket. */
function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const end = (answered: boolean): void => {
      ended();
      socket.destroy();
      resolve(answered);
    };
    const ended = startDeadline(systemClock, PROBE_TIMEOUT_MS, () => end(true));
    socket.on("connect", () => end(true));
    socket.on("error", (error) => end(!["ECONNREFUSED", "ENOENT"].includes(errnoOf(error) ?? "")));
  });
}

/**
 * `clone hydrate` on a clone that is being served: its server hydrates, and is told how; here it is only watched, to its end.
 *
 *     complete     everything is hydrated                              exit 0
 *     partial      all but what cannot be read                         exit 5
 *     stopped      Ctrl-C: the watching ends, the server goes on       exit 130
 *     throws       the clone has failed, or makes no headway, or its server is gone before it was complete
 */
import { systemClock } from "../base/clock.ts";
import { CloneError, UsageError } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import { type CloneStatus, readStatus } from "../clone/clone-status.ts";
import type { LivePeer } from "../clone/live-peer.ts";
import { ControlError } from "../control/control-client.ts";
import type { Tuning } from "../control/control-target.ts";
import type { CliContext } from "./command.ts";
import { withProgress } from "./progress.ts";
import type { ProgressStyle } from "./progress-style.ts";

/** Options of `hydrate` that a server cannot be told, and why not. */
const NOT_LIVE: Record<string, string> = {
  source: "its server has it open already",
  destination: "its server has it open already",
  "accept-changed-source": "its server has it open already",
  limit: "its server hydrates all of it",
  retry: "that is said when the server is started",
  "max-errors": "that is said when the server is started",
  "on-error": "that is said when the server is started",
  verify: "that is said when the server is started",
  "no-extents": "that is said when the server is started",
  order: "its server has an order of its own",
};
/** How often progress is asked for, ms; a change of state is told at once. */
const POLL_MS = 500;
/** How long nothing is hydrated before a stall, or rest, is taken for the end: the server may be about to go on. */
const PATIENCE_MS = 3000;
/** Ranges of unreadable regions asked for. */
const MOST_RANGES = 4096;

/** How it ended, as far as it did. */
export interface FollowedHydration {
  end: "complete" | "partial" | "stopped";
  /** The last that was heard. */
  status: CloneStatus;
  /** Bytes hydrated meanwhile, by the way that was done. */
  counts: { copied: number; reflinked: number; zeroed: number; skipped: number };
  unreadable: RegionRange[];
  seconds: number;
}

/** @throws {UsageError} for an option that only a hydration of one's own can have */
export function refuseOptionsOfItsOwn(name: string, { status }: LivePeer, isGiven: (option: string) => boolean): void {
  for (const [option, reason] of Object.entries(NOT_LIVE)) {
    if (!isGiven(option)) continue;
    throw new UsageError(`Cannot use --${option}: "${name}" is served by process ${status.lockedBy}, and ${reason}`, {
      hint: "Of a clone that is served --rate, --threshold and --batch-size can be changed.",
    });
  }
}

/**
 * Makes a server hydrate, with these changes, and shows progress until it is done.
 * @throws {CloneError} where it will not be done
 */
export async function followHydration(
  { client, status: first }: LivePeer,
  name: string,
  changes: Tuning,
  { progress, json, context }: { progress: ProgressStyle; json: boolean | undefined; context: CliContext },
): Promise<FollowedHydration> {
  const { signal, quiet, terminal } = context;
  const startedAt = systemClock.now();
  // A threshold of 0 is a pause too.
  const wake = first.hydration.threshold === 0 && changes.threshold === undefined ? { threshold: null } : {};
  let status = (await client.tune({ ...wake, ...changes, paused: false }, signal)) as CloneStatus;
  terminal.note(`Process ${status.lockedBy} serves the clone and hydrates it; stopping here only stops following.`);
  const end = await withProgress(
    { style: progress, label: "Hydrating", quiet, jsonResult: json ?? false },
    async (show) => {
      show(() => ({
        done: status.hydratedBytes,
        total: status.size,
        moved: status.hydration.copiedBytes + status.hydration.reflinkedBytes,
        regionsInFlight: status.hydratingRegions,
        unreadableRegions: status.unreadableRegions,
      }));
      const headway = new Headway(status);
      for (;;) {
        if (isComplete(status)) return "complete";
        if (signal.aborted) return "stopped";
        try {
          status = (await client.nextStatus(POLL_MS, signal)) as CloneStatus;
        } catch (error) {
          if (signal.aborted) return "stopped";
          status = await afterServer(error, status, name);
        }
        // Not of the first status: the server has been told to go on, and has not begun to.
        if (headway.isOver(status, name)) return "partial";
      }
    },
  );
  const unreadable = end === "partial" ? (await client.regions(MOST_RANGES)).unreadable : [];
  return {
    end,
    status,
    counts: {
      copied: status.hydration.copiedBytes - first.hydration.copiedBytes,
      reflinked: status.hydration.reflinkedBytes - first.hydration.reflinkedBytes,
      zeroed: status.hydration.zeroedBytes - first.hydration.zeroedBytes,
      skipped: status.hydration.skippedBytes - first.hydration.skippedBytes,
    },
    unreadable: unreadable.map(([start, end]) => ({ start, end })),
    seconds: (systemClock.now() - startedAt) / 1000,
  };
}

function isComplete({ state }: CloneStatus): boolean {
  return state === "hydrated" || state === "finalized";
}

/** Whether a hydration gets on, or has come to an end before all was hydrated. */
class Headway {
  #hydratedRegions: number;
  #since = systemClock.now();

  constructor({ hydratedRegions }: CloneStatus) {
    this.#hydratedRegions = hydratedRegions;
  }

  /** Whether only unreadable regions are left. @throws {CloneError} where it has failed, or stands */
  isOver(status: CloneStatus, name: string): boolean {
    const { state, regions, hydratedRegions, unreadableRegions, hydration } = status;
    if (isComplete(status)) return false;
    if (state === "failed") {
      throw new CloneError("failed", `Cannot hydrate "${name}": ${status.failure ?? "its server has failed"}`);
    }
    const rests = state !== "paused" && (hydration.stalled !== null || !hydration.enabled);
    if (hydratedRegions > this.#hydratedRegions || !rests) {
      this.#hydratedRegions = hydratedRegions;
      this.#since = systemClock.now();
      return false;
    }
    if (hydration.stalled === null && hydratedRegions + unreadableRegions >= regions) return true;
    if (systemClock.now() - this.#since < PATIENCE_MS) return false;
    throw new CloneError("failed", `Cannot hydrate "${name}": ${hydration.stalled ?? "its server does not"}`, {
      hint: "Its server goes on serving, and tries again; `clone status` shows whether it gets on.",
    });
  }
}

/** What has become of a clone whose server does not answer any more. @throws {CloneError} where it is not complete */
async function afterServer(error: unknown, last: CloneStatus, name: string): Promise<CloneStatus> {
  if (!(error instanceof ControlError) || error.reason !== "gone") throw error;
  const { status } = await readStatus(last.metadata.path).catch(() => ({ status: last }));
  if (isComplete(status)) return { ...status, hydration: { ...status.hydration, ...last.hydration } };
  throw new CloneError(
    "failed",
    `Cannot follow the hydration of "${name}" any more: its server, process ${last.lockedBy}, is gone`,
    {
      hint: `\`clone hydrate ${name}\` goes on where it stopped.`,
      cause: error,
    },
  );
}

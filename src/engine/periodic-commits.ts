/**
 * Commits once a second while something has changed, whoever changed it, so that little is lost to a power cut that nobody
 * flushed for (dm-clone's COMMIT_PERIOD). A failed commit is final: it is told once, and there is no next one. One that did
 * not come about because the destination cannot be reached is none of these: the next one may.
 *
 * Where the destination loses what is written to it, again and again, it is the commits that anything is kept by: they come
 * sooner then, and gradually later again.
 */
import type { Clock } from "../base/clock.ts";
import { CloneError } from "../base/errors.ts";
import type { CommitPipeline } from "./commit-pipeline.ts";

/** What it commits, and whom it tells. */
export interface PeriodicCommitsParts {
  commits: Pick<CommitPipeline, "commit" | "failure" | "losses">;
  clock: Clock;
  /** A commit has failed: the clone is `failed`. Called once at most, with what `commit()` threw. */
  onFailure: (error: unknown) => void;
}

/** From the end of one commit to the next, ms. */
const INTERVAL_MS = 1000;
const SHORTEST_INTERVAL_MS = 125;

/** Commits by the clock, from `start()` to `stop()`. */
export class PeriodicCommits {
  readonly #parts: PeriodicCommitsParts;
  readonly #stop = new AbortController();
  #running: Promise<void> | undefined;

  constructor(parts: PeriodicCommitsParts) {
    this.#parts = parts;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  /** Resolves once no commit of its making is under way, nor will be. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { commits, clock, onFailure } = this.#parts;
    for (let intervalMs = INTERVAL_MS; ; ) {
      const { losses } = commits;
      await clock.sleep(intervalMs, this.#stop.signal);
      if (this.#stop.signal.aborted) return;
      try {
        await commits.commit();
      } catch (error) {
        if (error instanceof CloneError && commits.failure === undefined) continue;
        onFailure(error);
        return;
      } finally {
        const isLossy = commits.losses !== losses;
        intervalMs = isLossy
          ? Math.max(SHORTEST_INTERVAL_MS, intervalMs / 2)
          : Math.min(INTERVAL_MS, intervalMs * 1.25);
      }
    }
  }
}

/** A hydration that can be asked and steered while it runs: `hydrateClone` with a control socket beside it. */

import { CloneError, UsageError } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import { RateMeter, type RateSample } from "../base/rate-meter.ts";
import type { ControlTarget, Tuning } from "../control/control-target.ts";
import { unhydratedParts } from "../engine/unreadable-regions.ts";
import { normalizeRanges } from "../metadata/unreadable-ranges.ts";
import type { Clone } from "./clone.ts";
import { hydratedBytes, type RunningState, statusOf } from "./clone-status.ts";
import { type HydrateReport, type HydrateRequest, hydrateClone, type RunningHydration } from "./hydrate-clone.ts";
import { firstRegions } from "./live-regions.ts";
import { type LiveSocket, openLiveSocket } from "./live-socket.ts";
import { packageVersion } from "./package-version.ts";
import { keepTuned } from "./tuned.ts";

/** How often its pace is looked at, ms. */
const SAMPLE_INTERVAL_MS = 1000;

/**
 * Hydrates, and answers at the clone's control socket as long as it does. Where no socket can be opened, only `onDetail` is
 * told.
 * @throws what `hydrateClone` throws
 */
export async function hydrateLive(
  clone: Clone,
  request: HydrateRequest,
  options: {
    signal: AbortSignal;
    onStart?: ((running: RunningHydration) => void) | undefined;
    onDetail?: ((line: string) => void) | undefined;
  },
): Promise<HydrateReport> {
  const { signal, onStart, onDetail } = options;
  let target: LiveHydration | undefined;
  let opening: Promise<LiveSocket | undefined> = Promise.resolve(undefined);
  const started = (running: RunningHydration): void => {
    target = new LiveHydration(clone, running);
    opening = openLiveSocket(clone, target, onDetail);
    opening.catch(() => {}); // awaited below
    onStart?.(running);
  };
  try {
    return await hydrateClone(clone, request, { signal, onStart: started });
  } finally {
    target?.end();
    await (await opening)?.close();
  }
}

/** What the control socket of a hydration steers. */
export class LiveHydration implements ControlTarget {
  readonly #clone: Clone;
  readonly #running: RunningHydration;
  readonly #meter = new RateMeter();
  readonly #sampling: NodeJS.Timeout;
  #ended = false;

  constructor(clone: Clone, running: RunningHydration) {
    this.#clone = clone;
    this.#running = running;
    this.#sample();
    this.#sampling = setInterval(() => this.#sample(), SAMPLE_INTERVAL_MS);
    this.#sampling.unref();
  }

  /** To be called when the hydration is over: there is nothing to steer any more. */
  end(): void {
    this.#ended = true;
    clearInterval(this.#sampling);
  }

  status(): object {
    return statusOf(this.#clone, this.#state());
  }

  regions(most: number): ReturnType<ControlTarget["regions"]> {
    return firstRegions(this.#clone.metadata.hydratedRanges(), this.#unreadable(), most);
  }

  async tune(changes: Tuning): Promise<void> {
    this.#refuseEnded();
    for (const name of ["minRate", "hydrateOnRead"] as const) {
      if (changes[name] === undefined) continue;
      throw new UsageError(`Cannot change ${name} of "${this.#clone.path}": it is for clients, and none are served`);
    }
    this.#running.tune(changes);
    await keepTuned(this.#clone, changes);
  }

  async commit(): Promise<void> {
    this.#refuseEnded();
    await this.#running.commit();
  }

  async finalize(): Promise<never> {
    throw this.#notHere("finalize", "`clone finalize` does it when the hydration has ended.");
  }

  async stop(): Promise<never> {
    throw this.#notHere("stop", `SIGTERM stops it: \`kill ${process.pid}\`.`);
  }

  async metrics(): Promise<{ contentType: string; text: string }> {
    const { renderMetrics } = await import("../control/metrics.ts");
    const status = statusOf(this.#clone, this.#state());
    const { ...bytes } = this.#running.counts;
    return await renderMetrics({ version: packageVersion(), status, bytes });
  }

  #state(): RunningState {
    const { metadata } = this.#clone;
    const running = this.#running;
    const { copied, reflinked, zeroed, skipped } = running.counts;
    return {
      failure: running.failure,
      finalized: false,
      paused: running.paused || running.threshold === 0,
      hydrating: !this.#ended,
      stalled: undefined,
      hydratedRegions: running.hydratedRegions,
      committedRegions: metadata.committedCount,
      hydratedBytes: hydratedBytes(this.#clone),
      hydratingRegions: running.hydratingRegions,
      unreadable: this.#unreadable(),
      usedBlocks: metadata.usedBlocks,
      totalBlocks: metadata.totalBlocks,
      rate: running.rate,
      minRate: null,
      threshold: running.threshold,
      batchSize: running.batchSize,
      hydrateOnRead: null,
      bytesPerSecond: this.#meter.bytesPerSecond,
      etaSeconds: this.#meter.secondsLeft(this.#clone.geometry.size),
      copiedBytes: copied,
      reflinkedBytes: reflinked,
      zeroedBytes: zeroed,
      skippedBytes: skipped,
      server: null,
    };
  }

  /** Those of this run and of earlier ones, less what has been hydrated since. */
  #unreadable(): RegionRange[] {
    const known = this.#clone.descriptor?.unreadable.ranges ?? [];
    return unhydratedParts(this.#clone.metadata, normalizeRanges([...known, ...this.#running.unreadable]));
  }

  #sample(): void {
    const { copied, reflinked } = this.#running.counts;
    const sample: RateSample = { done: hydratedBytes(this.#clone), moved: copied + reflinked };
    this.#meter.add(performance.now(), sample);
  }

  #refuseEnded(): void {
    if (this.#ended)
      throw new CloneError("failed", `Cannot change the hydration of "${this.#clone.path}": it has ended`);
  }

  #notHere(what: string, hint: string): CloneError {
    return new CloneError("busy", `Cannot ${what} "${this.#clone.path}": it is being hydrated, not served`, { hint });
  }
}

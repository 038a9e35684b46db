import type { Clock } from "../base/clock.ts";
import { LostWritesError } from "../base/errors.ts";
import type { ByteRange, Geometry, Region } from "../base/geometry.ts";
import type { CloneDeviceStats } from "./clone-device-stats.ts";
import type { CommitPipeline } from "./commit-pipeline.ts";
import type { InFlight } from "./in-flight.ts";
import { type RegionCopier, SourceReadError } from "./region-copier.ts";
import type { Hydration, RegionMap } from "./region-map.ts";
import { isTransient, retryPauseMs } from "./source-errors.ts";

/** What they work on. */
export interface DemandCopiesParts {
  geometry: Geometry;
  regions: RegionMap;
  copier: RegionCopier;
  commits: CommitPipeline;
  stats: CloneDeviceStats;
  inFlight: InFlight;
  clock: Clock;
  /** How often a copy is tried again after a passing error of the source. Default 0. */
  retry?: number;
  /** Whether bytes have been found unreadable before: then one error is enough. */
  isUnreadable?: (range: ByteRange) => boolean;
  /** From 0 to 1. Default: the machine's. */
  random?: () => number;
}

/** Copies in a row that a destination may lose before those who wait for them hear of it. */
const MOST_LOST = 10;

/**
 * Copies of regions that somebody waits for. Each is a task of its own, so that who waits may give up, while the region
 * stays in the table until the copy has really ended: it may still land.
 */
export class DemandCopies {
  readonly #parts: DemandCopiesParts;
  /** When any of them got on last. */
  #progressAt = -Infinity;
  /** How many the destination has lost since one arrived. */
  #lost = 0;
  /** Nobody stops these: who closes the clone waits for them. */
  readonly #never = new AbortController().signal;

  constructor(parts: DemandCopiesParts) {
    this.#parts = parts;
  }

  /**
   * When a hydration got on last; and, while it has not had its turn, when any of these copies did, since it will have its
   * turn then.
   */
  progressOf(hydration: Hydration): number {
    const own = this.#parts.regions.progressOf(hydration);
    return own === -Infinity ? this.#progressAt : own;
  }

  /** Enters an unhydrated region in the table and begins to copy it. Its `ended()` tells the copy's error. */
  start(region: Region): Hydration {
    const { regions, stats, inFlight } = this.#parts;
    const hydration = regions.begin({ start: region, end: region + 1 });
    stats.demandCopies++;
    inFlight.begin();
    void this.#copy(hydration);
    return hydration;
  }

  async #copy(hydration: Hydration): Promise<void> {
    const { geometry, regions, copier, commits, stats, inFlight, clock } = this.#parts;
    try {
      const onProgress = (): void => {
        this.#progressAt = clock.now();
        regions.noteProgress(hydration, this.#progressAt);
      };
      const onLanded = (range: ByteRange): void => regions.noteLanded(hydration, range);
      await this.#try(() => copier.copy(geometry.bytesOf(hydration), this.#never, { onProgress, onLanded }));
      if (regions.complete(hydration)) this.#lost = 0;
    } catch (error) {
      stats.demandCopyFailures++;
      // What taints it has been dealt with; an error that comes late must not undo what came after that.
      if (error instanceof LostWritesError && !regions.isTainted(hydration)) commits.lose(error);
      // The destination is back, and whoever waits looks again: it is copied once more.
      const again = error instanceof LostWritesError && ++this.#lost < MOST_LOST;
      regions.fail(hydration, again ? undefined : error);
      commits.failUnlessOperating(error);
    }
    inFlight.end();
  }

  /** Copies again where the source has failed and may well answer a moment later. */
  async #try(copy: () => Promise<void>): Promise<void> {
    const { geometry, clock, retry = 0, isUnreadable, random = Math.random } = this.#parts;
    for (let attempt = 0; ; attempt++) {
      try {
        return await copy();
      } catch (error) {
        if (!(error instanceof SourceReadError) || !isTransient(error) || attempt >= retry) throw error;
        const { offset = 0, length = geometry.regionSize } = error;
        if (isUnreadable?.({ offset, length })) throw error;
        await clock.sleep(retryPauseMs(attempt, random()));
      }
    }
  }
}

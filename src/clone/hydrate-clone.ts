/** `clone hydrate`: puts the engine together over an open clone and runs it to an end. */
import { systemClock } from "../base/clock.ts";
import { CloneError, DeviceError } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import { alignedBuffer } from "../device/aligned-buffer.ts";
import { CommitPipeline } from "../engine/commit-pipeline.ts";
import { ExtentCache } from "../engine/extent-cache.ts";
import { HintQueue } from "../engine/hint-queue.ts";
import { type HydrationOutcome, type HydrationSettings, Hydrator } from "../engine/hydrator.ts";
import { PeriodicCommits } from "../engine/periodic-commits.ts";
import { type CopyCounts, RegionCopier } from "../engine/region-copier.ts";
import { RegionMap } from "../engine/region-map.ts";
import { Throttle } from "../engine/throttle.ts";
import { unhydratedParts } from "../engine/unreadable-regions.ts";
import { normalizeRanges } from "../metadata/unreadable-ranges.ts";
import { type AttachedSource, type Clone, type DeviceRequest, sourceChanged } from "./clone.ts";
import { refuseLostDestination } from "./destination-guard.ts";
import { settleSource } from "./open-devices.ts";
import { windowOf } from "./source-window.ts";
import type { Trace } from "./trace-codec.ts";
import { orderOf } from "./trace-file.ts";
import { attachSourceToCopy } from "./unfinished-source.ts";

/** How to hydrate. */
export interface HydrateRequest extends DeviceRequest, HydrationSettings {
  /** Bytes per second at most, or null. */
  rate: number | null;
  /** Read back what was written and compare. */
  verify: boolean;
  /** Trust the holes that the source reports. */
  extents: boolean;
  /** What is hydrated before all else. */
  order?: Trace | undefined;
}

/** A hydration while it runs, for those who watch it, and for those who steer it. Counts are regions. */
export interface RunningHydration {
  readonly counts: Readonly<CopyCounts>;
  readonly hydratedRegions: number;
  readonly hydratingRegions: number;
  readonly unreadableRegions: number;
  /** The regions given up on so far, ascending and merged. */
  readonly unreadable: RegionRange[];
  readonly threshold: number;
  readonly batchSize: number;
  /** Bytes per second at most, or null. */
  readonly rate: number | null;
  /** Whether no new copies are begun. */
  readonly paused: boolean;
  /** What made it give up, as far as it knows already. */
  readonly failure: Error | undefined;
  /** Whether the destination is written past the page cache. */
  readonly direct: boolean;
  /** Changes what is given, at once; copies in flight end as they were begun. */
  tune(changes: HydrationChanges): void;
  /** Makes durable what is hydrated so far. @throws what the commit throws, which also ends the hydration */
  commit(): Promise<void>;
}

/** Changes to a running hydration; what is absent stays. Null is unlimited, or automatic. */
export interface HydrationChanges {
  rate?: number | null;
  threshold?: number | null;
  batchSize?: number | null;
  paused?: boolean;
}

/** What a hydration did. */
export interface HydrateReport {
  end: HydrationOutcome["end"];
  counts: Readonly<CopyCounts>;
  regions: number;
  hydratedRegions: number;
  /** All that are known now, of earlier runs too. */
  unreadable: RegionRange[];
  /** What the source said of the first unreadable region of this run. */
  firstReadError: string | undefined;
  seconds: number;
}

/** Bytes per read and write, and how many are in flight: what `test/bench` found best on disks and page cache alike. */
export const PIECE_LENGTH = 2 ** 21;
export const PIECES_IN_FLIGHT = 8;
/** Buffers begin on multiples of this for whatever is no file, bytes. */
export const PAGE = 4096;
/** Zeros are looked for in units of this, or of a region: smaller ones would tatter the copy, larger ones hide zeros. */
export const ZERO_UNIT = 65536;

/**
 * Hydrates what is missing and commits as it goes; at the end everything that was copied is durable.
 * @throws {CloneError} where the clone is finalized, its devices are not its own, the destination or a commit fails
 */
export async function hydrateClone(
  clone: Clone,
  request: HydrateRequest,
  { signal, onStart }: { signal: AbortSignal; onStart?: ((running: RunningHydration) => void) | undefined },
): Promise<HydrateReport> {
  if (clone.finalized !== null) {
    throw new CloneError("failed", `Cannot hydrate "${clone.path}": it is finalized, the destination stands alone`);
  }
  const destination = await clone.attachDestination(request, "read-write");
  const source = await attachSourceToCopy(clone, request);
  if (request.extents) await settleSource(source);
  await clone.beginWriting(request);
  const { geometry, metadata } = clone;
  const halt = new AbortController();
  const throttle = new Throttle(systemClock, request.rate);
  const far = windowOf(source, systemClock);
  const extents = new ExtentCache(source.view, { trusted: request.extents });
  const copier = new RegionCopier({
    source: far?.view ?? source.view,
    destination: destination.view,
    extents,
    throttle,
    pieceLength: PIECE_LENGTH,
    depth: far === undefined ? PIECES_IN_FLIGHT : Infinity,
    ...(far && { allowance: far.window, window: far.window }),
    zeroUnit: Math.min(ZERO_UNIT, geometry.regionSize),
    allocate: (byteLength) => alignedBuffer(byteLength, destination.file?.directAlignment ?? PAGE),
    verify: request.verify,
    halt: halt.signal,
  });
  const regions = new RegionMap(metadata);
  const commits = new CommitPipeline({
    metadata,
    destination: destination.view,
    regions,
    link: destination.remote,
    refuseLost: () => refuseLostDestination(destination, clone.exactSize),
    guard: async () => {
      const change = await changeAsError(source);
      if (change !== undefined) throw change;
    },
  });
  const known = clone.descriptor?.unreadable.ranges ?? [];
  const order = request.order && orderOf(request.order, geometry, (warning) => clone.warn(warning));
  const hints = new HintQueue(order);
  const hydrator = new Hydrator(
    {
      geometry,
      regions,
      copier,
      extents,
      commits,
      clock: systemClock,
      halt,
      get copiesInFlight() {
        return far?.window.depth ?? PIECES_IN_FLIGHT;
      },
      ...(far && { rescueWidth: PIECES_IN_FLIGHT }),
      hints,
    },
    request,
    known,
  );
  onStart?.({
    counts: copier.counts,
    get hydratedRegions() {
      return regions.hydratedCount;
    },
    get hydratingRegions() {
      return regions.hydratingCount;
    },
    get unreadableRegions() {
      return hydrator.unreadableCount;
    },
    get threshold() {
      return hydrator.threshold;
    },
    get batchSize() {
      return hydrator.batchSize;
    },
    get unreadable() {
      return hydrator.unreadable;
    },
    get rate() {
      return throttle.bytesPerSecond;
    },
    get paused() {
      return hydrator.pace.paused;
    },
    get failure() {
      return commits.failure;
    },
    get direct() {
      return destination.file?.direct ?? false;
    },
    tune({ rate, threshold, batchSize, paused }) {
      if (rate !== undefined) throttle.bytesPerSecond = rate;
      hydrator.pace.tune({
        ...(threshold !== undefined && { threshold }),
        ...(batchSize !== undefined && { batchSize }),
      });
      if (paused !== undefined) hydrator.pace.paused = paused;
    },
    commit: () => commits.commit(),
  });
  const startedAt = performance.now();
  const periodic = new PeriodicCommits({ commits, clock: systemClock, onFailure: (error) => halt.abort(error) });
  periodic.start();
  const running = hydrator.run(signal).finally(() => periodic.stop());
  const outcome = await running.catch(async (error: unknown) => {
    // After a failed commit nothing more is written, and nothing that is in memory may be believed.
    if (commits.failure === undefined && error instanceof CloneError) {
      const run = { known, unreadable: hydrator.unreadable, end: "stopped" } as const;
      await closeBooks(clone, run).catch((second: Error) => clone.warn(second.message));
    }
    const change = await changeAsError(source); // which explains an error better than the error does
    // Where it was the guard that failed the commit, nothing is wrong with the metadata.
    const isSound = commits.failure === undefined || !(commits.failure instanceof DeviceError);
    if (change !== undefined && isSound) await rememberChange(clone, source);
    throw change ?? error;
  });
  const unreadable = await closeBooks(clone, { known, ...outcome });
  if (outcome.unreadable.length > 0) {
    const change = await changeAsError(source);
    if (change !== undefined) {
      await rememberChange(clone, source);
      throw change;
    }
  }
  return {
    end: outcome.end,
    counts: copier.counts,
    regions: geometry.regionCount,
    hydratedRegions: regions.hydratedCount,
    unreadable,
    firstReadError: outcome.firstReadError?.message,
    seconds: (performance.now() - startedAt) / 1000,
  };
}

/** The error to throw where the source has changed since it was opened: what was copied since may be a mixture. */
export async function changeAsError(source: AttachedSource): Promise<CloneError | undefined> {
  const change = await source.change();
  return change === undefined ? undefined : sourceChanged(source.device.name, change);
}

/** Of a file the time of change tells the next run; of a block device nothing would. @throws {DeviceError} */
export async function rememberChange(clone: Clone, { file }: AttachedSource): Promise<void> {
  const pinned = clone.descriptor?.source;
  if (pinned === undefined || file?.kind !== "block") return;
  const fingerprint = { ...pinned.fingerprint, sample: "changed while it was copied" };
  await clone.updateDescriptor({ source: { ...pinned, fingerprint } });
}

/**
 * Records what a run leaves: the regions that are known to be unreadable, less those hydrated in the end, and the
 * destination as it is now.
 */
async function closeBooks(
  clone: Clone,
  run: { known: RegionRange[]; unreadable: RegionRange[]; end: HydrationOutcome["end"] },
): Promise<RegionRange[]> {
  // A run that went to its end has tried everything, also what an inexact list only seemed to name.
  const complete = run.end === "complete" || run.end === "partial";
  const unreadable = normalizeRanges(complete ? run.unreadable : [...run.known, ...run.unreadable]);
  const ranges = unhydratedParts(clone.metadata, unreadable);
  const inexact = !complete && ranges.length > 0 && (clone.descriptor?.unreadable.inexact ?? false);
  await clone.settle({ unreadable: { ranges, inexact, complete } });
  return ranges;
}

/**
 * Background hydration: copies every region that is missing, several at a time, commits once a second, and stops cleanly.
 *
 *     pass           regions ascending, those known unreadable left out
 *     a read error   the batch is given up and its regions are queued one by one: the good areas come first
 *     then           the queue, each region alone; what still fails again, `retry` times, with growing pauses between
 *     then           the known unreadable in the same way: a pass, and what cannot be read alone
 *     what is left   is unreadable: reported, never filled
 *
 *     run() ──► hydrating ──► complete                  everything hydrated and committed
 *                   ├───────► partial                   all but unreadable regions
 *                   ├───────► limit                     as many bytes as asked for were copied
 *                   ├───────► stopped                   the signal aborted
 *                   └───────► throws                    destination or commit failed, or too many errors
 *
 * Whatever ends it, copies in flight end first and what was hydrated is committed, unless the commit itself failed.
 */
import { setMaxListeners } from "node:events";
import type { Clock } from "../base/clock.ts";
import { CloneError } from "../base/errors.ts";
import type { Geometry, Region, RegionRange } from "../base/geometry.ts";
import { normalizeRanges } from "../metadata/unreadable-ranges.ts";
import type { CommitPipeline } from "./commit-pipeline.ts";
import { type ExtentCache, WINDOW_BYTES } from "./extent-cache.ts";
import { type RegionCopier, SourceReadError } from "./region-copier.ts";
import type { RegionMap } from "./region-map.ts";

/** How hydration is to behave. `null` is `auto`: adapted to the devices. */
export interface HydrationSettings {
  /** Most regions being copied at once (dm-clone's `hydration_threshold`). */
  threshold: number | null;
  /** Most neighbouring regions per copy (dm-clone's `hydration_batch_size`); like there never more than the threshold. */
  batchSize: number | null;
  /** How often a region is tried again after a read error. */
  retry: number;
  /** Unreadable regions after which it gives up. */
  maxErrors: number;
  /** Whether an unreadable region ends it (`stop`) or is left for later (`skip`). */
  onError: "stop" | "skip";
  /** Bytes after which it ends, or null. */
  limit: number | null;
}

/** What it works on. */
export interface HydratorParts {
  geometry: Geometry;
  regions: RegionMap;
  copier: RegionCopier;
  /** The source's holes, to skip long ones at once. */
  extents: ExtentCache;
  commits: CommitPipeline;
  clock: Clock;
  /** Aborted by the hydrator when something failed for good; the copier watches it. */
  halt: AbortController;
  /** Copies of `copier.preferredLength` bytes that keep the devices busy: the automatic threshold. */
  copiesInFlight: number;
}

/** How a run ended. */
export interface HydrationOutcome {
  end: "complete" | "partial" | "limit" | "stopped";
  /** Regions that could not be read, ascending and merged. */
  unreadable: RegionRange[];
  /** What the source answered for the first of them. */
  firstReadError: SourceReadError | undefined;
}

const COMMIT_INTERVAL_MS = 1000;
const FIRST_RETRY_MS = 100;
const LONGEST_RETRY_MS = 5000;
/** Batches in flight at once, whatever the threshold: zeros cost no copy, but each batch of them is a task. */
const MOST_BATCHES = 64;
/** Regions that may wait to be tried alone before the pass is interrupted for them. */
const MOST_WAITING = 4096;
/** Errors that say the source itself is gone: trying region after region would only waste hours. */
const SOURCE_GONE = new Set(["ENODEV", "ENXIO", "ENOMEDIUM", "ESHUTDOWN", "EBADF", "ESTALE"]);

/** One run of background hydration. */
export class Hydrator {
  readonly #parts: HydratorParts;
  readonly #settings: HydrationSettings;
  readonly #lastTime: readonly RegionRange[];
  /** Regions of batches that could not be read, ascending enough; each will be tried alone. */
  #waiting: Waiting[] = [];
  readonly #unreadable: RegionRange[] = [];
  #unreadableCount = 0;
  #firstReadError: SourceReadError | undefined;
  readonly #batches = new Set<Promise<void>>();
  #copyingRegions = 0;
  #copyingBytes = 0;
  #failure: unknown;

  /** `lastTime` are the regions found unreadable by an earlier run, ascending: they are tried after all others. */
  constructor(parts: HydratorParts, settings: HydrationSettings, lastTime: readonly RegionRange[] = []) {
    this.#parts = parts;
    this.#settings = settings;
    this.#lastTime = lastTime;
  }

  /** The batch size in use, regions. */
  get batchSize(): number {
    const automatic = Math.floor(this.#parts.copier.preferredLength / this.#parts.geometry.regionSize);
    return Math.max(1, Math.min(this.#settings.batchSize ?? automatic, this.#settings.threshold ?? Infinity));
  }

  /** The threshold in use, regions. */
  get threshold(): number {
    return this.#settings.threshold ?? this.batchSize * this.#parts.copiesInFlight;
  }

  /** Regions given up on so far. */
  get unreadableCount(): number {
    return this.#unreadableCount;
  }

  /** The regions given up on so far, ascending and merged: also there when `run()` throws. */
  get unreadable(): RegionRange[] {
    return normalizeRanges(this.#unreadable);
  }

  /**
   * Hydrates until all is done or `signal` aborts.
   * @throws {DeviceError} when the destination fails, with what came before committed
   * @throws {CloneError} when a commit fails, the source is gone, or more regions than allowed are unreadable
   */
  async run(signal: AbortSignal): Promise<HydrationOutcome> {
    const { commits, halt } = this.#parts;
    const ended = new AbortController();
    const timer = this.#commitPeriodically(ended.signal);
    const stop = AbortSignal.any([signal, halt.signal]);
    setMaxListeners(0, stop); // each piece that waits for its turn listens
    let end: HydrationOutcome["end"] = "stopped";
    try {
      end = await this.#passes(stop);
    } catch (error) {
      this.#fail(error);
    }
    await Promise.all(this.#batches);
    ended.abort();
    await timer;
    // What was copied before an operating error is good and worth keeping; after a broken invariant nothing is.
    if (this.#failure === undefined || this.#failure instanceof CloneError) await commits.commit();
    if (this.#failure !== undefined) throw this.#failure;
    return { end, unreadable: this.unreadable, firstReadError: this.#firstReadError };
  }

  async #passes(stop: AbortSignal): Promise<HydrationOutcome["end"]> {
    const { regions } = this.#parts;
    for (const ranges of [complement(this.#lastTime, regions.regionCount), this.#lastTime]) {
      for (const range of ranges) await this.#pass(range, stop);
      await this.#settle(stop);
    }
    if (stop.aborted) return "stopped";
    if (regions.hydratedCount === regions.regionCount) return "complete";
    return this.#bytesLeft() > 0 ? "partial" : "limit";
  }

  /** Starts a batch for every unhydrated region of the range; what cannot be read is left waiting. */
  async #pass(range: RegionRange, stop: AbortSignal): Promise<void> {
    const { geometry } = this.#parts;
    for (let cursor = range.start; ; ) {
      while (!stop.aborted && !this.#hasRoom()) await Promise.race(this.#batches);
      if (this.#waiting.length >= (this.#settings.onError === "stop" ? 1 : MOST_WAITING)) await this.#settle(stop);
      if (stop.aborted) return;
      const bytesLeft = this.#bytesLeft();
      if (bytesLeft <= 0) {
        if (this.#batches.size === 0) return;
        await Promise.race(this.#batches); // it may turn out to be zeros, or unreadable, and copy less than it could
        continue;
      }
      const batch = await this.#nextBatch(cursor, range.end, Math.ceil(bytesLeft / geometry.regionSize));
      if (batch === undefined) return;
      cursor = batch.end;
      this.#start(batch, stop);
    }
  }

  /** Bytes that may still be copied, if all that is in flight is. */
  #bytesLeft(): number {
    const { copied, reflinked } = this.#parts.copier.counts;
    return (this.#settings.limit ?? Infinity) - copied - reflinked - this.#copyingBytes;
  }

  #hasRoom(): boolean {
    return this.#batches.size < MOST_BATCHES && this.#copyingRegions + this.batchSize <= this.threshold;
  }

  /** The next regions to hydrate together: a whole run of known zeros, however long, or one batch of data. */
  async #nextBatch(from: Region, end: Region, most: number): Promise<Batch | undefined> {
    const { geometry, regions, extents } = this.#parts;
    // As far as one question to the source can tell of its zeros, or one batch of data reaches.
    const limit = Math.max(this.batchSize, Math.ceil(WINDOW_BYTES / geometry.regionSize));
    for (;;) {
      const run = regions.nextUnhydrated(from, end, limit);
      if (run === undefined) return undefined;
      const offset = geometry.offsetOf(run.start);
      // A source that cannot tell its holes fails the copy too, where the error is counted and reported.
      const zerosEnd = await extents.zerosEnd(offset).catch(() => offset);
      const now = regions.nextUnhydrated(from, end, limit);
      if (now?.start !== run.start || now.end !== run.end) continue; // the world changed during the await
      const zeros = geometry.regionsInside({ offset, length: zerosEnd - offset });
      if (zeros.end > run.start) return { start: run.start, end: Math.min(zeros.end, run.end), zeros: true };
      const batchSize = this.batchSize;
      const aligned = run.start - (run.start % batchSize) + batchSize;
      return { start: run.start, end: Math.min(aligned, run.end, run.start + most), zeros: false };
    }
  }

  #start(batch: Batch, stop: AbortSignal): void {
    const task = this.#hydrate(batch, stop)
      .catch((error: unknown) => {
        if (error instanceof SourceReadError) this.#putOff(batch, error);
        else this.#fail(error);
      })
      .finally(() => this.#batches.delete(task));
    this.#batches.add(task);
  }

  /** Hydrates a run of regions as one. @throws what the copier throws, after taking the run off the table */
  async #hydrate(batch: Batch, stop: AbortSignal): Promise<void> {
    const { geometry, regions, copier } = this.#parts;
    const range = geometry.bytesOf(batch);
    const hydration = regions.begin(batch);
    const [copyingRegions, copyingBytes] = batch.zeros ? [0, 0] : [batch.end - batch.start, range.length];
    this.#copyingRegions += copyingRegions;
    this.#copyingBytes += copyingBytes;
    try {
      await copier.copy(range, stop);
    } catch (error) {
      regions.fail(hydration);
      if (stop.aborted && error === stop.reason) return;
      throw error;
    } finally {
      this.#copyingRegions -= copyingRegions;
      this.#copyingBytes -= copyingBytes;
    }
    regions.complete(hydration);
  }

  #putOff({ start, end }: RegionRange, error: SourceReadError): void {
    if (isSourceGone(error)) this.#fail(error);
    const alone = end - start === 1 ? error : undefined;
    for (let region = start; region < end; region++) this.#waiting.push({ region, error: alone });
  }

  /**
   * Tries each waiting region alone, and gives up on those that stay unreadable. All have their turn before any is tried
   * again: a disk that dies should give what it still can first, and many bad regions share each pause.
   */
  async #settle(stop: AbortSignal): Promise<void> {
    await Promise.all(this.#batches);
    let waiting = this.#waiting.sort((a, b) => a.region - b.region);
    this.#waiting = [];
    for (let round = 0; waiting.length > 0; round++) {
      const pauseMs = Math.min(FIRST_RETRY_MS * 2 ** (round - 1), LONGEST_RETRY_MS);
      if (round > 0) await this.#parts.clock.sleep(pauseMs, stop);
      waiting = await this.#tryEach(waiting, round, stop);
    }
  }

  /** One round; returns those to be tried again. Regions that were alone in their batch have had their round 0. */
  async #tryEach(waiting: Waiting[], round: number, stop: AbortSignal): Promise<Waiting[]> {
    const again: Waiting[] = [];
    for (const { region, error: before } of waiting) {
      if (stop.aborted || this.#bytesLeft() <= 0) return [];
      if (this.#parts.regions.state(region) !== "unhydrated") continue;
      const error = round === 0 && before !== undefined ? before : await this.#tryAlone(region, stop);
      if (error === undefined) continue;
      if (round < this.#settings.retry) again.push({ region, error });
      else this.#giveUp(region, error);
    }
    return again;
  }

  /** The error of a region that cannot be read; undefined when it was hydrated, or all was stopped. */
  async #tryAlone(region: Region, stop: AbortSignal): Promise<SourceReadError | undefined> {
    try {
      await this.#hydrate({ start: region, end: region + 1, zeros: false }, stop);
      return undefined;
    } catch (error) {
      if (!(error instanceof SourceReadError) || isSourceGone(error)) throw error;
      return error;
    }
  }

  #giveUp(region: Region, error: SourceReadError): void {
    this.#firstReadError ??= error;
    this.#unreadableCount++;
    const last = this.#unreadable.at(-1);
    if (last?.end === region) last.end++;
    else this.#unreadable.push({ start: region, end: region + 1 });
    if (this.#settings.onError === "stop") this.#fail(error);
    else if (this.#unreadableCount > this.#settings.maxErrors) {
      this.#fail(
        new CloneError(
          "failed",
          `Cannot go on: ${this.#unreadableCount} unreadable regions are more than --max-errors ${this.#settings.maxErrors} allows`,
          {
            hint: `The last one: ${error.message}`,
            cause: error,
          },
        ),
      );
    }
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
    this.#parts.halt.abort(error);
  }

  async #commitPeriodically(ended: AbortSignal): Promise<void> {
    for (;;) {
      await this.#parts.clock.sleep(COMMIT_INTERVAL_MS, ended);
      if (ended.aborted) return;
      await this.#parts.commits.commit().catch((error: unknown) => this.#fail(error));
    }
  }
}

/** Regions hydrated as one. `zeros`: the source says they are, so no bytes will move. */
type Batch = RegionRange & { zeros: boolean };

/** A region to be tried alone. `error`: what came of it where it was alone already. */
interface Waiting {
  region: Region;
  error: SourceReadError | undefined;
}

function isSourceGone({ errno }: SourceReadError): boolean {
  return errno !== undefined && SOURCE_GONE.has(errno);
}

/** What ascending, disjoint ranges leave out of 0 … `end` - 1. */
function complement(ranges: readonly RegionRange[], end: Region): RegionRange[] {
  const gaps: RegionRange[] = [];
  let start = 0;
  for (const range of [...ranges, { start: end, end }]) {
    if (range.start > start) gaps.push({ start, end: range.start });
    start = range.end;
  }
  return gaps;
}

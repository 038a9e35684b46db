/**
 * One run of background hydration: copies every region that is missing, several at a time, and stops cleanly.
 *
 *     pass           regions ascending, those known unreadable left out; hinted ones, whenever there are any, before them,
 *                    and those of an order, as long as there are any
 *     a read error   the batch is given up and put off: the good areas come first
 *     then           what was put off, region by region: trimmed, scraped, and tried again, `retry` times, with growing
 *                    pauses between (`rescueAreas`)
 *     then           the known unreadable in the same way: a pass, and what cannot be read by it
 *     what is left   is unreadable: reported, never filled
 *     a commit       which may find that the destination has lost what was written to it: then everything is done again that
 *                    is missing, as often as it takes, as long as something comes of it
 *
 * Reads fail for one of two reasons. Some bytes cannot be read: others can, and these are put off. Or the source as a whole is
 * away, gone, or another one (`isOfWholeSource`): that ends the run, or each of a million regions would be
 * waited for, and listed as unreadable.
 *
 *     run() ──► hydrating ──► complete                  everything hydrated and committed
 *                   ├───────► partial                   all but unreadable regions
 *                   ├───────► limit                     as many bytes as asked for were copied
 *                   ├───────► stopped                   the signal aborted
 *                   └───────► throws                    source away, destination or commit failed, or too many errors
 *
 * Whatever ends it, copies in flight end first and what was hydrated is committed, unless the commit itself failed.
 * Commits meanwhile are somebody else's (`PeriodicCommits`).
 */
import type { Clock } from "../base/clock.ts";
import { CloneError, DeviceError, LostWritesError } from "../base/errors.ts";
import type { ByteRange, Geometry, Region, RegionRange } from "../base/geometry.ts";
import { type BadArea, rescueAreas } from "./bad-areas.ts";
import type { CommitPipeline } from "./commit-pipeline.ts";
import { type ExtentCache, WINDOW_BYTES } from "./extent-cache.ts";
import { HintQueue } from "./hint-queue.ts";
import { type Batch, HydrationPace, type PaceParts, type PaceSettings } from "./hydration-pace.ts";
import { type RegionCopier, SourceReadError } from "./region-copier.ts";
import type { RegionMap } from "./region-map.ts";
import { isOfWholeSource } from "./source-errors.ts";
import { UnreadableRegions } from "./unreadable-regions.ts";

/** How hydration is to behave. */
export interface HydrationSettings extends PaceSettings {
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
export interface HydratorParts extends PaceParts {
  geometry: Geometry;
  regions: RegionMap;
  copier: RegionCopier;
  /** The source's holes, to skip long ones at once. */
  extents: ExtentCache;
  commits: CommitPipeline;
  clock: Clock;
  /** Aborted by the hydrator when something failed for good, and ends it when somebody else does so. */
  halt: AbortController;
  /** Most bytes of zeros hydrated as one. Default: as far as one question to the source reaches. */
  zerosLength?: number;
  /**
   * Areas that could not be read at work at once. Default 1: a disk that tries hard to read one place should not be made to
   * wait for others meanwhile. More where a read costs a round trip.
   */
  rescueWidth?: number;
  /** Where several runs follow one another: what they share. */
  pace?: HydrationPace;
  hints?: HintQueue;
}

/** How a run ended. */
export interface HydrationOutcome {
  end: "complete" | "partial" | "limit" | "stopped";
  /** Regions that could not be read, ascending and merged. */
  unreadable: RegionRange[];
  /** What the source answered for the first of them. */
  firstReadError: SourceReadError | undefined;
}

const FIRST_RETRY_MS = 100;
const LONGEST_RETRY_MS = 5000;
/** Batches that may be put off before the pass is interrupted for them. */
const MOST_PUT_OFF = 1024;
/** Regions that may have failed by themselves before they are tried again, or given up, ahead of everything else. */
const MOST_FAILED = 4096;
/** How often in a row everything is done again that the destination has lost, with nothing to show for it. */
const MOST_FRUITLESS = 10;
/** Ranges of an order passed over in one turn of the event loop, because they are hydrated already. */
const MOST_PASSED_OVER = 4096;

/** One run of background hydration. */
export class Hydrator {
  /** Threshold and batch size, which may be tuned while it runs, and whether it rests. */
  readonly pace: HydrationPace;
  readonly #parts: HydratorParts;
  readonly #settings: HydrationSettings;
  readonly #hints: HintQueue;
  readonly #known: UnreadableRegions;
  /** Batches that could not be read. */
  #putOff: BadArea<SourceReadError>[] = [];
  readonly #unreadable = new UnreadableRegions();
  #firstReadError: SourceReadError | undefined;
  #lastReadError: SourceReadError | undefined;
  readonly #batches = new Set<Promise<void>>();
  /** End the waiting of each. */
  readonly #hurries = new Set<() => void>();
  #copyingBytes = 0;
  #hydratedRegions = 0;
  #passesOver = false;
  /** Whether something that was copied did not count, because the destination has lost it. */
  #lost = false;
  #failure: unknown;
  #gaveUp = false;

  /** `known` are the regions found unreadable by an earlier run: they are tried after all others. */
  constructor(parts: HydratorParts, settings: HydrationSettings, known: readonly RegionRange[] = []) {
    this.#parts = parts;
    this.#settings = settings;
    this.#known = new UnreadableRegions(known);
    this.#hints = parts.hints ?? new HintQueue();
    this.pace = parts.pace ?? new HydrationPace(parts, settings);
  }

  /** The batch size in use, regions. */
  get batchSize(): number {
    return this.pace.batchSize;
  }

  /** The threshold in use, regions. */
  get threshold(): number {
    return this.pace.threshold;
  }

  /** Regions this run has hydrated. */
  get hydratedRegions(): number {
    return this.#hydratedRegions;
  }

  /** What the source answered where it could not be read last, or undefined. */
  get lastReadError(): SourceReadError | undefined {
    return this.#lastReadError;
  }

  /** What the source answered for the first region given up on, or undefined. */
  get firstReadError(): SourceReadError | undefined {
    return this.#firstReadError;
  }

  /** Regions given up on so far. */
  get unreadableCount(): number {
    return this.#unreadable.count;
  }

  /** The regions given up on so far, ascending and merged: also there when `run()` throws. */
  get unreadable(): RegionRange[] {
    return this.#unreadable.ranges;
  }

  /** Whether what `run()` threw is about unreadable regions, of which there are more than the settings put up with. */
  get gaveUp(): boolean {
    return this.#gaveUp;
  }

  /**
   * Hydrates until all is done or `signal` aborts; without `retryKnown` leaves out what was known to be unreadable.
   * @throws {DeviceError} when the destination fails, with what came before committed
   * @throws {CloneError} when a commit fails, the source is gone, or more regions than allowed are unreadable
   */
  async run(signal: AbortSignal, { retryKnown = true } = {}): Promise<HydrationOutcome> {
    const { commits, halt } = this.#parts;
    // Not AbortSignal.any(): what it makes stays in memory as long as its sources, and of runs there may be many.
    const stop = new AbortController();
    const follow = (): void => {
      stop.abort(halt.signal.aborted ? halt.signal.reason : signal.reason);
      for (const hurry of this.#hurries) hurry();
      this.pace.changed.wake();
    };
    for (const watched of [signal, halt.signal]) watched.addEventListener("abort", follow, { once: true });
    if (signal.aborted || halt.signal.aborted) follow();

    await this.#rounds(stop.signal, retryKnown).catch((error: unknown) => this.#fail(error));
    for (const watched of [signal, halt.signal]) watched.removeEventListener("abort", follow);
    if (halt.signal.aborted) this.#failure ??= halt.signal.reason;
    // What was copied before an operating error is good and worth keeping; after a broken invariant nothing is.
    if (this.#failure instanceof CloneError) await commits.commit().catch((error) => this.#failInstead(error));
    if (this.#failure !== undefined) throw this.#failure;
    return { end: this.#endOf(stop.signal), unreadable: this.unreadable, firstReadError: this.#firstReadError };
  }

  /** Round after round, until the destination has lost nothing of the last one, which is committed. */
  async #rounds(stop: AbortSignal, retryKnown: boolean): Promise<void> {
    const { commits, regions, halt } = this.#parts;
    let best = 0;
    for (let fruitless = 0; ; ) {
      const { losses } = commits;
      this.#lost = false;
      await this.#round(stop, retryKnown);
      if (halt.signal.aborted) return;
      // What is written before the destination has said all that it has lost would be taken back with the rest.
      await (commits.inDoubt && !stop.aborted ? commits.flush() : commits.commit());
      const lost = this.#lost || commits.losses !== losses;
      if (!lost || stop.aborted || this.#bytesLeft() <= 0 || !this.#isAnyLeft(retryKnown)) return;
      if (regions.hydratedCount > best) [best, fruitless] = [regions.hydratedCount, 0];
      else if (++fruitless === MOST_FRUITLESS) {
        throw new LostWritesError("Cannot go on: the destination loses what is written to it, again and again");
      }
      this.#hints.rewind();
    }
  }

  async #round(stop: AbortSignal, retryKnown: boolean): Promise<void> {
    this.#passesOver = false;
    const hints = this.#followHints(stop);
    await this.#passes(stop, retryKnown).catch((error: unknown) => this.#fail(error));
    this.#passesOver = true;
    this.pace.changed.wake();
    await hints;
    await Promise.all(this.#batches);
  }

  #endOf(stop: AbortSignal): HydrationOutcome["end"] {
    const { regions } = this.#parts;
    if (stop.aborted) return "stopped";
    if (regions.hydratedCount === regions.regionCount) return "complete";
    return this.#bytesLeft() > 0 ? "partial" : "limit";
  }

  async #passes(stop: AbortSignal, retryKnown: boolean): Promise<void> {
    const others = this.#known.outside({ start: 0, end: this.#parts.regions.regionCount });
    for (const ranges of [others, retryKnown ? this.#known.ranges : []]) {
      const wanted = ranges.flatMap((range) => this.#unreadable.outside(range));
      for (const range of wanted) await this.#pass(range, stop);
      await this.#settle(stop);
    }
  }

  /** Whether there is a region to hydrate that this run has not given up on. */
  #isAnyLeft(retryKnown: boolean): boolean {
    const { regions } = this.#parts;
    const passedOver = new UnreadableRegions([...this.#unreadable.ranges, ...(retryKnown ? [] : this.#known.ranges)]);
    const wanted = passedOver.outside({ start: 0, end: regions.regionCount });
    return wanted.some(({ start, end }) => regions.nextUnhydrated(start, end, 1) !== undefined);
  }

  /** Starts a batch for every unhydrated region of the range; what cannot be read is left waiting. */
  async #pass({ start, end }: RegionRange, stop: AbortSignal): Promise<void> {
    for (let cursor = start; cursor < end; ) {
      while (!this.#isOver(stop) && (this.pace.room === 0 || this.#hintsComeFirst)) await this.pace.change();
      if (this.#tooManyWait) await this.#settle(stop);
      if (this.#isOver(stop)) return;
      if (this.#bytesLeft() > 0) cursor = await this.#startNext(cursor, end, stop);
      else if (this.#batches.size === 0) return;
      else await this.pace.change(); // a batch may turn out to be zeros, or unreadable, and copy less than it could
    }
  }

  /** Starts batches for what is hinted or ordered, before the passes take any room, until they are over. */
  async #followHints(stop: AbortSignal): Promise<void> {
    const hints = this.#hints;
    for (let passedOver = 0; !stop.aborted && !this.#passesOver; ) {
      const next = hints.next;
      if (next === undefined || !this.#hintsComeFirst) {
        await this.pace.changed.wait();
        continue;
      }
      if (this.#parts.regions.nextUnhydrated(next.start, next.end, 1) === undefined) {
        this.#passHint(next.end);
        if (++passedOver % MOST_PASSED_OVER === 0) await this.#parts.clock.sleep(0, stop);
        continue;
      }
      const ordered = hints.isOrdered;
      if (this.pace.roomFor(ordered ? next.end - next.start : Infinity) === 0) {
        await this.pace.change();
        continue;
      }
      const part = this.#notGivenUp(next);
      const done = part === undefined ? next.end : await this.#startNext(part.start, part.end, stop, { ordered });
      if (hints.next === next) this.#passHint(done); // else a newer one came before it; what was begun is in the table
    }
  }

  #passHint(done: Region): void {
    this.#hints.advance(done);
    if (this.#hints.empty) this.pace.changed.wake();
  }

  /**
   * Whether what is hinted has its turn before the passes: unless regions that could not be read wait for theirs, or nothing
   * more may be copied.
   */
  get #hintsComeFirst(): boolean {
    return !this.#hints.empty && !this.#tooManyWait && this.#bytesLeft() > 0;
  }

  /** Whether those that could not be read have their turn before all others. */
  get #tooManyWait(): boolean {
    return this.#putOff.length >= (this.#settings.onError === "stop" ? 1 : MOST_PUT_OFF);
  }

  /** The first part of a range of which nothing is known to be unreadable. */
  #notGivenUp(range: RegionRange): RegionRange | undefined {
    for (const part of this.#known.outside(range)) {
      const [first] = this.#unreadable.outside(part);
      if (first !== undefined) return first;
    }
    return undefined;
  }

  /** Whether nothing more is to be started: clients may have hydrated the rest. */
  #isOver(stop: AbortSignal): boolean {
    const { regions } = this.#parts;
    return stop.aborted || regions.hydratedCount === regions.regionCount;
  }

  /** Bytes that may still be copied, if all that is in flight is. */
  #bytesLeft(): number {
    const { copied, reflinked } = this.#parts.copier.counts;
    return (this.#settings.limit ?? Infinity) - copied - reflinked - this.#copyingBytes;
  }

  /**
   * Starts hydrating the next regions together: a whole run of known zeros, however long, or one batch of data. Returns
   * where to go on: `from` itself where the world changed meanwhile, `end` where nothing is left. What is `ordered` lies here
   * and there: it needs no room but its own, and does not wait for what the source has to say of each place.
   */
  async #startNext(from: Region, end: Region, stop: AbortSignal, { ordered = false } = {}): Promise<Region> {
    const { geometry, regions, extents, zerosLength = WINDOW_BYTES } = this.#parts;
    // As far as one question to the source can tell of its zeros, or one batch of data reaches.
    const limit = Math.max(this.batchSize, Math.ceil(zerosLength / geometry.regionSize));
    const run = regions.nextUnhydrated(from, end, limit);
    if (run === undefined) return end;
    const offset = geometry.offsetOf(run.start);
    // A source that cannot tell its holes fails the copy too, where the error is counted and reported.
    const zerosEnd = ordered ? offset : await extents.zerosEnd(offset).catch(() => offset);

    // From here on nothing waits: the decision and the entry in the table are one step.
    const now = regions.nextUnhydrated(from, end, limit);
    const { batchSize } = this.pace;
    const room = this.pace.roomFor(ordered ? end - from : Infinity);
    const bytesLeft = this.#bytesLeft();
    if (stop.aborted || room === 0 || bytesLeft <= 0) return from;
    if (now?.start !== run.start || now.end !== run.end) return from;
    const zeros = geometry.regionsInside({ offset, length: zerosEnd - offset });
    const zerosFound = zeros.end > run.start;
    const most = Math.min(room, Math.ceil(bytesLeft / geometry.regionSize));
    const aligned = run.start - (run.start % batchSize) + batchSize;
    const batchEnd = zerosFound ? zeros.end : Math.min(aligned, run.start + most);
    const batch = { start: run.start, end: Math.min(batchEnd, run.end), zeros: zerosFound };
    this.#start(batch, stop);
    return batch.end;
  }

  #start(batch: Batch, stop: AbortSignal): void {
    const task = this.#hydrate(batch, stop)
      .catch((error: unknown) => {
        if (error instanceof SourceReadError) this.#setAside(batch, error);
        else this.#fail(error);
      })
      .finally(() => {
        this.#batches.delete(task);
        this.pace.changed.wake();
      });
    this.#batches.add(task);
  }

  /**
   * Hydrates a run of regions as one, unless the destination loses it on the way: then it stays for the next round.
   * @throws what the copier throws, after taking the run off the table
   */
  async #hydrate(batch: Batch, stop: AbortSignal): Promise<void> {
    const { geometry, regions, copier, commits, clock } = this.#parts;
    const range = geometry.bytesOf(batch);
    // A client that waits for the regions should not wait for the rate.
    const hurry = new AbortController();
    const onAwaited = (): void => hurry.abort();
    const hydration = regions.begin(batch, { onAwaited });
    this.#hurries.add(onAwaited);
    this.pace.begin(batch);
    const copyingBytes = batch.zeros ? 0 : range.length;
    this.#copyingBytes += copyingBytes;
    try {
      const onProgress = (): void => regions.noteProgress(hydration, clock.now());
      const onLanded = (part: ByteRange): void => regions.noteLanded(hydration, part);
      await copier.copy(range, stop, { hurry: hurry.signal, onProgress, onLanded });
    } catch (error) {
      // What taints it has been dealt with; an error that comes late must not undo what came after that.
      if (error instanceof LostWritesError && !regions.isTainted(hydration)) commits.lose(error);
      else if (commits.inDoubt && isOfTheLoss(error)) await commits.settle();
      const tainted = regions.isTainted(hydration);
      regions.fail(hydration);
      // A source that was closed, so that a stop need not wait for it, is none that fails.
      if (stop.aborted && (error === stop.reason || error instanceof SourceReadError)) return;
      if (!tainted || !isOfTheLoss(error)) throw error;
      this.#lost = true;
      return;
    } finally {
      this.#hurries.delete(onAwaited);
      this.pace.end(batch);
      this.#copyingBytes -= copyingBytes;
    }
    if (regions.complete(hydration)) this.#hydratedRegions += batch.end - batch.start;
    else this.#lost = true;
  }

  #setAside({ start, end }: RegionRange, error: SourceReadError): void {
    this.#lastReadError = error;
    if (isOfWholeSource(error)) this.#fail(error);
    this.#putOff.push({ start, end, error: end - start === 1 ? error : undefined });
  }

  /** Reads what it can of the batches that were put off, and gives up on the rest. */
  async #settle(stop: AbortSignal): Promise<void> {
    await Promise.all(this.#batches);
    const areas = this.#putOff;
    this.#putOff = [];
    this.pace.changed.wake();
    const { retry, onError, maxErrors, limit } = this.#settings;
    const errorsLeft = onError === "stop" ? 0 : Math.max(0, maxErrors - this.#unreadable.count);
    await rescueAreas(areas, {
      tryUnit: (region) => this.#tryAlone(region, stop),
      giveUp: (region, error) => this.#giveUp(region, error),
      isOver: () => stop.aborted || this.#bytesLeft() <= 0,
      retry,
      pause: (round) => {
        const pauseMs = Math.min(FIRST_RETRY_MS * 2 ** (round - 1), LONGEST_RETRY_MS);
        return this.#parts.clock.sleep(pauseMs, stop);
      },
      mostFailed: Math.min(MOST_FAILED, errorsLeft),
      width: limit === null ? (this.#parts.rescueWidth ?? 1) : 1, // what several may still copy is not known beforehand
    });
  }

  /** The error of a region that cannot be read; undefined when it was hydrated, somebody else is at it, or all was stopped. */
  async #tryAlone(region: Region, stop: AbortSignal): Promise<SourceReadError | undefined> {
    while (!this.#isOver(stop) && this.pace.roomFor(1) === 0) await this.pace.change();
    if (stop.aborted || this.#parts.regions.state(region) !== "unhydrated") return undefined;
    try {
      await this.#hydrate({ start: region, end: region + 1, zeros: false }, stop);
      return undefined;
    } catch (error) {
      if (!(error instanceof SourceReadError) || isOfWholeSource(error)) throw error;
      this.#lastReadError = error;
      return error;
    } finally {
      this.pace.changed.wake();
    }
  }

  #giveUp(region: Region, error: SourceReadError): void {
    this.#firstReadError ??= error;
    this.#unreadable.add(region);
    const { onError, maxErrors } = this.#settings;
    this.#gaveUp = onError === "stop" || this.#unreadable.count > maxErrors;
    if (!this.#gaveUp) return;
    if (onError === "stop") this.#fail(error);
    else {
      this.#fail(
        new CloneError(
          "failed",
          `Cannot go on: ${this.#unreadable.count} unreadable regions are more than --max-errors ${maxErrors} allows`,
          { hint: `The last one: ${error.message}`, cause: error },
        ),
      );
    }
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
    this.#parts.halt.abort(error);
  }

  /** What a last commit threw matters more than what came before it, unless it only could not be made for now. */
  #failInstead(error: unknown): void {
    if (this.#parts.commits.failure !== undefined || !(error instanceof CloneError)) this.#failure = error;
  }
}

/** Whether an error of what the destination has lost may be due to that, and says nothing of another try. */
function isOfTheLoss(error: unknown): boolean {
  if (error instanceof LostWritesError) return true;
  return error instanceof DeviceError && !(error instanceof SourceReadError) && !error.away;
}

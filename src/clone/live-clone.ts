/**
 * A clone at work online: the engine put together over an open clone, for a server to show to clients.
 *
 *     online ──finalize()──► linear          the destination alone: no metadata, no source, no bitmaps
 *        │                     │
 *        └───────stop()────────┴──► stopped  drained, flushed, committed, the books closed
 *
 * A failed flush or commit ends hydration and writes, not reads: see `CloneDevice`.
 */
import { systemClock } from "../base/clock.ts";
import { CloneError, DeviceError } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import { RateMeter } from "../base/rate-meter.ts";
import type { Tuning } from "../control/control-target.ts";
import type { FinalizeAsked } from "../control/tuning.ts";
import type { CloneDevice } from "../engine/clone-device.ts";
import type { AttachedSource, Clone } from "./clone.ts";
import { hydratedBytes, type RunningState } from "./clone-status.ts";
import { type FinalizeReport, keepsMetadata, recordFinalized, refuseMissing } from "./finalize-clone.ts";
import { changeAsError, rememberChange } from "./hydrate-clone.ts";
import { assemble, type Devices, type Engine, type LiveEvents, type LiveRequest } from "./live-engine.ts";
import { fillMissing } from "./live-finalize.ts";
import { removeMetadata } from "./metadata-file.ts";
import { OnReadPolicy } from "./on-read-policy.ts";
import { settleSource } from "./open-devices.ts";
import { attachSourceToCopy } from "./unfinished-source.ts";

/** What hangs at a device when the clone is stopped is waited for no longer than this. */
const DRAIN_MS = 5000;
/** When nothing was hydrated for so long, the status says so; unless the rate is so low that this is no wonder. */
const SILENCE_SECONDS = 10;
const SLOW_RATE = 2 ** 20;
/** How often the pace of hydration is looked at, ms. */
const SAMPLE_INTERVAL_MS = 1000;

/** A clone at work. Made by `open()`, put to work by `run()`, ended by `stop()`; the `Clone` stays the caller's, who disposes of it after that. */
export class LiveClone {
  /** What clients see. */
  readonly device: CloneDevice;
  readonly #clone: Clone;
  readonly #engine: Engine;
  #events: LiveEvents | undefined;
  readonly #onRead: OnReadPolicy;
  readonly #sourceTimeoutMs: number;
  /** Ends background hydration; a new one once it begins anew. */
  #hydrating = new AbortController();
  /** Ends what a finalize still reads. */
  readonly #stopping = new AbortController();
  #isFinalizing = false;
  #hydration: Promise<void> = Promise.resolve();
  #finalized: Promise<FinalizeReport> | undefined;
  /** Settles when nothing reads the source any more, after a finalize. */
  #sourceReleased: Promise<void> | undefined;
  /** The last that was known before the metadata was let go. */
  #last: LiveCounts | undefined;
  readonly #meter = new RateMeter();
  /** All that hydration has done when it was last looked at, and when it last was more than before. */
  #moved = -1;
  #movedAt = systemClock.now();
  readonly #sampling: NodeJS.Timeout;

  private constructor(clone: Clone, devices: Devices, request: LiveRequest) {
    this.#clone = clone;
    const engine = assemble(clone, devices, request, () => this.#events);
    this.#engine = engine;
    this.device = engine.device;
    this.#sourceTimeoutMs = request.sourceTimeoutMs;
    this.#onRead = new OnReadPolicy(engine.device, engine.source, request.hydrateOnRead);
    this.#sample();
    this.#sampling = setInterval(() => this.#sample(), SAMPLE_INTERVAL_MS);
    this.#sampling.unref();
  }

  /**
   * Opens the clone's devices and makes them ready to be written to.
   * @throws {CloneError} where it is finalized, or its devices are not its own
   */
  static async open(clone: Clone, request: LiveRequest): Promise<LiveClone> {
    if (clone.finalized !== null) {
      throw new CloneError("failed", `Cannot serve "${clone.path}": it is finalized, the destination stands alone`, {
        hint: "qemu-nbd or nbdkit serve a plain image.",
      });
    }
    const destination = await clone.attachDestination(request, "read-write");
    const source = await attachSourceIfNeeded(clone, request);
    if (source !== undefined && request.extents) await settleSource(source);
    await clone.beginWriting(request);
    if (!request.readOnly) await clone.updateDescriptor({ served: true });
    return new LiveClone(clone, { source, destination }, request);
  }

  /** Begins to hydrate, unless that is to wait, and to commit. */
  run(events: LiveEvents, { hydrate }: { hydrate: boolean }): void {
    const { hydrator, periodic, governor } = this.#engine;
    this.#events = events;
    if (!hydrate) hydrator.pause();
    periodic.start();
    governor.start();
    this.#hydrate();
  }

  #hydrate(): void {
    const { hydrator, governor, commits } = this.#engine;
    const { signal } = this.#hydrating;
    this.#hydration = hydrator.run(signal).then(
      (end) => {
        // Told to end at the same moment, it has nothing to tell: whoever did so goes on with what there is.
        if (end !== "complete" || signal.aborted) return;
        void governor.stop(); // nothing is left to hold back, and measuring costs each turn a little
        this.#events?.onHydrated();
      },
      // The pipeline has told of its own failure; anything else shows a mistake, after which nothing is vouched for.
      (error: unknown) => commits.fail(asError(error)),
    );
  }

  /** What it is like at this moment, as a status tells it. */
  get state(): Omit<RunningState, "server"> {
    const { hydrator, governor, copier, commits } = this.#engine;
    const { copied, reflinked, zeroed, skipped } = copier.counts;
    const counts = this.#counts();
    return {
      ...counts,
      failure: commits.failure,
      finalized: this.device.isLinear,
      paused: hydrator.paused || hydrator.threshold === 0,
      hydrating: hydrator.working,
      stalled: hydrator.stalled?.reason ?? this.#silence(),
      rate: governor.rate,
      minRate: governor.minRate,
      threshold: hydrator.threshold,
      batchSize: hydrator.batchSize,
      hydrateOnRead: this.#onRead.policy,
      bytesPerSecond: this.#meter.bytesPerSecond,
      etaSeconds: hydrator.paused ? null : this.#meter.secondsLeft(this.#clone.geometry.size),
      copiedBytes: copied,
      reflinkedBytes: reflinked,
      zeroedBytes: zeroed,
      skippedBytes: skipped,
    };
  }

  /** The hydrated regions, ascending; all of them once the destination stands alone. */
  hydratedRanges(): Iterable<RegionRange> {
    if (this.#last !== undefined) return [{ start: 0, end: this.#clone.geometry.regionCount }];
    return this.#clone.metadata.hydratedRanges();
  }

  /** What was done since it was opened, for metrics: bytes and events by name, and seconds by quantile. */
  metrics(): {
    bytes: Record<string, number>;
    events: Record<string, number>;
    foregroundLatency: Record<string, number>;
  } {
    const { copier, meter } = this.#engine;
    const bytes: Record<string, number> = { ...copier.counts };
    const events: Record<string, number> = {};
    const { writeBehindBytes: _momentary, ...counters } = this.device.stats;
    for (const [name, count] of Object.entries(counters)) {
      if (name.endsWith("Bytes")) bytes[name.slice(0, -"Bytes".length)] = count;
      else events[name] = count;
    }
    const foregroundLatency = { "0.5": meter.latency(0.5) / 1000, "0.99": meter.latency(0.99) / 1000 };
    return { bytes, events, foregroundLatency };
  }

  /** Changes what is given, at once. */
  tune(changes: Tuning): void {
    const { hydrator, governor } = this.#engine;
    if (changes.rate !== undefined) governor.rate = changes.rate;
    if (changes.minRate !== undefined) governor.minRate = changes.minRate;
    if (changes.threshold !== undefined) hydrator.tune({ threshold: changes.threshold });
    if (changes.batchSize !== undefined) hydrator.tune({ batchSize: changes.batchSize });
    if (changes.hydrateOnRead !== undefined) this.#onRead.policy = changes.hydrateOnRead;
    if (changes.paused === true) hydrator.pause();
    if (changes.paused === false) hydrator.resume();
  }

  /** Makes everything durable that is hydrated or written so far. @throws {CloneError} */
  async commit(): Promise<void> {
    await this.#engine.commits.flush();
  }

  /**
   * Makes the destination stand alone while clients go on using it; once, whoever asks.
   * @throws {CloneError} where regions are missing, or a device fails
   */
  finalize(request: FinalizeAsked): Promise<FinalizeReport> {
    if (this.#stopping.signal.aborted) return Promise.reject(this.#stopping.signal.reason);
    this.#finalized ??= this.#finalize(request).catch((error: unknown) => {
      this.#finalized = undefined;
      this.#isFinalizing = false;
      this.#goOnHydrating();
      throw error;
    });
    return this.#finalized;
  }

  /**
   * Ends it: what is under way is finished, what is hydrated is made durable, and how things are left is recorded.
   * @returns whether something still hangs at a device: then only leaving the process ends it
   * @throws {CloneError} why the clone failed
   */
  async stop(): Promise<{ stuck: boolean }> {
    clearInterval(this.#sampling);
    this.#stopping.abort(new CloneError("failed", `Cannot finalize "${this.#clone.path}": its server ends`));
    this.#hydrating.abort();
    // Of an error of a finalize, whoever asked for it hears.
    const ended = Promise.all([this.#finalized?.catch(() => {}), this.#hydration, this.device.drain()]);
    let stuck = !(await settlesWithin(ended, DRAIN_MS));
    try {
      await this.#closeBooks({ stuck });
      this.#events = undefined; // what hung, and goes on after this, meets closed devices: that is no failure of the clone
    } catch (error) {
      await this.#rememberChange();
      throw error;
    } finally {
      // Last, since commits ask the source too. Reads that were given up may still hang in it.
      stuck ||= !(await settlesWithin(this.#sourceReleased ?? this.#clone.releaseSource(), DRAIN_MS));
    }
    return { stuck };
  }

  /** `stuck`: something still hangs, which may write to the destination, and hydrate, whenever it goes on. */
  async #closeBooks({ stuck }: { stuck: boolean }): Promise<void> {
    const { device, periodic, governor, commits, hydrator } = this.#engine;
    await governor.stop();
    await periodic.stop();
    await device[Symbol.asyncDispose]();
    await commits.flush();
    if (device.isLinear || this.#isFinalizing) return; // a finalize that is only slow writes its own record
    const ranges = hydrator.unreadable;
    const complete = hydrator.triedAll;
    const inexact = !complete && ranges.length > 0 && (this.#clone.descriptor?.unreadable.inexact ?? false);
    const unreadable = { ranges, inexact, complete };
    // What is recorded of the destination and of the bits has to hold until the next run. Else this one counts as cut off.
    if (stuck) await this.#clone.updateDescriptor({ unreadable });
    else await this.#clone.settle({ unreadable });
  }

  async #finalize(request: FinalizeAsked): Promise<FinalizeReport> {
    const clone = this.#clone;
    const { hydrator, commits, device, destination, periodic } = this.#engine;
    commits.check();
    const unreadable = { ranges: hydrator.unreadable, inexact: false, complete: hydrator.triedAll };
    await clone.updateDescriptor({ unreadable });
    refuseMissing(clone, request);
    this.#isFinalizing = true;
    this.#hydrating.abort();
    await this.#hydration;
    const keeps = keepsMetadata(clone, request);
    const { signal } = this.#stopping;
    const parts = { clone, engine: this.#engine, sourceTimeoutMs: this.#sourceTimeoutMs, signal };
    const missing = await fillMissing(parts, request, (zeroed) =>
      recordFinalized(clone, destination, { missing: zeroed, verified: false, keepsMetadata: keeps }),
    );
    await periodic.stop();
    // A client that wrote to what was missing may still have its region in hand for a moment.
    for (; !device.becomeLinear(); await systemClock.sleep(1)) commits.check();
    this.#last = this.#counts();
    await device.drainLive();
    if (!keeps) await removeMetadata(clone.path);
    await clone.releaseMetadata();
    this.#sourceReleased = clone.releaseSource();
    this.#sourceReleased.catch((error: Error) => clone.warn(error.message));
    return {
      destination: destination.device.name,
      size: clone.exactSize,
      verified: false,
      unreadable: missing,
      metadata: keeps ? clone.path : null,
    };
  }

  /** After a finalize that failed, what is missing is still wanted. */
  #goOnHydrating(): void {
    const { regions, commits } = this.#engine;
    const isMissing = !this.device.isLinear && regions.hydratedCount < regions.regionCount;
    if (!isMissing || !this.#hydrating.signal.aborted || this.#stopping.signal.aborted || commits.failure !== undefined)
      return;
    this.#hydrating = new AbortController();
    this.#hydrate();
  }

  /** A block device has no time of change that the next run could look at. */
  async #rememberChange(): Promise<void> {
    const { source, commits } = this.#engine;
    if (source?.file?.kind !== "block" || commits.failure instanceof DeviceError) return;
    if ((await changeAsError(source)) !== undefined) await rememberChange(this.#clone, source);
  }

  #counts(): LiveCounts {
    if (this.#last !== undefined) return this.#last;
    const { metadata } = this.#clone;
    return {
      hydratedRegions: metadata.hydratedCount,
      committedRegions: metadata.committedCount,
      hydratedBytes: hydratedBytes(this.#clone),
      hydratingRegions: this.#engine.regions.hydratingCount,
      unreadable: this.#engine.hydrator.unreadable,
      usedBlocks: metadata.usedBlocks,
      totalBlocks: metadata.totalBlocks,
    };
  }

  /** That nothing has been hydrated for a while although it should be, or undefined. */
  #silence(): string | undefined {
    const { hydrator, governor, regions } = this.#engine;
    const isIdle = hydrator.paused || !hydrator.working || regions.hydratingCount === 0;
    const isSlow = governor.rate !== null && governor.rate < SLOW_RATE;
    const seconds = Math.floor((systemClock.now() - this.#movedAt) / 1000);
    if (isIdle || isSlow || seconds < SILENCE_SECONDS) return undefined;
    const why = hydrator.lastReadError;
    return `Nothing was copied for ${seconds} s${why === undefined ? ", the source does not answer" : `. ${why}`}`;
  }

  #sample(): void {
    const { copied, reflinked, zeroed, skipped } = this.#engine.copier.counts;
    const { hydratedBytes: done, hydratingRegions } = this.#counts();
    const moved = copied + reflinked;
    if (moved + zeroed + skipped + done !== this.#moved || hydratingRegions === 0) this.#movedAt = systemClock.now();
    this.#moved = moved + zeroed + skipped + done;
    this.#meter.add(systemClock.now(), { done, moved });
  }
}

/** What the metadata tells of a live clone. */
type LiveCounts = Pick<
  RunningState,
  | "hydratedRegions"
  | "committedRegions"
  | "hydratedBytes"
  | "hydratingRegions"
  | "unreadable"
  | "usedBlocks"
  | "totalBlocks"
>;

/** A clone that is complete can do without its source, which may be gone by now. */
async function attachSourceIfNeeded(clone: Clone, request: LiveRequest): Promise<AttachedSource | undefined> {
  try {
    return await attachSourceToCopy(clone, request);
  } catch (error) {
    if (!(error instanceof CloneError) || !clone.isComplete || request.source !== undefined) throw error;
    return undefined;
  }
}

/** Resolves to whether a promise settles in time. Its error is somebody else's to hear. */
async function settlesWithin(promise: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  const waiting = new AbortController();
  const settled = promise.then(
    () => true,
    () => true,
  );
  const timeout = systemClock.sleep(timeoutMs, waiting.signal).then(() => false);
  const inTime = await Promise.race([settled, timeout]);
  waiting.abort();
  return inTime;
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

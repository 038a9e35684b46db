/**
 * A clone as its clients see it: a device on which all data is there at once.
 *
 *     read      ──► RegionReader    destination or source, by region ──► SourceReader, WriteBehind (hydration on read)
 *     write     ─┐
 *     zero      ─┼► RegionChanger   destination; in place of a copy; or after one ──► DemandCopies
 *     discard   ─┘
 *     flush     ──► CommitPipeline  destination's flush, and the bits that say what it holds
 *
 *     live ──becomeLinear()──► linear    every region is hydrated, and that is on disk: straight to the destination
 *
 * After a failed flush or commit the clone is `failed`: reads go on from what is true in memory, everything else is
 * refused, since it could never be made durable. (dm-clone reads the old bits again, and completed writes disappear.)
 *
 * A destination that was away may have lost what was not flushed, and then the pipeline takes bits back. What was read from it
 * meanwhile may be what it held before: such a read is made again, from where the truth is now.
 */
import type { Clock } from "../base/clock.ts";
import { DeviceError } from "../base/errors.ts";
import type { ByteRange, Geometry, RegionRange } from "../base/geometry.ts";
import type { BlockDevice, Extent } from "../device/block-device.ts";
import { checkRange, checkWritable } from "../device/range-check.ts";
import type { ServedDevice, ServedZeroOptions, StatusContext } from "../device/served-device.ts";
import { type CloneDeviceStats, emptyStats } from "./clone-device-stats.ts";
import type { CommitPipeline } from "./commit-pipeline.ts";
import { DemandCopies } from "./demand-copies.ts";
import type { ExtentCache } from "./extent-cache.ts";
import type { HintKind } from "./hint-queue.ts";
import { InFlight } from "./in-flight.ts";
import type { ReadsInFlight } from "./reads-in-flight.ts";
import { type Change, RegionChanger } from "./region-changer.ts";
import type { RegionCopier } from "./region-copier.ts";
import type { RegionMap } from "./region-map.ts";
import { type HydrateOnRead, RegionReader } from "./region-reader.ts";
import { hydratedContext, RegionStatus } from "./region-status.ts";
import { showZeros } from "./show-zeros.ts";
import { SourceReader } from "./source-reader.ts";
import { WriteBehind } from "./write-behind.ts";

export type { HydrateOnRead };

/** Told of what clients do, so that the background can keep out of their way. */
export interface ForegroundObserver {
  /** A request begins that will be waited for; returns what `end()` is to be given. */
  begin(): number;
  end(token: number): void;
  /** A request was served at once. */
  touch(): void;
}

/** What a clone is made of. Nothing of it is owned. */
export interface CloneDeviceParts {
  geometry: Geometry;
  /** Bytes that clients see: `geometry.size`, or a little less where the source is no whole number of sectors. */
  exactSize: number;
  regions: RegionMap;
  /** In whole sectors, as long as the geometry says, or longer. */
  source: BlockDevice;
  destination: BlockDevice;
  /** The source's holes. */
  extents: ExtentCache;
  commits: CommitPipeline;
  /** For regions that somebody waits for: one of its own, without a rate limit. */
  copier: RegionCopier;
  clock: Clock;
  meter: ForegroundObserver;
  /** Told of regions that will be wanted soon; those that are hydrated already may be among them. Must be quick. */
  onHint: (range: RegionRange, kind: HintKind) => void;
  /**
   * Told of bytes that clients need: what they read, from wherever, and what they change of regions that have to be copied for
   * it. More than once, too. Must be quick.
   */
  onTouch?: ((offset: number, length: number) => void) | undefined;
  hydrateOnRead: HydrateOnRead;
  /** Whether the destination may be told what is not needed any more. */
  discardPassdown: boolean;
  readOnly: boolean;
  /** How long a client waits for the source at most, ms; Infinity for ever. */
  sourceTimeoutMs: number;
  /** Reads of the source for clients at once; each may take a thread for as long as the source hangs. Default 8. */
  sourceDepth?: number;
  /** Bytes of such reads in flight. Default: no bound of their own. */
  sourceBytes?: number;
  /** Where each read costs a round trip: the reads of all who read the source, copiers included. Default: clients' alone. */
  reads?: ReadsInFlight;
  /** How often a read that a client waits for is tried again after a passing error of the source. Default 0. */
  retry?: number;
  /** Whether bytes of the source have been found unreadable before. */
  isUnreadable?: (range: ByteRange) => boolean;
  /** Where each read costs a round trip: how far ahead of a sequential reader to read, bytes. Default: it is only hinted at. */
  readAheadBytes?: () => number;
  /** From 0 to 1, for the pauses between such tries. Default: the machine's. */
  random?: () => number;
  /** Bytes on their way from a read to the destination at most. Default 32 MiB. */
  writeBehindBytes?: number;
}

const SOURCE_DEPTH = 8;
const WRITE_BEHIND_BYTES = 32 * 2 ** 20;
/** What was read from a source far away and is kept for a copy that is about to ask for it, bytes. */
const KEPT_BYTES = 8 * 2 ** 20;
/** How often something is read again because the destination was away meanwhile. */
const MOST_ATTEMPTS = 10;
/** Parts of one write at work at once. */
const WRITE_WIDTH = 16;
/** Of a request without data, which may be as long as the clone: others have work too. */
const ZERO_WIDTH = 2;

/** What only a clone has, and a destination that stands alone has not. */
interface Live {
  regions: RegionMap;
  geometry: Geometry;
  source: SourceReader;
  reader: RegionReader;
  changer: RegionChanger;
  status: RegionStatus;
  onHint: CloneDeviceParts["onHint"];
}

/** A served clone. It does not own its devices; disposing of it only stops its timers. */
export class CloneDevice implements ServedDevice {
  readonly name: string;
  readonly size: number;
  readonly readOnly: boolean;
  readonly blockSize: number;
  readonly contexts: readonly StatusContext[];
  readonly #destination: BlockDevice;
  readonly #commits: CommitPipeline;
  readonly #meter: ForegroundObserver;
  readonly #discardPassdown: boolean;
  readonly #onTouch: CloneDeviceParts["onTouch"];
  /** What is under way; once it is linear, what has begun since. */
  #inFlight = new InFlight();
  /** What began before it became linear, and still has what it had then. */
  #inFlightBefore: InFlight | undefined;
  readonly #stats = emptyStats();
  /** Undefined once it is linear. A request that began before keeps what it had. */
  #live: Live | undefined;

  constructor(parts: CloneDeviceParts) {
    const { geometry, exactSize, regions, destination, extents, commits, copier, clock, onHint, onTouch } = parts;
    this.name = destination.name;
    this.size = exactSize;
    this.readOnly = parts.readOnly;
    this.blockSize = destination.blockSize;
    this.#destination = destination;
    this.#commits = commits;
    this.#meter = parts.meter;
    this.#discardPassdown = parts.discardPassdown;
    this.#onTouch = onTouch;
    const stats = this.#stats;
    const inFlight = this.#inFlight;
    const mostBytes = parts.writeBehindBytes ?? WRITE_BEHIND_BYTES;
    const depth = parts.sourceDepth ?? SOURCE_DEPTH;
    const trying = {
      ...(parts.retry !== undefined && { retry: parts.retry }),
      ...(parts.isUnreadable && { isUnreadable: parts.isUnreadable }),
      ...(parts.random && { random: parts.random }),
    };
    const source = new SourceReader({
      source: parts.source,
      clock,
      timeoutMs: parts.sourceTimeoutMs,
      depth,
      stats,
      ...(parts.sourceBytes !== undefined && { mostBytes: parts.sourceBytes }),
      ...(parts.reads && { reads: parts.reads, keptBytes: KEPT_BYTES }),
      ...trying,
    });
    const behind = new WriteBehind({ geometry, regions, destination, commits, clock, mostBytes, stats, inFlight });
    const copies = new DemandCopies({ geometry, regions, copier, commits, stats, inFlight, clock, ...trying });
    this.#live = {
      regions,
      geometry,
      source,
      reader: new RegionReader(
        {
          geometry,
          exactSize,
          regions,
          source,
          destination,
          behind,
          onHint,
          stats,
          ...(parts.readAheadBytes && { readAheadBytes: parts.readAheadBytes }),
        },
        parts.hydrateOnRead,
      ),
      changer: new RegionChanger({ geometry, exactSize, regions, source, copies, commits, stats, onTouch }),
      status: new RegionStatus({ geometry, regions, destination, extents, source }),
      onHint,
    };
    this.contexts = [hydratedContext(() => this.#live?.status)];
  }

  /** What it has done so far; live, not a copy. */
  get stats(): Readonly<CloneDeviceStats> {
    return this.#stats;
  }

  /** Requests and copies under way. */
  get inFlight(): number {
    return this.#inFlight.count + (this.#inFlightBefore?.count ?? 0);
  }

  /** Whether requests go straight to the destination, for good. */
  get isLinear(): boolean {
    return this.#live === undefined;
  }

  get hydrateOnRead(): HydrateOnRead {
    return this.#live?.reader.hydrateOnRead ?? "never";
  }

  set hydrateOnRead(value: HydrateOnRead) {
    if (this.#live !== undefined) this.#live.reader.hydrateOnRead = value;
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    checkRange(this, offset, buffer.length);
    this.#onTouch?.(offset, buffer.length);
    const done = this.#live?.reader.tryRead(offset, buffer) ?? this.#destination.tryRead?.(offset, buffer) ?? false;
    if (!done) return false;
    this.#meter.touch();
    this.#stats.reads++;
    this.#stats.readBytes += buffer.length;
    return true;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    this.#onTouch?.(offset, buffer.length);
    await this.#counted(() =>
      this.#measured(() =>
        this.#steady((onDestination) => {
          if (this.#live !== undefined) return this.#live.reader.read(offset, buffer, onDestination);
          onDestination();
          return this.#destination.read(offset, buffer);
        }),
      ),
    );
    this.#stats.reads++;
    this.#stats.readBytes += buffer.length;
  }

  tryWrite(offset: number, data: Uint8Array): boolean {
    this.#checkChange(offset, data.length);
    const live = this.#live;
    if (live !== undefined && !isHydrated(live, offset, data.length)) return false;
    if (this.#commits.failure !== undefined) throw this.#commits.failure;
    if (this.#destination.tryWrite === undefined || this.#commits.strayIn({ offset, length: data.length }))
      return false;
    if (!this.#destination.tryWrite(offset, data)) return false;
    this.#commits.noteChange();
    this.#meter.touch();
    this.#stats.writes++;
    this.#stats.writtenBytes += data.length;
    return true;
  }

  async write(offset: number, data: Uint8Array, { fua = false }: { fua?: boolean } = {}): Promise<void> {
    this.#checkChange(offset, data.length);
    await this.#counted(async () => {
      await this.#measured(() => this.#write(offset, data));
      if (fua) await this.#makeDurable();
    });
    this.#stats.writes++;
    this.#stats.writtenBytes += data.length;
  }

  /** Durable is what was answered before the call: data, and the bits that say where it lies. */
  async flush(): Promise<void> {
    await this.#counted(() => this.#commits.flush());
    this.#stats.flushes++;
  }

  async zero(offset: number, length: number, options: ServedZeroOptions = {}): Promise<void> {
    this.#checkChange(offset, length);
    const { mayPunch = true, fua = false, fast = false } = options;
    await this.#counted(async () => {
      if (fast) await this.#refuseSlow(offset, length, mayPunch);
      await this.#zero(offset, length, mayPunch);
      if (fua) await this.#makeDurable();
    });
    this.#stats.zeroes++;
    this.#stats.zeroedBytes += length;
  }

  async discard(offset: number, length: number, { fua = false }: { fua?: boolean } = {}): Promise<void> {
    this.#checkChange(offset, length);
    await this.#counted(async () => {
      await this.#discard(offset, length);
      if (fua) await this.#makeDurable();
    });
    this.#stats.discards++;
    this.#stats.discardedBytes += length;
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    if (length === 0) return [];
    return await this.#counted(() =>
      this.#steady((onDestination) => {
        onDestination();
        return (this.#live?.status ?? this.#destination).extents(offset, length);
      }),
    );
  }

  /** Passed on from the first to the last region that is not hydrated. */
  hint(offset: number, length: number): void {
    this.#stats.hints++;
    const live = this.#live;
    if (live === undefined || length === 0) return;
    const { start, end } = live.geometry.regionsTouching({ offset, length });
    const first = live.regions.nextUnhydrated(start, end, 1)?.start;
    if (first !== undefined) live.onHint({ start: first, end }, "asked");
  }

  /**
   * From now on every request goes straight to the destination. False, with nothing changed, as long as not everything is
   * hydrated, committed, and at rest. Requests that began before may still look at the maps and the source: only when
   * `drainLive()` has resolved may those go.
   */
  becomeLinear(): boolean {
    const live = this.#live;
    if (live === undefined) return true;
    if (!this.#commits.complete || live.regions.hydratingCount > 0 || this.#commits.failure !== undefined) return false;
    this.#commits.release();
    this.#live = undefined;
    this.#inFlightBefore = this.#inFlight;
    this.#inFlight = new InFlight();
    void this.#inFlightBefore.idle().then(() => live.source.close());
    return true;
  }

  /** Resolves when no request is under way that began before it became linear. */
  async drainLive(): Promise<void> {
    await this.#inFlightBefore?.idle();
  }

  /** Resolves when no request, no copy that one waited for, and no write behind is under way. Nothing is refused. */
  async drain(): Promise<void> {
    await this.drainLive();
    await this.#inFlight.idle();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#live?.source.close();
  }

  async #write(offset: number, data: Uint8Array): Promise<void> {
    const destination = this.#destination;
    const commits = this.#commits;
    await this.#calm(offset, data.length);
    commits.check();
    const live = this.#live;
    if (live === undefined || isHydrated(live, offset, data.length)) {
      return await commits.change(() => destination.write(offset, data));
    }
    const write = (range: { offset: number; length: number }): Promise<void> => {
      const start = range.offset - offset;
      return destination.write(range.offset, data.subarray(start, start + range.length));
    };
    const width = WRITE_WIDTH;
    await this.#change(live, offset, data.length, {
      apply: write,
      replace: write,
      width,
      counter: "overwrittenRegions",
    });
  }

  async #zero(offset: number, length: number, mayPunch: boolean): Promise<void> {
    await this.#calm(offset, length);
    this.#commits.check();
    const destination = this.#destination;
    const live = this.#live;
    if (live === undefined) return await this.#commits.change(() => destination.zero(offset, length, { mayPunch }));
    await this.#change(live, offset, length, {
      apply: (range) => destination.zero(range.offset, range.length, { mayPunch }),
      // What must be allocated is zeroed though it may show zeros already: a hole shows them too.
      replace: (range) =>
        mayPunch
          ? showZeros(destination, range, { mayPunch })
          : destination.zero(range.offset, range.length, { mayPunch }),
      width: ZERO_WIDTH,
      counter: "zeroedRegions",
    });
  }

  /**
   * What is discarded reads as zeros afterwards, as far as that is quick: NBD does not ask for it, but nbdfuse and
   * qemu-storage-daemon discard where the kernel has asked them to punch a hole, and a file system on top counts on zeros.
   * For the same reason a region of which a part is discarded is copied: what it holds otherwise is wanted after all.
   */
  async #discard(offset: number, length: number): Promise<void> {
    this.#commits.check();
    const destination = this.#destination;
    const mayPunch = this.#discardPassdown;
    const isFast = (await destination.canZeroFast?.({ mayPunch })) ?? false;
    const apply = async (range: { offset: number; length: number }): Promise<void> => {
      if (isFast) await destination.zero(range.offset, range.length, { mayPunch });
      else if (mayPunch) await destination.discard(range.offset, range.length);
    };
    await this.#calm(offset, length);
    this.#commits.check();
    const live = this.#live;
    if (live === undefined) return await this.#commits.change(() => apply({ offset, length }));
    // Where nothing would become of a part, it need not be copied either.
    const range = isFast || mayPunch ? { offset, length } : wholeRegions(live, offset, length, this.size);
    await this.#change(live, range.offset, range.length, {
      apply,
      // Not copied, but what an earlier life of the destination has left must not show through either.
      replace: (range) => showZeros(destination, range, { mayPunch }),
      width: ZERO_WIDTH,
      counter: "discardedRegions",
    });
  }

  /** Before a change: what was lost is taken back, and what may still land has landed. */
  async #calm(offset: number, length: number): Promise<void> {
    const calm = this.#commits.calm({ offset, length });
    if (calm !== undefined) await calm;
  }

  async #change(live: Live, offset: number, length: number, change: Change): Promise<void> {
    await live.changer.change({ offset, length }, change);
  }

  /** @throws {DeviceError} ENOTSUP where zeroing would take longer than a discard */
  async #refuseSlow(offset: number, length: number, mayPunch: boolean): Promise<void> {
    const isFree = (): boolean => this.#live?.changer.isFree({ offset, length }) ?? true;
    const isFast = isFree() && ((await this.#destination.canZeroFast?.({ mayPunch })) ?? false) && isFree();
    if (isFast) return;
    throw new DeviceError(`Cannot zero ${length} bytes at ${offset} of "${this.name}" fast: ENOTSUP`, {
      errno: "ENOTSUP",
      offset,
      length,
    });
  }

  /**
   * What a look finds, made again where the destination, of which it tells then, was away, or lost something, meanwhile. The
   * source's bytes are right whatever the destination loses: bits that are taken back make more of them the truth.
   */
  async #steady<T>(look: (onDestination: () => void) => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      const { losses } = this.#commits;
      let looked = false;
      const found = await look(() => {
        looked = true;
      });
      if (!looked) return found;
      const away = this.#commits.inDoubt ? await this.#commits.settle() : undefined;
      if (this.#commits.losses === losses) return found;
      // Where it is away what was taken back is the source's now; what is not will have to wait for it again.
      if (away !== undefined && attempt > 1) throw away;
      if (attempt < MOST_ATTEMPTS) continue;
      throw new DeviceError(`Cannot read from "${this.name}": it is lost and found again and again (EIO)`, {
        errno: "EIO",
      });
    }
  }

  async #makeDurable(): Promise<void> {
    await this.#commits.flush();
    this.#stats.durableChanges++;
  }

  #checkChange(offset: number, length: number): void {
    checkRange(this, offset, length);
    checkWritable(this);
  }

  /** For reads and writes, whose time says how busy the devices are; the time of a flush would say something else. */
  async #measured(operation: () => Promise<void>): Promise<void> {
    const token = this.#meter.begin();
    try {
      await operation();
    } finally {
      this.#meter.end(token);
    }
  }

  /** Everything that takes time is counted, so that it can be waited for. */
  async #counted<T>(operation: () => Promise<T>): Promise<T> {
    const inFlight = this.#inFlight;
    inFlight.begin();
    try {
      return await operation();
    } catch (error) {
      this.#stats.failures++;
      throw error;
    } finally {
      inFlight.end();
    }
  }
}

/** The part of a range that consists of whole regions, as clients see them. */
function wholeRegions({ geometry }: Live, offset: number, length: number, size: number): ByteRange {
  const reachesEnd = offset + length === size;
  const inside = geometry.regionsInside({ offset, length: reachesEnd ? geometry.size - offset : length });
  const start = geometry.offsetOf(inside.start);
  return { offset: start, length: Math.max(0, Math.min(size, geometry.offsetOf(inside.end)) - start) };
}

function isHydrated({ geometry, regions }: Live, offset: number, length: number): boolean {
  const { regionSize } = geometry;
  return regions.isHydrated(Math.floor(offset / regionSize), Math.ceil((offset + length) / regionSize));
}

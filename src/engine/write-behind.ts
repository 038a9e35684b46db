/**
 * Hydrates regions from bytes that a client has just read, when the client has its answer already.
 *
 *     begin()   before the source is read: the regions are in the table from there on, and a write or discard that covers
 *               them whole may still cancel
 *     tryLand() when the bytes are there, and the destination takes them without waiting; else
 *     land()    when the bytes are there: written to the destination, zeros by way of zeroing, then the bits
 *
 * What is under way is bounded in bytes, from `begin()` on; beyond that a read is only a read. A failure is nobody's error:
 * the regions stay unhydrated. It rests for a second then, since a full destination would fail the next one too.
 */
import type { Clock } from "../base/clock.ts";
import type { Geometry, RegionRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import type { CloneDeviceStats } from "./clone-device-stats.ts";
import type { CommitPipeline } from "./commit-pipeline.ts";
import type { InFlight } from "./in-flight.ts";
import type { Hydration, RegionMap } from "./region-map.ts";
import { showZeros } from "./show-zeros.ts";

/** What it works on. */
export interface WriteBehindParts {
  geometry: Geometry;
  regions: RegionMap;
  destination: BlockDevice;
  commits: CommitPipeline;
  clock: Clock;
  /** Bytes under way at most. */
  mostBytes: number;
  stats: CloneDeviceStats;
  inFlight: InFlight;
}

/** How long nothing is begun after a failure, ms. */
const REST_MS = 1000;
/** Zeros are looked for in units of this, or of a region: smaller ones would tatter the write, larger ones hide zeros. */
const ZERO_UNIT = 65536;

/** Regions on their way from a reader's buffer to the destination. */
export class WriteBehind {
  readonly #parts: WriteBehindParts;
  readonly #zeros: Buffer;
  #restsUntil = -Infinity;

  constructor(parts: WriteBehindParts) {
    this.#parts = parts;
    this.#zeros = Buffer.alloc(Math.min(ZERO_UNIT, parts.geometry.regionSize));
  }

  /**
   * Enters unhydrated regions in the table, if there is room for their bytes; half of it is left to what somebody has really
   * read. `land()` must follow.
   */
  begin(range: RegionRange, { speculative = false } = {}): Hydration | undefined {
    const { geometry, regions, commits, clock, mostBytes, stats, inFlight } = this.#parts;
    const { length } = geometry.bytesOf(range);
    const most = speculative ? mostBytes / 2 : mostBytes;
    if (stats.writeBehindBytes + length > most || commits.failure !== undefined) return undefined;
    if (clock.now() < this.#restsUntil) return undefined;
    const hydration = regions.begin(range, { cancellable: true });
    stats.writeBehindBytes += length;
    inFlight.begin();
    return hydration;
  }

  /**
   * Ends what `begin()` began. `bytes` are those of the regions, which must not change before this settles; undefined where
   * they could not be read. Never rejects.
   */
  async land(hydration: Hydration, bytes: Uint8Array | undefined): Promise<void> {
    const { geometry, regions, commits, clock, stats, inFlight } = this.#parts;
    const { offset, length } = geometry.bytesOf(hydration);
    if (!regions.land(hydration)) {
      stats.writeBehindCancelled++;
    } else if (bytes === undefined || commits.failure !== undefined) {
      regions.fail(hydration);
    } else {
      try {
        await this.#write(offset, Buffer.from(bytes.buffer, bytes.byteOffset, length));
        if (regions.complete(hydration)) stats.hydratedOnReadBytes += length;
      } catch (error) {
        regions.fail(hydration);
        stats.writeBehindFailures++;
        this.#restsUntil = clock.now() + REST_MS;
        commits.failUnlessOperating(error);
      }
    }
    stats.writeBehindBytes -= length;
    inFlight.end();
  }

  /**
   * Ends at once what `begin()` began; false where that cannot be, and `land()` must follow. `bytes` are those of the regions.
   */
  tryLand(hydration: Hydration, bytes: Uint8Array): boolean {
    const { geometry, regions, destination, commits, stats, inFlight } = this.#parts;
    const { offset, length } = geometry.bytesOf(hydration);
    if (commits.failure !== undefined || this.#hasZeros(bytes) || !regions.land(hydration)) return false;
    try {
      if (destination.tryWrite?.(offset, bytes) !== true) return false;
    } catch {
      return false; // `land()` meets it again, and knows what to do
    }
    if (regions.complete(hydration)) stats.hydratedOnReadBytes += length;
    stats.writeBehindBytes -= length;
    inFlight.end();
    return true;
  }

  /** Writes runs of data, and makes zeros of runs of zeros. */
  async #write(offset: number, bytes: Buffer): Promise<void> {
    const { destination } = this.#parts;
    for (let start = 0; start < bytes.length; ) {
      const zero = this.#isZero(bytes, start);
      let end = start + this.#zeros.length;
      while (end < bytes.length && this.#isZero(bytes, end) === zero) end += this.#zeros.length;
      end = Math.min(end, bytes.length);
      const range = { offset: offset + start, length: end - start };
      const data = bytes.subarray(start, end);
      if (zero) await showZeros(destination, range, { mayPunch: true });
      else if (destination.tryWrite?.(range.offset, data) !== true) await destination.write(range.offset, data);
      start = end;
    }
  }

  /** Whether there is a unit of zeros in them, which is not to be written. */
  #hasZeros(bytes: Uint8Array): boolean {
    const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let start = 0; start < buffer.length; start += this.#zeros.length) {
      if (this.#isZero(buffer, start)) return true;
    }
    return false;
  }

  /** Whether the unit that begins at `start` is all zeros. */
  #isZero(bytes: Buffer, start: number): boolean {
    const end = Math.min(start + this.#zeros.length, bytes.length);
    return bytes.compare(this.#zeros, 0, end - start, start, end) === 0;
  }
}

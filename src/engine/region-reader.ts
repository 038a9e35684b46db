/**
 * Reads for clients: each run of regions from where its truth is, without ever waiting for a hydration.
 *
 *     hydrated                     the destination
 *     unhydrated, and in the table the source: a write that is under way has not been answered, so the old bytes are right;
 *                                  but what a copy has brought to the destination already is there
 *
 * Hydration on read makes use of what the source has given: the regions are entered in the table before it is asked, and
 * are written behind the reader's back. A partly read region is completed by reading a little more (`always`), or left
 * to the background (`whole`).
 *
 * What a sequential reader will want next is hinted at, for the background; or, where each read costs a round trip and reads
 * hydrate, it is read at once as if the reader had asked: the background holds back while there are readers.
 */
import type { ByteRange, Geometry, RegionRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import type { CloneDeviceStats } from "./clone-device-stats.ts";
import type { HintKind } from "./hint-queue.ts";
import { Readahead } from "./readahead.ts";
import type { Hydration, RegionMap } from "./region-map.ts";
import { runParts } from "./run-parts.ts";
import { MOST_READ_AT_ONCE, type SourceReader } from "./source-reader.ts";
import type { WriteBehind } from "./write-behind.ts";

/** Which regions are hydrated by being read: all that a read touches, those that it covers, or none. */
export type HydrateOnRead = "always" | "whole" | "never";

/** What it works on. */
export interface RegionReaderParts {
  geometry: Geometry;
  /** Bytes as clients see them; what lies behind reads as zeros. */
  exactSize: number;
  regions: RegionMap;
  source: SourceReader;
  destination: BlockDevice;
  behind: WriteBehind;
  onHint: (range: RegionRange, kind: HintKind) => void;
  stats: CloneDeviceStats;
  /** Where each read of the source costs a round trip: how far ahead of a sequential reader to read, bytes. */
  readAheadBytes?: () => number;
}

/** Parts of one request at work at once. */
const WIDTH = 16;
/** Around a read of the source more is expected to be wanted, up to the next multiple of this, bytes. */
const NEIGHBOURHOOD = 128 * 1024;
/** How far ahead of a sequential reader it is hinted at what comes, bytes. */
const HINT_AHEAD = 8 * 2 ** 20;
const NOTHING = new Uint8Array(0);

/** A run of bytes of one read, from one device. */
interface ReadPart {
  fromSource: boolean;
  offset: number;
  buffer: Uint8Array;
}

/** Reads byte ranges of a clone. */
export class RegionReader {
  readonly #parts: RegionReaderParts;
  readonly #readahead: Readahead;
  /** May be changed at any time. */
  hydrateOnRead: HydrateOnRead;

  constructor(parts: RegionReaderParts, hydrateOnRead: HydrateOnRead) {
    this.#parts = parts;
    this.hydrateOnRead = hydrateOnRead;
    this.#readahead = new Readahead({ size: parts.exactSize, most: parts.readAheadBytes ?? (() => HINT_AHEAD) });
  }

  /** Fills `buffer` if that needs no waiting, and hydrates what is to be hydrated by it. @throws {DeviceError} */
  tryRead(offset: number, buffer: Uint8Array): boolean {
    const { geometry, regions, source, destination, stats } = this.#parts;
    const start = Math.floor(offset / geometry.regionSize);
    const end = Math.ceil((offset + buffer.length) / geometry.regionSize);
    if (regions.isHydrated(start, end)) {
      if (destination.tryRead?.(offset, buffer) !== true) return false;
      this.#lookAhead(offset, offset + buffer.length, { begins: false });
      return true;
    }
    if (regions.sourceEnd(start, end) < end) return false;
    const keeps = this.hydrateOnRead !== "never";
    if (keeps && !this.#isWholeAndIdle(offset, buffer.length, start, end)) return false;
    if (!source.tryRead(offset, buffer)) return false;
    if (keeps) this.#landAtOnce({ start, end }, buffer);
    stats.sourceServedBytes += buffer.length;
    this.#hint(offset, offset + buffer.length);
    this.#lookAhead(offset, offset + buffer.length);
    return true;
  }

  /**
   * Fills `buffer`; tells `onDestination` where any of it is the destination's, before that is asked.
   * @throws {DeviceError} of either device, or with ETIMEDOUT where the source does not answer
   */
  read(offset: number, buffer: Uint8Array, onDestination: () => void): Promise<void> {
    const { geometry, regions, destination } = this.#parts;
    const start = Math.floor(offset / geometry.regionSize);
    const end = Math.ceil((offset + buffer.length) / geometry.regionSize);
    if (regions.isHydrated(start, end)) {
      this.#lookAhead(offset, offset + buffer.length, { begins: false });
      onDestination();
      return destination.read(offset, buffer);
    }
    const done = runParts(this.#split(offset, buffer), WIDTH, (part) => {
      if (part.fromSource) return this.#readSource(part);
      onDestination();
      return destination.read(part.offset, part.buffer);
    });
    this.#lookAhead(offset, offset + buffer.length); // behind what is waited for
    return done;
  }

  /** Runs of one place; those of the source cut where multiples of the most that is read at once lie. */
  *#split(offset: number, buffer: Uint8Array): Generator<ReadPart> {
    const { geometry, regions } = this.#parts;
    const end = offset + buffer.length;
    const lastRegion = Math.ceil(end / geometry.regionSize);
    for (let position = offset; position < end; ) {
      const region = geometry.regionAt(position);
      const unhydrated = regions.state(region) !== "hydrated";
      const runEnd = unhydrated ? regions.sourceEnd(region, lastRegion) : regions.stateEnd(region, lastRegion);
      const cut = unhydrated ? position - (position % MOST_READ_AT_ONCE) + MOST_READ_AT_ONCE : end;
      let next = Math.min(end, cut, geometry.offsetOf(runEnd));
      const touched = { start: region, end: runEnd };
      const landed = unhydrated ? regions.landedIn({ offset: position, length: next - position }, touched) : undefined;
      const fromSource = unhydrated && landed?.offset !== position;
      if (landed !== undefined) next = fromSource ? landed.offset : landed.offset + landed.length;
      yield { fromSource, offset: position, buffer: buffer.subarray(position - offset, next - offset) };
      position = next;
    }
  }

  async #readSource({ offset, buffer }: ReadPart): Promise<void> {
    const { geometry, source, stats } = this.#parts;
    const touched = geometry.regionsTouching({ offset, length: buffer.length });
    const hydrations = this.#beginHydrations(offset, offset + buffer.length, touched);
    this.#hint(offset, offset + buffer.length);
    if (hydrations.length === 0) {
      await source.read({ range: { offset, length: buffer.length }, skip: 0, buffer });
    } else {
      const first = geometry.bytesOf(hydrations[0] as Hydration);
      const last = geometry.bytesOf(hydrations.at(-1) as Hydration);
      const from = Math.min(offset, first.offset);
      const length = Math.max(offset + buffer.length, last.offset + last.length) - from;
      const onEnd = (bytes: Uint8Array | undefined): void => void this.#land(hydrations, from, bytes);
      const hydrated = hydrations.reduce((sum, hydration) => sum + geometry.bytesOf(hydration).length, 0);
      const request = { range: { offset: from, length }, skip: offset - from, buffer, onEnd };
      await source.read({ ...request, keep: hydrated < length });
    }
    stats.sourceServedBytes += buffer.length;
  }

  /** Enters in the table what is to be hydrated by a read of `offset` … `end`; ascending. */
  #beginHydrations(offset: number, end: number, touched: RegionRange): Hydration[] {
    const { geometry, exactSize, regions, behind } = this.#parts;
    const { regionSize } = geometry;
    if (this.hydrateOnRead === "never" || regionSize > MOST_READ_AT_ONCE) return [];
    const completes = this.hydrateOnRead === "always";
    const start = completes || offset % regionSize === 0 ? touched.start : touched.start + 1;
    const stop = completes || end % regionSize === 0 || end === exactSize ? touched.end : touched.end - 1;
    const hydrations: Hydration[] = [];
    for (let region = start; region < stop; ) {
      const runEnd = regions.stateEnd(region, stop);
      if (regions.state(region) === "unhydrated") {
        const hydration = behind.begin({ start: region, end: runEnd });
        if (hydration !== undefined) hydrations.push(hydration);
      }
      region = runEnd;
    }
    return hydrations;
  }

  /** Whether a range is just these regions, all of them unhydrated, none in the table. */
  #isWholeAndIdle(offset: number, length: number, start: number, end: number): boolean {
    const { geometry, regions } = this.#parts;
    const isWhole = offset % geometry.regionSize === 0 && length === (end - start) * geometry.regionSize;
    return isWhole && !regions.isHydrating(start, end);
  }

  /** The reader has its bytes, and waits a little longer for their way to a destination that takes them at once. */
  #landAtOnce(range: RegionRange, bytes: Uint8Array): void {
    const { geometry, source, behind } = this.#parts;
    const hydration = behind.begin(range);
    if (hydration === undefined || behind.tryLand(hydration, bytes)) return;
    const copy = source.borrow(bytes.length); // the reader's own are sent, and used again
    copy.set(bytes);
    void this.#land([hydration], geometry.offsetOf(range.start), copy);
  }

  async #land(hydrations: Hydration[], from: number, bytes: Uint8Array | undefined): Promise<void> {
    const { geometry, source, behind } = this.#parts;
    await Promise.all(
      hydrations.map((hydration) => {
        const { offset, length } = geometry.bytesOf(hydration);
        return behind.land(hydration, bytes?.subarray(offset - from, offset - from + length));
      }),
    );
    if (bytes !== undefined) source.release(bytes);
  }

  /** What lies next to a read is likely to be wanted too. */
  #hint(offset: number, end: number): void {
    const { exactSize } = this.#parts;
    const until = Math.min(exactSize, Math.ceil(end / NEIGHBOURHOOD) * NEIGHBOURHOOD);
    this.#hintAt({ offset, length: until - offset });
  }

  #hintAt(range: ByteRange): void {
    const { geometry, onHint } = this.#parts;
    onHint(geometry.regionsTouching(range), "nearby");
  }

  /** What a sequential reader will want next. */
  #lookAhead(offset: number, end: number, options?: { begins: boolean }): void {
    const range = this.#readahead.note(offset, end, options);
    if (range === undefined) return;
    const { geometry, regions, readAheadBytes } = this.#parts;
    const reads = readAheadBytes !== undefined && this.hydrateOnRead !== "never";
    if (!reads || geometry.regionSize > MOST_READ_AT_ONCE) {
      this.#hintAt(range);
      return;
    }
    const touched = geometry.regionsTouching(range);
    for (let region = touched.start; region < touched.end; ) {
      const most = Math.floor(MOST_READ_AT_ONCE / geometry.regionSize);
      const cut = Math.min(touched.end, region - (region % most) + most);
      const run = regions.nextUnhydrated(region, cut, most);
      if (run !== undefined && !this.#readAhead(run)) {
        const { offset } = geometry.bytesOf(run);
        this.#hintAt({ offset, length: range.offset + range.length - offset });
        return;
      }
      region = run?.end ?? cut;
    }
  }

  /** Hydrates unhydrated regions as if somebody had read them; false where there is no room for it. */
  #readAhead(run: RegionRange): boolean {
    const { geometry, source, behind } = this.#parts;
    const hydration = behind.begin(run, { speculative: true });
    if (hydration === undefined) return false;
    const range = geometry.bytesOf(run);
    const onEnd = (bytes: Uint8Array | undefined): void => void this.#land([hydration], range.offset, bytes);
    const request = { range, skip: 0, buffer: NOTHING, onEnd, speculative: true };
    source.read(request).catch(() => {}); // nobody waits for it: who wants the bytes meets the error
    return true;
  }
}

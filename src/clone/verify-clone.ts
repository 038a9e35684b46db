/** `clone verify`: compares what is hydrated with the source, byte by byte. */

import { systemClock } from "../base/clock.ts";
import { type ByteRange, countRegions, type Region, type RegionRange } from "../base/geometry.ts";
import { alignedBuffer } from "../device/aligned-buffer.ts";
import { readPatiently } from "../engine/read-patiently.ts";
import { DirtyRegions } from "../metadata/dirty-regions.ts";
import type { Clone, DeviceRequest } from "./clone.ts";
import { PAGE } from "./hydrate-clone.ts";

/** What a comparison found. Counts and ranges are of regions. */
export interface VerifyReport {
  /** Whether every region compared is equal. */
  equal: boolean;
  /** Hydrated regions that were compared: all but those filled with zeros because the source could not be read. */
  compared: number;
  differing: RegionRange[];
  /** Whether clients may have written to the clone: then differences may be theirs by right. */
  served: boolean;
}

/** A comparison while it runs. Bytes. */
export interface RunningVerify {
  readonly comparedBytes: number;
  readonly totalBytes: number;
}

/** Bytes compared at once, and how many of these at a time. */
const PIECE_LENGTH = 2 ** 20;
const PIECES_IN_FLIGHT = 4;
/** How often a piece of the source is read again: one that passes errors now and then can be compared all the same. */
const RETRY = 3;

/**
 * Reads all of the hydrated regions on both sides, holes included: what a device says of its holes is what a comparison
 * is to find out.
 * @throws {CloneError} where the source has changed, or a device is not the clone's
 * @throws {DeviceError} where either cannot be read
 * @throws the reason of `signal` when it aborts
 */
export async function verifyClone(
  clone: Clone,
  request: DeviceRequest,
  { signal, onStart }: { signal: AbortSignal; onStart?: ((running: RunningVerify) => void) | undefined },
): Promise<VerifyReport> {
  const destination = await clone.attachDestination(request, "read-only");
  const source = await clone.attachSource(request);
  const alignment = destination.file?.directAlignment ?? PAGE;
  const differing = new DirtyRegions(); // stays small where a list of 2^31 regions would not
  let totalBytes = 0;
  for (const range of comparedRanges(clone)) totalBytes += clone.geometry.bytesOf(range).length;
  const progress = { comparedBytes: 0, totalBytes };
  onStart?.(progress);
  const pieces = piecesOf(clone);
  const worker = async (): Promise<void> => {
    const expected = alignedBuffer(PIECE_LENGTH, alignment);
    const actual = alignedBuffer(PIECE_LENGTH, alignment);
    for (const { offset, length } of pieces) {
      signal.throwIfAborted();
      const [a, b] = [expected.subarray(0, length), actual.subarray(0, length)];
      const reading = { retry: RETRY, clock: systemClock, signal };
      const expecting = readPatiently(source.view, { offset, buffer: a }, reading);
      // Both must have ended before the buffers are used again, whatever becomes of either.
      const ended = await Promise.allSettled([expecting, destination.view.read(offset, b)]);
      for (const result of ended) if (result.status === "rejected") throw result.reason;
      if (Buffer.compare(a, b) !== 0) {
        for (const region of differingRegions(clone, { offset, length }, a, b)) {
          differing.add({ start: region, end: region + 1 });
        }
      }
      progress.comparedBytes += length;
    }
  };
  const results = await Promise.allSettled(Array.from({ length: PIECES_IN_FLIGHT }, worker));
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  const ranges = differing.freeze();
  return {
    equal: ranges.length === 0,
    compared: countRegions(comparedRanges(clone)),
    differing: ranges,
    served: clone.descriptor?.served ?? false,
  };
}

/** The regions to compare: hydrated, and not filled with zeros because the source could not be read. */
function* comparedRanges({ metadata, descriptor, finalized }: Clone): Generator<RegionRange> {
  const givenUp = finalized === null ? [] : (descriptor?.unreadable.ranges ?? []);
  for (const { start, end } of metadata.hydratedRanges()) {
    let from = start;
    for (const skip of givenUp) {
      if (skip.end <= from || skip.start >= end) continue;
      if (skip.start > from) yield { start: from, end: skip.start };
      from = skip.end;
    }
    if (from < end) yield { start: from, end };
  }
}

/** The bytes of the regions to compare, in pieces. */
function* piecesOf(clone: Clone): Generator<ByteRange> {
  for (const range of comparedRanges(clone)) {
    const { offset, length } = clone.geometry.bytesOf(range);
    for (let done = 0; done < length; done += PIECE_LENGTH) {
      yield { offset: offset + done, length: Math.min(PIECE_LENGTH, length - done) };
    }
  }
}

function* differingRegions(
  { geometry }: Clone,
  { offset, length }: ByteRange,
  a: Uint8Array,
  b: Uint8Array,
): Generator<Region> {
  const { start, end } = geometry.regionsTouching({ offset, length });
  for (let region = start; region < end; region++) {
    const from = Math.max(geometry.offsetOf(region), offset) - offset;
    const to = Math.min(geometry.offsetOf(region) + geometry.regionSize, offset + length) - offset;
    if (Buffer.compare(a.subarray(from, to), b.subarray(from, to)) !== 0) yield region;
  }
}

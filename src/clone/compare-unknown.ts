/** Compares regions of which the metadata does not tell whether they are hydrated, for `clone repair --compare`. */
import { systemClock } from "../base/clock.ts";
import { DeviceError } from "../base/errors.ts";
import type { Geometry, Region, RegionRange } from "../base/geometry.ts";
import { alignedBuffer } from "../device/aligned-buffer.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { readPatiently } from "../engine/read-patiently.ts";
import { DirtyRegions } from "../metadata/dirty-regions.ts";

/** Both sides, in whole sectors of the clone. */
export interface ComparedSides {
  geometry: Geometry;
  source: BlockDevice;
  destination: BlockDevice;
  /** Of buffers, bytes. */
  alignment: number;
}

/** A comparison while it runs. Bytes. */
export interface RunningComparison {
  readonly comparedBytes: number;
  readonly totalBytes: number;
}

/** Most bytes read at once from each side. */
const PIECE_LENGTH = 2 ** 20;
const PIECES_IN_FLIGHT = 4;
/** How often a piece of the source is read again. */
const RETRY = 3;

/**
 * Reads the regions on both sides, holes included, and returns those that are equal. A region that one side cannot read is
 * not equal; a device that has gone away as a whole is an error. What is found equal is durable on the destination: it may
 * have been read from a cache that a crash of the clone left, and the bits that are to vouch for it would outlive it.
 *
 * @throws {DeviceError} where a device cannot be reached any more, or the destination cannot be flushed
 * @throws the reason of `signal` when it aborts
 */
export async function equalRegions(
  sides: ComparedSides,
  unknown: readonly RegionRange[],
  { signal, onStart }: { signal: AbortSignal; onStart?: ((running: RunningComparison) => void) | undefined },
): Promise<RegionRange[]> {
  const { geometry, alignment } = sides;
  let totalBytes = 0;
  for (const range of unknown) totalBytes += geometry.bytesOf(range).length;
  const progress = { comparedBytes: 0, totalBytes };
  onStart?.(progress);
  const equal = new DirtyRegions();
  const pieces = piecesOf(geometry, unknown);
  const worker = async (): Promise<void> => {
    const buffers: [Uint8Array, Uint8Array] = [
      alignedBuffer(PIECE_LENGTH, alignment),
      alignedBuffer(PIECE_LENGTH, alignment),
    ];
    for (const regions of pieces) {
      signal.throwIfAborted();
      for (const region of await equalIn(sides, regions, buffers, signal)) {
        equal.add({ start: region, end: region + 1 });
      }
      progress.comparedBytes += geometry.bytesOf(regions).length;
    }
  };
  const results = await Promise.allSettled(Array.from({ length: PIECES_IN_FLIGHT }, worker));
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  const found = equal.freeze();
  if (found.length > 0) await sides.destination.flush();
  return found;
}

/** Neighbouring regions that are compared together: as many as fit a piece, or one of which only parts do. */
function* piecesOf({ regionSize }: Geometry, unknown: readonly RegionRange[]): Generator<RegionRange> {
  const most = Math.max(1, Math.floor(PIECE_LENGTH / regionSize));
  for (const { start, end } of unknown) {
    for (let from = start; from < end; from += most) yield { start: from, end: Math.min(from + most, end) };
  }
}

/** The equal ones of neighbouring regions; one by one where they cannot be read together. */
async function equalIn(
  sides: ComparedSides,
  { start, end }: RegionRange,
  buffers: [Uint8Array, Uint8Array],
  signal: AbortSignal,
): Promise<Region[]> {
  const equal: Region[] = [];
  if (end - start > 1) {
    try {
      const { offset, length } = sides.geometry.bytesOf({ start, end });
      const [expected, actual] = await readBoth(sides, offset, length, buffers, signal);
      for (let region = start; region < end; region++) {
        const from = sides.geometry.offsetOf(region) - offset;
        const to = Math.min(from + sides.geometry.regionSize, length);
        if (Buffer.compare(expected.subarray(from, to), actual.subarray(from, to)) === 0) equal.push(region);
      }
      return equal;
    } catch (error) {
      if (!isUnreadable(error)) throw error;
    }
  }
  for (let region = start; region < end; region++) {
    if (await isEqual(sides, region, buffers, signal)) equal.push(region);
  }
  return equal;
}

async function isEqual(
  sides: ComparedSides,
  region: Region,
  buffers: [Uint8Array, Uint8Array],
  signal: AbortSignal,
): Promise<boolean> {
  const { offset, length } = sides.geometry.bytesOf({ start: region, end: region + 1 });
  try {
    for (let done = 0; done < length; done += PIECE_LENGTH) {
      signal.throwIfAborted();
      const piece = Math.min(PIECE_LENGTH, length - done);
      const [expected, actual] = await readBoth(sides, offset + done, piece, buffers, signal);
      if (Buffer.compare(expected, actual) !== 0) return false;
    }
    return true;
  } catch (error) {
    if (isUnreadable(error)) return false;
    throw error;
  }
}

/** Bytes that nobody can read, as opposed to a device that is gone. */
function isUnreadable(error: unknown): boolean {
  return error instanceof DeviceError && !error.away;
}

async function readBoth(
  { source, destination }: ComparedSides,
  offset: number,
  length: number,
  [a, b]: [Uint8Array, Uint8Array],
  signal: AbortSignal,
): Promise<[Uint8Array, Uint8Array]> {
  const [expected, actual] = [a.subarray(0, length), b.subarray(0, length)];
  const reading = { retry: RETRY, clock: systemClock, signal };
  // Both must have ended before the buffers are used again, whatever becomes of either.
  const ended = await Promise.allSettled([
    readPatiently(source, { offset, buffer: expected }, reading),
    destination.read(offset, actual),
  ]);
  for (const result of ended) if (result.status === "rejected") throw result.reason;
  return [expected, actual];
}

/** Compares regions of source and destination byte by byte, holes included: what a device says of its holes may be wrong. */
import { systemClock } from "../base/clock.ts";
import type { ByteRange, Geometry, Region, RegionRange } from "../base/geometry.ts";
import { alignedBuffer } from "../device/aligned-buffer.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { readPatiently } from "../engine/read-patiently.ts";
import { isUnreadable } from "../engine/source-errors.ts";
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

/** How to compare. */
export interface Comparing {
  signal: AbortSignal;
  /** What becomes of a region of which one side cannot be read, though the device is there and what it was. */
  unreadable: "fails" | "differs";
  onStart?: ((running: RunningComparison) => void) | undefined;
}

/** Bytes compared at once, and how many of these at a time. */
const PIECE_LENGTH = 2 ** 20;
const PIECES_IN_FLIGHT = 4;
/** How often a piece of the source is read again: one that passes errors now and then can be compared all the same. */
const RETRY = 3;

/**
 * Reads the regions on both sides and returns those that differ, sorted. `ranges` is gone through twice.
 *
 * @throws {DeviceError} where a side cannot be read, unless that is to differ, and where a device is gone or another one
 * @throws the reason of `signal` when it aborts
 */
export async function differingRegions(
  sides: ComparedSides,
  ranges: () => Iterable<RegionRange>,
  { signal, unreadable, onStart }: Comparing,
): Promise<RegionRange[]> {
  const { geometry } = sides;
  let totalBytes = 0;
  for (const range of ranges()) totalBytes += geometry.bytesOf(range).length;
  const progress = { comparedBytes: 0, totalBytes };
  onStart?.(progress);
  const differing = new DirtyRegions(); // stays small where a list of 2^31 regions would not
  const add = (region: Region): void => differing.add({ start: region, end: region + 1 });
  const pieces = piecesOf(geometry, ranges());
  const worker = async (): Promise<void> => {
    const pair = new PairReader(sides, signal);
    for (const piece of pieces) {
      try {
        for (const region of await pair.differing(piece)) add(region);
      } catch (error) {
        if (unreadable === "fails" || !isUnreadable(error)) throw error;
        for (const { region, bytes } of partsOf(geometry, piece)) if (!(await pair.isEqual(bytes))) add(region);
      }
      progress.comparedBytes += piece.length;
    }
  };
  const results = await Promise.allSettled(Array.from({ length: PIECES_IN_FLIGHT }, worker));
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return differing.freeze();
}

/** Reads the same bytes of both sides, piece by piece, into buffers of its own. */
class PairReader {
  readonly #sides: ComparedSides;
  readonly #signal: AbortSignal;
  readonly #expected: Uint8Array;
  readonly #actual: Uint8Array;

  constructor(sides: ComparedSides, signal: AbortSignal) {
    this.#sides = sides;
    this.#signal = signal;
    this.#expected = alignedBuffer(PIECE_LENGTH, sides.alignment);
    this.#actual = alignedBuffer(PIECE_LENGTH, sides.alignment);
  }

  /** The regions of which something in a piece differs. */
  async differing(piece: ByteRange): Promise<Region[]> {
    const [expected, actual] = await this.#read(piece);
    if (Buffer.compare(expected, actual) === 0) return [];
    const regions: Region[] = [];
    for (const { region, bytes } of partsOf(this.#sides.geometry, piece)) {
      const from = bytes.offset - piece.offset;
      const to = from + bytes.length;
      if (Buffer.compare(expected.subarray(from, to), actual.subarray(from, to)) !== 0) regions.push(region);
    }
    return regions;
  }

  /** Whether a piece can be read on both sides and is the same. */
  async isEqual(piece: ByteRange): Promise<boolean> {
    try {
      return Buffer.compare(...(await this.#read(piece))) === 0;
    } catch (error) {
      if (isUnreadable(error)) return false;
      throw error;
    }
  }

  async #read({ offset, length }: ByteRange): Promise<[Uint8Array, Uint8Array]> {
    this.#signal.throwIfAborted();
    const { source, destination } = this.#sides;
    const [expected, actual] = [this.#expected.subarray(0, length), this.#actual.subarray(0, length)];
    const reading = { retry: RETRY, clock: systemClock, signal: this.#signal };
    // Both must have ended before the buffers are used again, whatever becomes of either.
    const ended = await Promise.allSettled([
      readPatiently(source, { offset, buffer: expected }, reading),
      destination.read(offset, actual),
    ]);
    for (const result of ended) if (result.status === "rejected") throw result.reason;
    return [expected, actual];
  }
}

/** The bytes of ranges of regions, in pieces. */
function* piecesOf(geometry: Geometry, ranges: Iterable<RegionRange>): Generator<ByteRange> {
  for (const range of ranges) {
    const { offset, length } = geometry.bytesOf(range);
    for (let done = 0; done < length; done += PIECE_LENGTH) {
      yield { offset: offset + done, length: Math.min(PIECE_LENGTH, length - done) };
    }
  }
}

/** A piece, region by region. */
function* partsOf(geometry: Geometry, piece: ByteRange): Generator<{ region: Region; bytes: ByteRange }> {
  const { start, end } = geometry.regionsTouching(piece);
  for (let region = start; region < end; region++) {
    const from = Math.max(geometry.offsetOf(region), piece.offset);
    const to = Math.min(geometry.offsetOf(region) + geometry.regionSize, piece.offset + piece.length);
    yield { region, bytes: { offset: from, length: to - from } };
  }
}

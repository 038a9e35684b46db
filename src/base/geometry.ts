/**
 * Regions and bytes, and the only place that converts between them.
 *
 * A clone of `size` bytes is divided into `regionCount` regions of `regionSize` bytes; the last may be short:
 *
 *     region       0            1                    regionCount - 1
 *     bytes  |------------|------------| ... ... |------|
 *            0        regionSize                       size
 *
 * Offsets reach 2^53, so there is no `<<`, `>>`, `&` or `|` here: JavaScript truncates their operands to 32 bits.
 */
import assert from "node:assert";

/** Index of a region, 0 … regionCount - 1. */
export type Region = number;

/** Half-open range of regions. */
export interface RegionRange {
  start: Region;
  end: Region;
}

/** Half-open range of bytes. */
export interface ByteRange {
  offset: number;
  length: number;
}

/** The smallest unit the on-disk format counts in, bytes. */
export const SECTOR_SIZE = 512;
/** dm-clone's limits (`clone_ctr` → `parse_region_size`): 4 KiB … 1 GiB, in bytes. */
export const MIN_REGION_SIZE = 4096;
export const MAX_REGION_SIZE = 2 ** 30;
/** dm-clone's limit on the number of regions (`clone_ctr`). */
export const MAX_REGION_COUNT = 2 ** 31;

/** How a clone is divided. Immutable; sizes in bytes. */
export class Geometry {
  /** Length of the clone in bytes, a multiple of 512. */
  readonly size: number;
  /** Bytes per region, a power of two. */
  readonly regionSize: number;
  readonly regionCount: number;

  /** @throws {RangeError} on values the format cannot express. */
  constructor({ size, regionSize }: { size: number; regionSize: number }) {
    if (!isRegionSize(regionSize)) {
      throw new RangeError(
        `region size ${regionSize} is not a power of two from ${MIN_REGION_SIZE} to ${MAX_REGION_SIZE}`,
      );
    }
    if (!Number.isSafeInteger(size) || size <= 0 || size % SECTOR_SIZE !== 0) {
      throw new RangeError(`size ${size} is not a positive multiple of ${SECTOR_SIZE}`);
    }
    const regionCount = Math.ceil(size / regionSize);
    if (regionCount > MAX_REGION_COUNT) {
      throw new RangeError(`${regionCount} regions are more than the ${MAX_REGION_COUNT} that the format allows`);
    }
    this.size = size;
    this.regionSize = regionSize;
    this.regionCount = regionCount;
  }

  /** The region that holds byte `offset`. */
  regionAt(offset: number): Region {
    assert(offset >= 0 && offset < this.size, `offset ${offset} outside the clone`);
    return Math.floor(offset / this.regionSize);
  }

  /** First byte of a region. */
  offsetOf(region: Region): number {
    assert(region >= 0 && region <= this.regionCount, `region ${region} outside the clone`);
    return region * this.regionSize;
  }

  /** The bytes of the regions `start` … `end` - 1, clipped to the clone's size. */
  bytesOf({ start, end }: RegionRange): ByteRange {
    const offset = this.offsetOf(start);
    return { offset, length: Math.min(this.offsetOf(end), this.size) - offset };
  }

  /**
   * The regions that a byte range covers completely; empty (`start === end`) where it covers none. The short last
   * region counts as covered when the range reaches the clone's end, which dm-clone itself does not recognise.
   */
  regionsInside({ offset, length }: ByteRange): RegionRange {
    const start = Math.ceil(offset / this.regionSize);
    const end = offset + length >= this.size ? this.regionCount : Math.floor((offset + length) / this.regionSize);
    return end > start ? { start, end } : { start, end: start };
  }

  /** The regions that a byte range touches. */
  regionsTouching({ offset, length }: ByteRange): RegionRange {
    const start = Math.floor(offset / this.regionSize);
    return { start, end: length === 0 ? start : Math.ceil((offset + length) / this.regionSize) };
  }
}

/** How many regions disjoint ranges hold. */
export function countRegions(ranges: Iterable<RegionRange>): number {
  let count = 0;
  for (const { start, end } of ranges) count += end - start;
  return count;
}

/** What of `ranges` is not among `others`. Both are sorted; neither has ranges that overlap. */
export function* withoutRegions(
  ranges: Iterable<RegionRange>,
  others: readonly RegionRange[],
): Generator<RegionRange, void> {
  let next = 0;
  for (const { start, end } of ranges) {
    let from = start;
    while (from < end) {
      while (next < others.length && (others[next] as RegionRange).end <= from) next++;
      const other = others[next];
      const until = Math.min(other?.start ?? end, end);
      if (from < until) yield { start: from, end: until };
      from = Math.max(until, Math.min(other?.end ?? end, end));
    }
  }
}

/** Whether `bytes` is a region size that dm-clone accepts. */
export function isRegionSize(bytes: number): boolean {
  return (
    Number.isInteger(bytes) &&
    bytes >= MIN_REGION_SIZE &&
    bytes <= MAX_REGION_SIZE &&
    Number.isInteger(Math.log2(bytes))
  );
}

/** What can be asked about a range of a clone without reading it: its extents, and which of it is hydrated. */
import { DeviceError } from "../base/errors.ts";
import type { Geometry, Region } from "../base/geometry.ts";
import type { BlockDevice, Extent } from "../device/block-device.ts";
import type { StatusContext, StatusRun } from "../device/served-device.ts";
import { Patience } from "./deadlines.ts";
import type { ExtentCache } from "./extent-cache.ts";
import type { RegionMap } from "./region-map.ts";
import type { SourceReader } from "./source-reader.ts";

/** The flags of the context `x-clone:hydrated`. */
export const HYDRATED_FLAG = 1;
export const HYDRATING_FLAG = 2;
export const HYDRATED_CONTEXT = "x-clone:hydrated";

/** What it looks at. */
export interface RegionStatusParts {
  geometry: Geometry;
  regions: RegionMap;
  destination: BlockDevice;
  /** The source's holes. */
  extents: ExtentCache;
  source: SourceReader;
}

/** Answers questions about ranges of a clone. */
export class RegionStatus {
  readonly #parts: RegionStatusParts;

  constructor(parts: RegionStatusParts) {
    this.#parts = parts;
  }

  /**
   * The extents of a range: of each region as the device says that has its truth. Which that is, is decided before either
   * is asked: a region that is hydrated meanwhile is described as it was when the question came.
   *
   * What the source cannot tell, or not in time, is data. Work and answer grow with the range, which servers bound.
   * @throws {DeviceError} of the destination
   */
  async extents(offset: number, length: number): Promise<Extent[]> {
    const { destination } = this.#parts;
    const runs = [...this.#places(offset, length)];
    const [atDestination, atSource] = await Promise.all([
      answers(runs, true, (from, bytes) => destination.extents(from, bytes)),
      answers(runs, false, (from, bytes) => this.#sourceExtents(from, bytes)),
    ]);
    const merged: Extent[] = [];
    const next = { destination: 0, source: 0 };
    for (const run of runs) {
      const extents = run.hydrated ? atDestination : atSource;
      const cursor = run.hydrated ? "destination" : "source";
      const end = run.offset + run.length;
      for (; ; next[cursor]++) {
        const extent = extents[next[cursor]];
        if (extent === undefined || extent.offset >= end) break;
        const to = Math.min(end, extent.offset + extent.length);
        append(merged, extent, Math.max(run.offset, extent.offset), to);
        if (extent.offset + extent.length > end) break;
      }
    }
    return merged;
  }

  /** Runs of one state for `x-clone:hydrated`, at most `most`. */
  runs(offset: number, length: number, most: number): StatusRun[] {
    const { geometry, regions } = this.#parts;
    const end = offset + length;
    const touched = geometry.regionsTouching({ offset, length });
    const runs: StatusRun[] = [];
    for (let region = touched.start, position = offset; position < end; ) {
      const flags = flagsOf(regions, region);
      const runEnd = regions.stateEnd(region, touched.end);
      const next = Math.min(end, geometry.offsetOf(runEnd));
      const last = runs.at(-1);
      if (last?.flags === flags) last.length += next - position;
      else if (runs.length === most) break;
      else runs.push({ length: next - position, flags });
      position = next;
      region = runEnd;
    }
    return runs;
  }

  /** Runs of regions by where their truth is, clipped to the range. */
  *#places(offset: number, length: number): Generator<Place> {
    const { geometry, regions } = this.#parts;
    const end = offset + length;
    const touched = geometry.regionsTouching({ offset, length });
    for (let region = touched.start; region < touched.end; ) {
      const hydrated = regions.state(region) === "hydrated";
      const runEnd = hydrated ? regions.stateEnd(region, touched.end) : regions.sourceEnd(region, touched.end);
      const from = Math.max(offset, geometry.offsetOf(region));
      yield { hydrated, offset: from, length: Math.min(end, geometry.offsetOf(runEnd)) - from };
      region = runEnd;
    }
  }

  async #sourceExtents(offset: number, length: number): Promise<Extent[]> {
    const { extents, source } = this.#parts;
    const patience = new Patience(source.deadlines, () => source.timeoutError({ offset, length }));
    try {
      return await patience.wait(extents.extents(offset, length));
    } catch (error) {
      if (!(error instanceof DeviceError)) throw error;
      return [{ offset, length, hole: false, zero: false }];
    } finally {
      patience.end();
    }
  }
}

/** The context `x-clone:hydrated`; without a status everything is hydrated. */
export function hydratedContext(status: () => RegionStatus | undefined): StatusContext {
  return {
    name: HYDRATED_CONTEXT,
    runs: (offset, length, most) =>
      status()?.runs(offset, length, most) ?? (length === 0 ? [] : [{ length, flags: HYDRATED_FLAG }]),
  };
}

/** A run of bytes, and whether the destination has their truth. */
interface Place {
  hydrated: boolean;
  offset: number;
  length: number;
}

/** The extents from the first to the last byte of the runs of one place, by one question. */
async function answers(
  runs: Place[],
  hydrated: boolean,
  ask: (offset: number, length: number) => Promise<Extent[]>,
): Promise<Extent[]> {
  const first = runs.find((run) => run.hydrated === hydrated);
  const last = runs.findLast((run) => run.hydrated === hydrated);
  if (first === undefined || last === undefined) return [];
  return await ask(first.offset, last.offset + last.length - first.offset);
}

/** Adds a part of an extent, or lengthens the last one where that is of the same kind. */
function append(extents: Extent[], { hole, zero }: Extent, from: number, to: number): void {
  if (to <= from) return;
  const last = extents.at(-1);
  if (last?.hole === hole && last.zero === zero) last.length = to - last.offset;
  else extents.push({ offset: from, length: to - from, hole, zero });
}

function flagsOf(regions: RegionMap, region: Region): number {
  const state = regions.state(region);
  return state === "hydrated" ? HYDRATED_FLAG : state === "hydrating" ? HYDRATING_FLAG : 0;
}

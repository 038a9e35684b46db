/**
 * Writes, zeroes and discards: what a client's change does to each run of regions that it touches.
 *
 *                     covered whole                             covered in part
 *     hydrated        changed at the destination                the same
 *     unhydrated      replaced there, without a copy            copied from the source, then changed
 *     in the table    waits for the end, looks again; or        waits for the end, looks again
 *                     cancels what has not begun to land
 *
 * Look and claim happen in one turn of the event loop, so two requests cannot claim one region; and who waits holds
 * nothing that others wait for, so nobody waits for ever. The exception is the source: waiting for it has a time limit.
 *
 * A request ends when all its parts have. Of one that failed, parts may have been changed: as on any disk.
 *
 * Where a copy that was lost with its connection may still land, a change waits (`CommitPipeline.strayIn()`): that look, too,
 * is of the turn of the claim.
 *
 * What reaches the destination is told to the commit pipeline from before it is sent until its bits are set: what clients
 * have changed cannot be copied again where the destination loses it.
 */
import { CloneError } from "../base/errors.ts";
import type { ByteRange, Geometry, Region, RegionRange } from "../base/geometry.ts";
import type { CloneDeviceStats } from "./clone-device-stats.ts";
import type { CommitPipeline } from "./commit-pipeline.ts";
import { Patience } from "./deadlines.ts";
import type { DemandCopies } from "./demand-copies.ts";
import type { Hydration, RegionMap } from "./region-map.ts";
import { runParts } from "./run-parts.ts";
import type { SourceReader } from "./source-reader.ts";

/** What a change does to the destination. Ranges are bytes, and within what the device has. */
export interface Change {
  /** Changes a range whose truth is there. */
  apply(range: ByteRange): Promise<void>;
  /** Gives a range of unhydrated regions the content that the change makes of it, whatever the destination holds. */
  replace(range: ByteRange): Promise<void>;
  /** Parts at work at once. */
  width: number;
  /** Counts the regions that were replaced. */
  counter: "overwrittenRegions" | "zeroedRegions" | "discardedRegions";
}

/** What it works on. */
export interface RegionChangerParts {
  geometry: Geometry;
  /** Bytes as clients see them: who reaches this reaches the end of the last region. */
  exactSize: number;
  regions: RegionMap;
  source: SourceReader;
  copies: DemandCopies;
  commits: CommitPipeline;
  stats: CloneDeviceStats;
  /** Told of the bytes whose change takes a copy of their region. */
  onTouch?: ((offset: number, length: number) => void) | undefined;
}

/** The most bytes replaced as one, so that nobody who waits for one of its regions waits long. */
const MOST_REPLACED = 64 * 2 ** 20;

/** A run of bytes of one change, all of which is treated alike. */
type ChangePart = ByteRange &
  (
    | { kind: "hydrated" }
    | { kind: "whole"; regions: RegionRange }
    | { kind: "partial"; region: Region }
    | { kind: "busy"; hydration: Hydration; whole: boolean }
  );

/** Changes byte ranges of a clone. */
export class RegionChanger {
  readonly #parts: RegionChangerParts;
  readonly #mostRegions: number;

  constructor(parts: RegionChangerParts) {
    this.#parts = parts;
    this.#mostRegions = Math.max(1, Math.floor(MOST_REPLACED / parts.geometry.regionSize));
  }

  /**
   * Makes a change. Not durable on return.
   * @throws {DeviceError} of either device, or with ETIMEDOUT where the source does not answer
   * @throws why the clone has failed, if it has
   */
  async change(range: ByteRange, change: Change): Promise<void> {
    const { source, commits, stats } = this.#parts;
    const calm = commits.calm(range);
    if (calm !== undefined) await calm; // what was copied, and is lost, is copied again before it is changed
    const patience = new Patience(source.deadlines, () => source.timeoutError(range));
    try {
      await runParts(this.#split(range), change.width, (part) => this.#run(part, change, patience));
    } catch (error) {
      if (error === patience.error) stats.timeouts++;
      throw error;
    } finally {
      patience.end();
    }
  }

  /** Whether no part of a range would have to be copied, or wait, if it were to be changed now. */
  isFree(range: ByteRange): boolean {
    const { geometry, regions } = this.#parts;
    const touched = geometry.regionsTouching(range);
    if (regions.isHydrating(touched.start, touched.end)) return false;
    const inside = this.#inside(range);
    for (const region of [touched.start, touched.end - 1]) {
      const whole = region >= inside.start && region < inside.end;
      if (touched.start < touched.end && !whole && regions.state(region) === "unhydrated") return false;
    }
    return true;
  }

  /** The regions that a change covers whole; the last one too where clients can reach no further. */
  #inside({ offset, length }: ByteRange): RegionRange {
    const { geometry, exactSize } = this.#parts;
    return geometry.regionsInside({
      offset,
      length: offset + length === exactSize ? geometry.size - offset : length,
    });
  }

  *#split(range: ByteRange): Generator<ChangePart> {
    const { geometry, regions } = this.#parts;
    const end = range.offset + range.length;
    const touched = geometry.regionsTouching(range);
    const inside = this.#inside(range);
    for (let position = range.offset; position < end; ) {
      const region = geometry.regionAt(position);
      const whole = region >= inside.start && region < inside.end;
      const hydration = regions.hydrationAt(region);
      const isHydrated = hydration === undefined && regions.state(region) === "hydrated";
      // Runs of regions that are covered alike, except where that makes no difference.
      const limit = isHydrated ? touched.end : whole ? Math.min(inside.end, region + this.#mostRegions) : region + 1;
      const runEnd = regions.stateEnd(region, limit);
      const next = Math.min(end, geometry.offsetOf(runEnd));
      const bytes = { offset: position, length: next - position };
      position = next;
      if (isHydrated) yield { kind: "hydrated", ...bytes };
      else if (hydration !== undefined) yield { kind: "busy", hydration, whole, ...bytes };
      else if (whole) yield { kind: "whole", regions: { start: region, end: runEnd }, ...bytes };
      else yield { kind: "partial", region, ...bytes };
    }
  }

  async #run(part: ChangePart, change: Change, patience: Patience): Promise<void> {
    const { commits } = this.#parts;
    commits.check();
    if (part.kind === "hydrated" || part.kind === "whole") {
      const over = commits.strayIn(part);
      if (over === undefined) {
        return await commits.change(() =>
          part.kind === "whole" ? this.#replace(part, part.regions, change) : change.apply(part),
        );
      }
      await over;
    } else await this.#awaitCopy(part, patience);
    if (commits.isUnsteady) await commits.settle();
    // The world has changed: look again.
    for (const again of this.#split(part)) await this.#run(again, change, patience);
  }

  /** Waits for the copy of a region, or begins it; or cancels it. */
  async #awaitCopy(part: ChangePart & { kind: "busy" | "partial" }, patience: Patience): Promise<void> {
    const { regions, copies, onTouch } = this.#parts;
    const whole = part.kind === "busy" && part.whole;
    if (!whole) onTouch?.(part.offset, part.length);
    const hydration = part.kind === "busy" ? part.hydration : copies.start(part.region);
    if (!whole || !regions.cancel(hydration)) {
      const error = await patience.wait(regions.ended(hydration), () => copies.progressOf(hydration));
      if (error !== undefined && !whole) throw error;
    }
  }

  async #replace(bytes: ByteRange, range: RegionRange, change: Change): Promise<void> {
    const { regions, commits, stats } = this.#parts;
    const hydration = regions.begin(range);
    try {
      await change.replace(bytes);
    } catch (error) {
      regions.fail(hydration);
      throw error;
    }
    if (!regions.complete(hydration)) {
      commits.check();
      throw new CloneError("failed", "Cannot change the clone: what was written could not be vouched for");
    }
    stats[change.counter] += range.end - range.start;
  }
}

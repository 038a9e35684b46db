/**
 * What a finalize has to do with the regions of a clone at work before its destination can stand alone:
 *
 *     1. flush      all that is hydrated is vouched for, guard and all
 *     2. claim      what is missing, so that clients who write to it wait; read once more what can be read of it, zeros else
 *     3. flush      that too
 *     4. record     only where the destination has lost nothing since 1; else all anew
 *     5. mark       what holds zeros, which must never be taken for data that was read, and therefore not before 4
 */
import { systemClock } from "../base/clock.ts";
import { LostWritesError } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import type { Hydration, RegionMap } from "../engine/region-map.ts";
import { Salvage } from "../engine/salvage.ts";
import { normalizeRanges } from "../metadata/unreadable-ranges.ts";
import type { Clone } from "./clone.ts";
import { type FinalizeRequest, refuseMissing } from "./finalize-clone.ts";
import type { Engine } from "./live-engine.ts";

/** What it works on. */
export interface LiveFinalizeParts {
  clone: Clone;
  engine: Pick<Engine, "commits" | "regions" | "destination" | "source">;
  /** How long one read of the source may take, ms. */
  sourceTimeoutMs: number;
  /** Ends the reading: its reason is what is thrown then. */
  signal: AbortSignal;
}

/** How often it begins anew because the destination has lost something. */
const MOST_ATTEMPTS = 5;

/**
 * Makes everything durable, fills what is missing and may be, has it recorded, and marks it. Returns the regions that hold
 * zeros where they could not be read.
 * @throws {CloneError} where regions are missing that may not be, the source is away, or a device fails; then nothing was
 * recorded, unless the destination failed after that
 */
export async function fillMissing(
  parts: LiveFinalizeParts,
  request: Pick<FinalizeRequest, "acceptUnreadable" | "withoutSource">,
  record: (zeroed: RegionRange[]) => Promise<void>,
): Promise<RegionRange[]> {
  const { clone, engine } = parts;
  const { commits, regions } = engine;
  for (let attempt = 1; attempt <= MOST_ATTEMPTS; attempt++) {
    const { losses } = commits;
    // A flush rather than a commit, which looks at the destination even where nothing is to be committed.
    await commits.flush();
    const zeroed: Hydration[] = [];
    try {
      await salvage(parts, request, zeroed);
      await commits.flush();
      if (commits.losses === losses) {
        commits.check();
        const ranges = normalizeRanges(zeroed);
        await record(ranges);
        for (const claim of zeroed.splice(0)) regions.complete(claim);
        await markForGood(engine, ranges);
        return ranges;
      }
    } catch (error) {
      if (!(error instanceof LostWritesError)) {
        for (const claim of zeroed) regions.fail(claim, error);
        throw error;
      }
      commits.lose(error);
    }
    for (const claim of zeroed) regions.fail(claim);
  }
  throw new LostWritesError(`Cannot finalize "${clone.path}": the destination loses what is written to it`);
}

/** Reads once more what could not be read. What holds zeros after that stays in the table, and is added to `zeroed`. */
async function salvage(
  parts: LiveFinalizeParts,
  request: Pick<FinalizeRequest, "acceptUnreadable" | "withoutSource">,
  zeroed: Hydration[],
): Promise<void> {
  const { clone, engine, signal } = parts;
  const { regions, destination, source } = engine;
  const last = new Salvage({
    source: request.withoutSource ? undefined : source?.view,
    destination: destination.view,
    clock: systemClock,
    timeoutMs: parts.sourceTimeoutMs,
    onGone: (why) => clone.warn(`What could not be read becomes zeros. ${why}`),
  });
  for (const range of refuseMissing(clone, request)) {
    for await (const claim of claimUnhydrated(regions, range)) {
      zeroed.push(claim);
      if (!(await last.fill(clone.geometry.bytesOf(claim), signal))) continue;
      zeroed.pop();
      regions.complete(claim);
    }
  }
}

/** Commits regions whose content is durable already: what the destination loses from here on is nothing of theirs. */
async function markForGood({ commits, regions }: LiveFinalizeParts["engine"], ranges: RegionRange[]): Promise<void> {
  for (;;) {
    await commits.commit();
    if (commits.complete) return;
    for (const range of ranges) {
      for await (const claim of claimUnhydrated(regions, range)) regions.complete(claim);
    }
  }
}

/** Takes what of a range is not hydrated into the table, a region at a time; waits for what is in it already. */
async function* claimUnhydrated(regions: RegionMap, { start, end }: RegionRange): AsyncGenerator<Hydration> {
  for (let region = start; region < end; ) {
    const running = regions.hydrationAt(region);
    if (running !== undefined) {
      await regions.ended(running);
      continue;
    }
    if (regions.state(region) === "unhydrated") yield regions.begin({ start: region, end: region + 1 });
    region++;
  }
}

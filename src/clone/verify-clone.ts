/** `clone verify`: compares what is hydrated with the source, byte by byte. */

import { countRegions, type RegionRange, withoutRegions } from "../base/geometry.ts";
import type { Clone, DeviceRequest } from "./clone.ts";
import { differingRegions, type RunningComparison } from "./compare-sides.ts";
import { PAGE } from "./hydrate-clone.ts";
import { ofUnchangedSource } from "./unchanged-source.ts";

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

/**
 * Reads all of the hydrated regions on both sides.
 * @throws {CloneError} where the source has changed, or changes meanwhile, or a device is not the clone's
 * @throws {DeviceError} where either cannot be read
 * @throws the reason of `signal` when it aborts
 */
export async function verifyClone(
  clone: Clone,
  request: DeviceRequest,
  { signal, onStart }: { signal: AbortSignal; onStart?: ((running: RunningComparison) => void) | undefined },
): Promise<VerifyReport> {
  const destination = await clone.attachDestination(request, "read-only");
  const source = await clone.attachSource(request);
  const sides = {
    geometry: clone.geometry,
    source: source.view,
    destination: destination.view,
    alignment: destination.file?.directAlignment ?? PAGE,
  };
  const differing = await ofUnchangedSource(source, () =>
    differingRegions(sides, () => comparedRanges(clone), { signal, unreadable: "fails", onStart }),
  );
  return {
    equal: differing.length === 0,
    compared: countRegions(comparedRanges(clone)),
    differing,
    served: clone.descriptor?.served ?? false,
  };
}

/** The regions to compare: hydrated, and not filled with zeros because the source could not be read. */
function comparedRanges({ metadata, descriptor, finalized }: Clone): Iterable<RegionRange> {
  const givenUp = finalized === null ? [] : (descriptor?.unreadable.ranges ?? []);
  return withoutRegions(metadata.hydratedRanges(), givenUp);
}

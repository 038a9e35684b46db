/** Compares regions of which the metadata does not tell whether they are hydrated, for `clone repair --compare`. */
import { type RegionRange, withoutRegions } from "../base/geometry.ts";
import { type ComparedSides, differingRegions, type RunningComparison } from "./compare-sides.ts";

/**
 * Reads the regions on both sides and returns those that are equal. A region that one side cannot read is not equal; a
 * device that has gone away as a whole, or has changed, is an error. What is found equal is durable on the destination: it may
 * have been read from a cache that a crash of the clone left, and the bits that are to vouch for it would outlive it.
 *
 * @param unknown sorted
 * @throws {DeviceError} where a device cannot be reached any more or is another one, or the destination cannot be flushed
 * @throws the reason of `signal` when it aborts
 */
export async function equalRegions(
  sides: ComparedSides,
  unknown: readonly RegionRange[],
  { signal, onStart }: { signal: AbortSignal; onStart?: ((running: RunningComparison) => void) | undefined },
): Promise<RegionRange[]> {
  const differing = await differingRegions(sides, () => unknown, { signal, unreadable: "differs", onStart });
  const equal = [...withoutRegions(unknown, differing)];
  if (equal.length > 0) await sides.destination.flush();
  return equal;
}

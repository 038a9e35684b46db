/** Region ranges as text. */
import { countRegions, type RegionRange } from "../base/geometry.ts";

/** Ranges named one by one; the rest is counted. */
const LISTED = 8;

/** `3 regions (7, 12–13)`; of long lists the beginning. Ranges are half-open, what is printed is inclusive. */
export function formatRegions(ranges: readonly RegionRange[]): string {
  const count = countRegions(ranges);
  const listed = ranges
    .slice(0, LISTED)
    .map(({ start, end }) => (end - start === 1 ? `${start}` : `${start}–${end - 1}`))
    .join(", ");
  const more = ranges.length > LISTED ? ", …" : "";
  return `${count} ${count === 1 ? "region" : "regions"} (${listed}${more})`;
}

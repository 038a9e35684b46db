/** Regions as a control socket tells them: not more than it is asked for, since there may be millions of ranges. */
import type { RegionRange } from "../base/geometry.ts";
import type { ControlTarget } from "../control/control-target.ts";

/** The first `most` ranges of each kind, and whether that is all of them. */
export function firstRegions(
  hydrated: Iterable<RegionRange>,
  unreadable: readonly RegionRange[],
  most: number,
): ReturnType<ControlTarget["regions"]> {
  const first: [number, number][] = [];
  let complete = unreadable.length <= most;
  for (const { start, end } of hydrated) {
    if (first.length === most) {
      complete = false;
      break;
    }
    first.push([start, end]);
  }
  return { hydrated: first, unreadable: unreadable.slice(0, most).map(({ start, end }) => [start, end]), complete };
}

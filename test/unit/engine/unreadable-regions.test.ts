import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { RegionRange } from "../../../src/base/geometry.ts";
import { UnreadableRegions, unhydratedParts } from "../../../src/engine/unreadable-regions.ts";

const MOST = 40;
const regions = fc.array(fc.nat(MOST - 1), { maxLength: 30 });
const span = fc
  .tuple(fc.nat(MOST), fc.nat(MOST))
  .map(([a, b]) => ({ start: Math.min(a, b), end: Math.max(a, b) }) as RegionRange);

function members(ranges: Iterable<RegionRange>): number[] {
  return [...ranges].flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i));
}

function rangesOf(set: Iterable<number>): RegionRange[] {
  return [...set].map((region) => ({ start: region, end: region + 1 }));
}

/** Who calls exactly these regions hydrated. */
function hydratedOf(set: Set<number>) {
  const next = (hydrated: boolean) => (from: number, end: number) => {
    let region = from;
    while (region < end && set.has(region) !== hydrated) region++;
    return region;
  };
  return { nextHydrated: next(true), nextUnhydrated: next(false) };
}

describe("UnreadableRegions", () => {
  test("agrees with a set of regions, however they come, and keeps ranges that do not touch", () =>
    fc.assert(
      fc.property(regions, regions, span, (first, added, range) => {
        const unreadable = new UnreadableRegions(rangesOf(first));
        for (const region of added) unreadable.add(region);
        const model = [...new Set([...first, ...added])].sort((a, b) => a - b);
        const { ranges } = unreadable;
        expect(members(ranges)).toEqual(model);
        expect(unreadable.count).toBe(model.length);
        for (const [i, { start }] of ranges.entries()) expect(start).toBeGreaterThan(ranges[i - 1]?.end ?? -1);
        const outside = members([range]).filter((region) => !model.includes(region));
        expect(members(unreadable.outside(range))).toEqual(outside);
      }),
      { numRuns: 500 },
    ));

  test("drops exactly what is hydrated by now", () =>
    fc.assert(
      fc.property(regions, regions, (given, hydrated) => {
        const unreadable = new UnreadableRegions(rangesOf(given));
        unreadable.dropHydrated(hydratedOf(new Set(hydrated)));
        const left = [...new Set(given)].filter((region) => !hydrated.includes(region)).sort((a, b) => a - b);
        expect(members(unreadable.ranges)).toEqual(left);
        expect(unreadable.count).toBe(left.length);
      }),
    ));

  test("hands out copies", () => {
    const unreadable = new UnreadableRegions([{ start: 1, end: 3 }]);
    (unreadable.ranges[0] as RegionRange).end = 30;
    expect(unreadable.ranges).toEqual([{ start: 1, end: 3 }]);
  });
});

test("unhydratedParts() names the unhydrated regions of the ranges, and no others", () => {
  const hydrated = hydratedOf(new Set([2, 3, 7]));
  const ranges = [
    { start: 0, end: 5 },
    { start: 7, end: 8 },
    { start: 9, end: 11 },
  ];
  expect(unhydratedParts(hydrated, ranges)).toEqual([
    { start: 0, end: 2 },
    { start: 4, end: 5 },
    { start: 9, end: 11 },
  ]);
});

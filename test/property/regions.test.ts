// The region bitmap and the list of dirty regions against a plain Set.
import fc from "fast-check";
import { expect, test } from "vitest";
import { type RegionRange, withoutRegions } from "../../src/base/geometry.ts";
import { DirtyRegions } from "../../src/metadata/dirty-regions.ts";
import { RegionBitmap } from "../../src/metadata/region-bitmap.ts";

const SIZE = 400;

function rangesWithin(size: number): fc.Arbitrary<RegionRange> {
  return fc
    .tuple(fc.nat({ max: size }), fc.nat({ max: size }))
    .map(([a, b]) => ({ start: Math.min(a, b), end: Math.max(a, b) }));
}

function members(ranges: Iterable<RegionRange>): Set<number> {
  const set = new Set<number>();
  for (const { start, end } of ranges) for (let i = start; i < end; i++) set.add(i);
  return set;
}

test("RegionBitmap holds, counts and finds what a Set does", () =>
  fc.assert(
    fc.property(fc.integer({ min: 1, max: SIZE }), fc.array(rangesWithin(SIZE), { maxLength: 12 }), (size, ranges) => {
      const inside = ranges.map(({ start, end }) => ({ start: Math.min(start, size), end: Math.min(end, size) }));
      const bitmap = new RegionBitmap(size);
      for (const range of inside) bitmap.setRange(range);
      const model = members(inside);
      expect(bitmap.count()).toBe(model.size);
      expect(members(bitmap.ranges())).toEqual(model);
      const next = (from: number, end: number, set: boolean) => {
        for (let i = from; i < end; i++) if (model.has(i) === set) return i;
        return end;
      };
      for (let from = 0; from < size; from++) {
        expect(bitmap.has(from)).toBe(model.has(from));
        for (const end of [size, Math.min(size, from + 7), Math.min(size, from + 64)]) {
          expect(bitmap.nextSet(from, end)).toBe(next(from, end, true));
          expect(bitmap.nextUnset(from, end)).toBe(next(from, end, false));
        }
      }
    }),
    { numRuns: 50 },
  ));

test("RegionBitmap sets and clears ranges as a Set does, in whatever order", () =>
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: SIZE }),
      fc.array(fc.record({ ranges: rangesWithin(SIZE), clears: fc.boolean() }), { maxLength: 20 }),
      (size, changes) => {
        const bitmap = new RegionBitmap(size);
        const model = new Set<number>();
        for (const { ranges, clears } of changes) {
          const inside = { start: Math.min(ranges.start, size), end: Math.min(ranges.end, size) };
          if (clears) bitmap.clearRange(inside);
          else bitmap.setRange(inside);
          for (const region of members([inside])) {
            if (clears) model.delete(region);
            else model.add(region);
          }
          expect(members(bitmap.ranges())).toEqual(model);
          expect(bitmap.count()).toBe(model.size);
        }
      },
    ),
    { numRuns: 100 },
  ));

test("RegionBitmap.load() takes words as they are on disk and leaves out bits beyond its size", () =>
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 200 }),
      fc.oneof(
        fc.uint8Array({ minLength: 32, maxLength: 32 }),
        fc.constantFrom(0, 255).map((b) => new Uint8Array(32).fill(b)),
      ),
      (size, content) => {
        const bitmap = new RegionBitmap(size);
        const words = Math.ceil(size / 64);
        const bytes = Uint8Array.from(content).subarray(0, words * 8);
        const count = bitmap.load(0, bytes);
        const model = Array.from({ length: size }, (_, i) => i).filter(
          (i) => ((bytes[i >> 3] as number) >> (i & 7)) & 1,
        );
        expect([...members(bitmap.ranges())]).toEqual(model);
        expect(count).toBe(model.length);
        expect(bitmap.count()).toBe(model.length);
      },
    ),
  ));

test("RegionBitmap.load() puts later words at their place", () => {
  const bitmap = new RegionBitmap(1000);
  expect(bitmap.load(640, Uint8Array.of(0, 0, 0, 0, 1, 0, 0, 0x80))).toBe(2);
  expect([...bitmap.ranges()]).toEqual([
    { start: 672, end: 673 },
    { start: 703, end: 704 },
  ]);
  bitmap.clear();
  expect(bitmap.count()).toBe(0);
});

test("DirtyRegions.freeze() hands over sorted ranges of exactly what was added since the last", () =>
  fc.assert(
    fc.property(fc.array(fc.array(rangesWithin(SIZE), { maxLength: 30 }), { maxLength: 4 }), (rounds) => {
      const dirty = new DirtyRegions();
      for (const round of rounds) {
        for (const range of round) dirty.add(range);
        const model = members(round);
        expect(dirty.isEmpty).toBe(model.size === 0);
        const frozen = dirty.freeze();
        expect(members(frozen)).toEqual(model);
        frozen.forEach(({ start, end }, i) => {
          expect(end).toBeGreaterThan(start);
          const before = frozen[i - 1];
          if (before !== undefined) expect(start).toBeGreaterThan(before.end); // neither overlapping nor touching
        });
        expect(dirty.isEmpty).toBe(true);
      }
    }),
  ));

test("DirtyRegions keeps exactly what was added over several compactions", () => {
  const dirty = new DirtyRegions();
  for (let i = 0; i < 10_000; i++) {
    const region = (i * 7919) % 20_000; // every other region of the upper part twice, in no order
    dirty.add({ start: region, end: region + 1 });
  }
  const model = new Set(Array.from({ length: 10_000 }, (_, i) => (i * 7919) % 20_000));
  expect(members(dirty.freeze())).toEqual(model);
});

test("DirtyRegions.freeze() merges ranges that touch, whatever order they came in", () => {
  const dirty = new DirtyRegions();
  for (const [start, end] of [
    [10, 20],
    [30, 40],
    [0, 10],
    [20, 30],
  ] as const)
    dirty.add({ start, end });
  expect(dirty.freeze()).toEqual([{ start: 0, end: 40 }]);
});

test("withoutRegions() leaves what a Set leaves, in ranges that are sorted and not empty", () =>
  fc.assert(
    fc.property(fc.array(rangesWithin(SIZE)), fc.array(rangesWithin(SIZE)), (some, others) => {
      const [from, taken] = [some, others].map((ranges) => {
        const dirty = new DirtyRegions();
        for (const range of ranges) dirty.add(range);
        return dirty.freeze();
      }) as [RegionRange[], RegionRange[]];
      const left = [...withoutRegions(from, taken)];
      const without = members(taken);
      expect(members(left)).toEqual(new Set([...members(from)].filter((region) => !without.has(region))));
      left.forEach(({ start, end }, i) => {
        expect(start).toBeLessThan(end);
        expect(start).toBeGreaterThanOrEqual(left[i - 1]?.end ?? 0);
      });
    }),
  ));

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { RegionRange } from "../../../src/base/geometry.ts";
import { HydrationOrder } from "../../../src/engine/hydration-order.ts";

const orderOf = (ranges: Iterable<[number, number]>): HydrationOrder => {
  const order = new HydrationOrder();
  for (const [start, end] of ranges) order.push({ start, end });
  return order;
};
const pairs = (ranges: Iterable<RegionRange>) => [...ranges].map(({ start, end }) => [start, end]);

describe("HydrationOrder", () => {
  test("keeps the order, and takes what follows, or lies in, the last range as part of it", () => {
    const order = orderOf([
      [10, 12],
      [12, 13],
      [11, 12],
      [3, 4],
      [2, 3],
      [2, 8],
      [20, 21],
      [10, 12],
    ]);
    expect(pairs(order.ranges())).toEqual([
      [10, 13],
      [3, 4],
      [2, 8],
      [20, 21],
      [10, 12],
    ]);
    expect(order.length).toBe(5);
  });

  test("reaches to the last of the regions that there may be, and no further", () => {
    const order = orderOf([[2 ** 31 - 1, 2 ** 31]]);
    expect(order.next).toEqual({ start: 2 ** 31 - 1, end: 2 ** 31 });
    expect(() => order.push({ start: 2 ** 31, end: 2 ** 31 + 1 })).toThrow("no region in");
    expect(() => order.push({ start: 4, end: 4 })).toThrow("no region in");
  });

  test("says the same range as next, the very object, until something is done of it", () => {
    const order = orderOf([[5, 9]]);
    const { next } = order;
    expect(order.next).toBe(next);
    order.advance(6);
    expect(order.next).toEqual({ start: 6, end: 9 });
    expect(next).toEqual({ start: 5, end: 9 });
    order.advance(2); // never back
    expect(order.next).toEqual({ start: 6, end: 9 });
    order.advance(9);
    expect(order.next).toBeUndefined();
    order.advance(11);
    order.rewind();
    expect(order.next).toEqual({ start: 5, end: 9 });
  });

  test("worked off in steps of any size has every region in the order it was pushed in", () => {
    const range = fc
      .tuple(fc.nat(1000), fc.integer({ min: 1, max: 40 }))
      .map(([start, length]): [number, number] => [start, start + length]);
    fc.assert(
      fc.property(fc.array(range, { maxLength: 3000 }), fc.integer({ min: 1, max: 50 }), (ranges, step) => {
        const order = orderOf(ranges);
        const seen: number[] = [];
        for (let next = order.next; next !== undefined; next = order.next) {
          const end = Math.min(next.start + step, next.end);
          for (let region = next.start; region < end; region++) seen.push(region);
          order.advance(end);
        }
        const wanted = ranges.flatMap(([start, end]) => Array.from({ length: end - start }, (_, i) => start + i));
        const firsts = (regions: number[]) => [...new Set(regions)];
        expect(firsts(seen)).toEqual(firsts(wanted));
      }),
    );
  });
});

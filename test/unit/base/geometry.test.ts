import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Geometry, isRegionSize, type RegionRange } from "../../../src/base/geometry.ts";

/** The regions of which all (or any) bytes that the clone has lie in a byte range, found byte by byte in units of 512. */
function model(geometry: Geometry, offset: number, length: number): { inside: number[]; touching: number[] } {
  const inside: number[] = [];
  const touching: number[] = [];
  for (let region = 0; region < geometry.regionCount; region++) {
    let covered = 0;
    let bytes = 0;
    for (let at = region * geometry.regionSize; at < (region + 1) * geometry.regionSize && at < geometry.size; at++) {
      bytes++;
      if (at >= offset && at < offset + length) covered++;
    }
    if (covered === bytes) inside.push(region);
    if (covered > 0) touching.push(region);
  }
  return { inside, touching };
}

function members({ start, end }: RegionRange): number[] {
  expect(end).toBeGreaterThanOrEqual(start);
  return Array.from({ length: end - start }, (_, index) => start + index);
}

const smallClone = fc.integer({ min: 1, max: 40 }).chain((sectors) => {
  const size = sectors * 512;
  return fc.record({
    geometry: fc.constant(new Geometry({ size, regionSize: 4096 })),
    range: fc.oneof(
      fc.tuple(fc.nat(size), fc.nat(size)),
      fc.tuple(fc.nat(sectors), fc.nat(sectors)).map(([a, b]): [number, number] => [a * 512, b * 512]),
    ),
  });
});

describe("Geometry", () => {
  test("regionsInside() and regionsTouching() agree with a look at every byte", () =>
    fc.assert(
      fc.property(smallClone, ({ geometry, range: [a, b] }) => {
        const offset = Math.min(a, b);
        const length = Math.max(a, b) - offset;
        const { inside, touching } = model(geometry, offset, length);
        expect(members(geometry.regionsInside({ offset, length }))).toEqual(inside);
        expect(members(geometry.regionsTouching({ offset, length }))).toEqual(touching);
      }),
      { numRuns: 400 },
    ));

  test("regionsInside() is empty for every range that lies inside one region, whatever its ends", () => {
    const geometry = new Geometry({ size: 3 * 4096, regionSize: 4096 });
    for (let start = 0; start <= 8; start++) {
      for (let end = start; end <= 8; end++) {
        const range = { offset: 4096 + start * 512, length: (end - start) * 512 };
        const { start: first, end: last } = geometry.regionsInside(range);
        expect(last - first).toBe(start === 0 && end === 8 ? 1 : 0);
      }
    }
  });

  test("the bytes of all regions are the clone, each byte once", () =>
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 100 }), fc.constantFrom(4096, 8192, 16384), (sectors, regionSize) => {
        const geometry = new Geometry({ size: sectors * 512, regionSize });
        let position = 0;
        for (let region = 0; region < geometry.regionCount; region++) {
          const { offset, length } = geometry.bytesOf({ start: region, end: region + 1 });
          expect(offset).toBe(position);
          expect(length).toBeGreaterThan(0);
          expect(length).toBeLessThanOrEqual(regionSize);
          expect(geometry.regionAt(offset)).toBe(region);
          expect(geometry.regionAt(offset + length - 1)).toBe(region);
          position += length;
        }
        expect(position).toBe(geometry.size);
        const all = { start: 0, end: geometry.regionCount };
        expect(geometry.bytesOf(all)).toEqual({ offset: 0, length: geometry.size });
        expect(geometry.regionsInside({ offset: 0, length: geometry.size })).toEqual(all);
      }),
    ));

  test("2^31 regions are accepted and one more is not", () => {
    const most = new Geometry({ size: 2 ** 31 * 4096, regionSize: 4096 });
    expect(most.regionCount).toBe(2 ** 31);
    expect(new Geometry({ size: 2 ** 31 * 4096 - 512, regionSize: 4096 }).regionCount).toBe(2 ** 31);
    expect(() => new Geometry({ size: 2 ** 31 * 4096 + 512, regionSize: 4096 })).toThrow(
      new RangeError("2147483649 regions are more than the 2147483648 that the format allows"),
    );
    expect(new Geometry({ size: 2 ** 31 * 4096 + 512, regionSize: 8192 }).regionCount).toBe(2 ** 30 + 1);
  });

  test("converts exactly beyond 2 TiB and at region 2^31 - 1, where 32-bit arithmetic is wrong", () => {
    const geometry = new Geometry({ size: 2 ** 31 * 4096, regionSize: 4096 });
    for (const region of [2 ** 19, 2 ** 20, 2 ** 29 + 1, 2 ** 30 + 7, 2 ** 31 - 1]) {
      const offset = region * 4096;
      expect(geometry.offsetOf(region)).toBe(offset);
      expect(geometry.regionAt(offset)).toBe(region);
      expect(geometry.regionAt(offset + 4095)).toBe(region);
      expect(geometry.bytesOf({ start: region, end: region + 1 })).toEqual({ offset, length: 4096 });
      expect(geometry.regionsInside({ offset, length: 4096 })).toEqual({ start: region, end: region + 1 });
      expect(geometry.regionsTouching({ offset: offset + 1, length: 1 })).toEqual({ start: region, end: region + 1 });
      expect(geometry.regionsInside({ offset: offset - 1, length: 4096 })).toEqual({ start: region, end: region });
      expect(geometry.regionsTouching({ offset: offset - 1, length: 2 })).toEqual({
        start: region - 1,
        end: region + 1,
      });
    }
    const large = new Geometry({ size: 2 ** 53 - 512, regionSize: 2 ** 30 });
    expect(large.bytesOf({ start: large.regionCount - 1, end: large.regionCount })).toEqual({
      offset: 2 ** 53 - 2 ** 30,
      length: 2 ** 30 - 512,
    });
  });

  test.for([0, -512, 511, 1000, 2 ** 53, Number.NaN, Number.POSITIVE_INFINITY])("refuses a size of %d", (size) => {
    expect(() => new Geometry({ size, regionSize: 4096 })).toThrow(RangeError);
  });

  test.for([0, 512, 2048, 3000, 4095, 4097, 2 ** 31, 12_288, -4096, 4096.5, Number.NaN])(
    "refuses regions of %d bytes",
    (regionSize) => {
      expect(isRegionSize(regionSize)).toBe(false);
      expect(() => new Geometry({ size: 2 ** 20, regionSize })).toThrow(RangeError);
    },
  );

  test("accepts every power of two from 4 KiB to 1 GiB as a region size, and nothing beside it", () => {
    for (let power = 12; power <= 30; power++) {
      expect(isRegionSize(2 ** power)).toBe(true);
      expect(isRegionSize(2 ** power + 1)).toBe(false);
      expect(isRegionSize(2 ** power - 1)).toBe(false);
    }
  });

  test("regionAt() and offsetOf() take nothing outside the clone", () => {
    const geometry = new Geometry({ size: 10 * 512, regionSize: 4096 });
    expect(() => geometry.regionAt(-1)).toThrow("offset -1 outside the clone");
    expect(() => geometry.regionAt(10 * 512)).toThrow("offset 5120 outside the clone");
    expect(() => geometry.offsetOf(3)).toThrow("region 3 outside the clone");
    expect(() => geometry.offsetOf(-1)).toThrow("region -1 outside the clone");
    expect(geometry.offsetOf(2)).toBe(8192); // the end of the last region
  });
});

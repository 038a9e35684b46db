import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { FirstTouches } from "../../../src/engine/first-touches.ts";

const KIB = 1024;
const TIB = 2 ** 40;

/** Records of a device of `size` bytes: what was told, as offset and length. */
function record(size: number) {
  const told: [number, number][] = [];
  const touches = new FirstTouches(size, ({ offset, length }) => void told.push([offset, length]));
  return { touches, told };
}

describe("FirstTouches", () => {
  test("tells each place once, in the order of first touch, neighbours in a row as one", () => {
    const { touches, told } = record(1024 * KIB);
    touches.touch(8 * KIB, 512);
    touches.touch(12 * KIB, 4 * KIB);
    touches.touch(16 * KIB, 1);
    touches.touch(0, 4 * KIB);
    touches.touch(9 * KIB, 100); // known
    touches.touch(4 * KIB, 20 * KIB); // the first and the last 4 KiB are new
    touches.touch(512 * KIB, 0);
    touches.tellRest();
    touches.tellRest();
    expect(told).toEqual([
      [8 * KIB, 12 * KIB],
      [0, 8 * KIB],
      [20 * KIB, 4 * KIB],
    ]);
  });

  test("tells what is left when asked to, and goes on after it", () => {
    const { touches, told } = record(1024 * KIB);
    touches.touch(0, 4 * KIB);
    expect(told).toEqual([]);
    touches.tellRest();
    touches.touch(4 * KIB, 4 * KIB);
    touches.tellRest();
    expect(told).toEqual([
      [0, 4 * KIB],
      [4 * KIB, 4 * KIB],
    ]);
  });

  test("tells no more than the device has", () => {
    const size = 10 * KIB + 512;
    const { touches, told } = record(size);
    touches.touch(size - 1, 1);
    touches.tellRest();
    expect(told).toEqual([[8 * KIB, size - 8 * KIB]]);
  });

  test.for([
    [512, 4 * KIB],
    [TIB, 4 * KIB],
    [TIB + 512, 8 * KIB],
    [16 * TIB, 64 * KIB],
    [2 ** 53 - 512, 2 ** 25],
  ] as const)("of %i bytes counts in units of %i", ([size, granule]) => {
    const { touches, told } = record(size);
    expect(touches.granule).toBe(granule);
    touches.touch(size - 512, 512);
    touches.tellRest();
    const offset = Math.floor((size - 1) / granule) * granule;
    expect(told).toEqual([[offset, size - offset]]);
  });

  test("tells what a list of the units touched would, whatever is touched, and whenever the rest is told", () => {
    const units = 300;
    const range = fc.tuple(fc.nat(units * 4 * KIB - 1), fc.nat(40 * KIB));
    const step = fc.oneof({ weight: 8, arbitrary: range }, { weight: 1, arbitrary: fc.constant("rest" as const) });
    fc.assert(
      fc.property(fc.array(step), (steps) => {
        const size = units * 4 * KIB - 777;
        const { touches, told } = record(size);
        const wanted = new Set<number>();
        for (const each of steps) {
          if (each === "rest") {
            touches.tellRest();
            continue;
          }
          const offset = Math.min(each[0], size);
          const length = Math.min(each[1], size - offset);
          touches.touch(offset, length);
          for (let at = Math.floor(offset / 4096); at < Math.ceil((offset + length) / 4096); at++) wanted.add(at);
        }
        touches.tellRest();
        const seen = told.flatMap(([offset, length]) => {
          expect(offset % 4096).toBe(0);
          expect(length % 4096 === 0 || offset + length === size).toBe(true);
          return Array.from({ length: Math.ceil(length / 4096) }, (_, i) => offset / 4096 + i);
        });
        expect(seen).toEqual([...wanted]);
      }),
    );
  });
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Extent } from "../../../src/device/block-device.ts";
import { ioError } from "../../../src/device/io-error.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { ExtentCache, WINDOW_BYTES } from "../../../src/engine/extent-cache.ts";

const UNIT = WINDOW_BYTES / 4;

/** What a unit of a source is: data, zeros that are allocated, or a hole. */
type Kind = 0 | 1 | 2;

/** A source whose units are of the given kinds, and which counts how often it is asked. */
class Described extends MemoryDevice {
  readonly #kinds: Kind[];
  readonly asked: number[] = [];
  fails = 0;

  constructor(kinds: Kind[], size = kinds.length * UNIT) {
    super({ size });
    this.#kinds = kinds;
  }

  override async extents(offset: number, length: number): Promise<Extent[]> {
    this.asked.push(offset);
    if (this.fails-- > 0) throw ioError({ verb: "query", name: this.name, offset, length, errno: "EIO" });
    const extents: Extent[] = [];
    for (let at = offset; at < offset + length; ) {
      const kind = this.#kinds[Math.floor(at / UNIT)];
      const end = Math.min(offset + length, (Math.floor(at / UNIT) + 1) * UNIT);
      extents.push({ offset: at, length: end - at, hole: kind === 2, zero: kind !== 0 });
      at = end;
    }
    return extents;
  }

  kindAt(offset: number): Kind {
    return this.#kinds[Math.floor(offset / UNIT)] as Kind;
  }
}

const kinds = fc.array(fc.constantFrom<Kind>(0, 1, 2), { minLength: 1, maxLength: 40 });

describe("ExtentCache", () => {
  test("answers what the source would, clipped, merged and without gaps, across any number of windows", () =>
    fc.assert(
      fc.asyncProperty(
        kinds,
        fc.nat(UNIT - 1),
        fc.array(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true })), {
          minLength: 1,
          maxLength: 8,
        }),
        async (units, cut, ranges) => {
          const source = new Described(units, units.length * UNIT - cut);
          const cache = new ExtentCache(source);
          for (const [a, b] of ranges) {
            const [start = 0, end = 0] = [a, b].map((x) => Math.floor(x * source.size)).sort((x, y) => x - y);
            const extents = await cache.extents(start, end - start);
            let position = start;
            extents.forEach(({ offset, length, hole, zero }, index) => {
              expect(offset).toBe(position);
              expect(length).toBeGreaterThan(0);
              const before = extents[index - 1];
              expect(before?.hole === hole && before.zero === zero).toBe(false); // merged
              for (let at = offset; at < offset + length; at = (Math.floor(at / UNIT) + 1) * UNIT) {
                expect([zero, hole]).toEqual([source.kindAt(at) !== 0, source.kindAt(at) === 2]);
              }
              position += length;
            });
            expect(position).toBe(end);
          }
        },
      ),
    ));

  test("zerosEnd() is where zeros that begin at an offset end, at most at the end of its window", () =>
    fc.assert(
      fc.asyncProperty(
        kinds,
        fc.nat(UNIT - 1),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        async (units, cut, a) => {
          const source = new Described(units, units.length * UNIT - cut);
          const offset = Math.floor(a * source.size);
          let end = offset;
          const windowEnd = (Math.floor(offset / WINDOW_BYTES) + 1) * WINDOW_BYTES;
          while (end < Math.min(windowEnd, source.size) && source.kindAt(end) !== 0) {
            end = Math.min(source.size, (Math.floor(end / UNIT) + 1) * UNIT);
          }
          expect(await new ExtentCache(source).zerosEnd(offset)).toBe(end);
        },
      ),
    ));

  test("asks once per window, however many wait for the answer, and wherever they jump", async () => {
    const source = new Described(new Array<Kind>(64 * 4).fill(0));
    const cache = new ExtentCache(source);
    const at = (window: number) => cache.extents(window * WINDOW_BYTES + 5, 100);
    await Promise.all([at(0), at(0), at(1), at(0)]);
    expect(source.asked).toEqual([0, WINDOW_BYTES]);
    for (let i = 0; i < 1000; i++) await at((i * 37) % 64);
    expect(source.asked).toHaveLength(64);
  });

  test("forgets the windows that were used last of all, where they have more extents than are kept", async () => {
    const COUNT = 25_000;
    const source = new (class extends Described {
      override async extents(offset: number): Promise<Extent[]> {
        this.asked.push(offset);
        return Array.from({ length: COUNT }, (_, i) => ({
          offset: offset + i,
          length: 1,
          hole: false,
          zero: i % 2 > 0,
        }));
      }
    })([], 8 * WINDOW_BYTES);
    const cache = new ExtentCache(source);
    const at = (window: number) => cache.extents(window * WINDOW_BYTES + 5, 100);
    for (const window of [0, 1, 0, 2]) await at(window); // 0 was used after 1, which makes room
    source.asked.length = 0;
    for (const window of [0, 2]) await at(window);
    expect(source.asked).toEqual([]);
    await at(1);
    expect(source.asked).toEqual([WINDOW_BYTES]);
  });

  test("keeps two windows, however many extents they have", async () => {
    const source = new (class extends Described {
      override async extents(offset: number): Promise<Extent[]> {
        this.asked.push(offset);
        return Array.from({ length: 70_000 }, (_, i) => ({
          offset: offset + i,
          length: 1,
          hole: false,
          zero: i % 2 > 0,
        }));
      }
    })([], 8 * WINDOW_BYTES);
    const cache = new ExtentCache(source);
    const at = (window: number) => cache.extents(window * WINDOW_BYTES + 5, 100);
    for (let i = 0; i < 6; i++) await at(i % 2);
    expect(source.asked).toHaveLength(2);
    for (const window of [2, 1, 2, 0]) await at(window);
    expect(source.asked).toHaveLength(4);
  });

  test("untrusted, never asks, and calls everything data", async () => {
    const source = new Described([2, 2, 2, 2, 2]);
    const cache = new ExtentCache(source, { trusted: false });
    expect(await cache.extents(4096, 8192)).toEqual([{ offset: 4096, length: 8192, hole: false, zero: false }]);
    expect(await cache.zerosEnd(4096)).toBe(4096);
    expect(source.asked).toEqual([]);
  });

  test("asks a source again that failed to answer, and tells everybody who waited", async () => {
    const source = new Described([2]);
    source.fails = 1;
    const cache = new ExtentCache(source);
    const results = await Promise.allSettled([cache.extents(0, 4096), cache.zerosEnd(0)]);
    expect(results.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(await cache.zerosEnd(0)).toBe(UNIT);
    expect(source.asked).toEqual([0, 0]);
  });
});

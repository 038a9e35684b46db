import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type BadArea, rescueAreas } from "../../../src/engine/bad-areas.ts";

interface Options {
  /** Units that cannot be read, and how often they fail before they can. */
  bad: Map<number, number>;
  retry?: number;
  mostFailed?: number;
  width?: number;
  /** Reads after which it is over. */
  overAfter?: number;
}

/** Works areas off; what was read, in order, with `|` for a pause, and what was given up. */
async function rescue(areas: BadArea<string>[], options: Options) {
  const { bad, retry = 0, mostFailed = Infinity, width = 1, overAfter = Infinity } = options;
  const reads: (number | "|")[] = [];
  const givenUp: number[] = [];
  let atWork = 0;
  let mostAtWork = 0;
  await rescueAreas(areas, {
    tryUnit: async (unit) => {
      reads.push(unit);
      mostAtWork = Math.max(mostAtWork, ++atWork);
      await Promise.resolve();
      atWork--;
      const left = bad.get(unit) ?? 0;
      if (left === 0) return undefined;
      bad.set(unit, left - 1);
      return `bad ${unit}`;
    },
    giveUp: (unit, error) => {
      expect(error).toBe(`bad ${unit}`);
      givenUp.push(unit);
    },
    isOver: () => reads.length >= overAfter,
    retry,
    pause: async () => void reads.push("|"),
    mostFailed,
    width,
  });
  return { reads, givenUp, mostAtWork };
}

const always = (...units: number[]) => new Map(units.map((unit) => [unit, Infinity]));

describe("rescueAreas()", () => {
  test("trims every area from both edges, then scrapes what is between, then tries again to and fro", async () => {
    const areas = [
      { start: 20, end: 26 },
      { start: 0, end: 8 },
    ];
    const { reads, givenUp } = await rescue(areas, { bad: always(2, 4, 6, 20), retry: 2 });
    const trimmed = [0, 1, 2, 7, 6, 20, 25, 24, 23, 22, 21];
    expect(reads).toEqual([...trimmed, 3, 4, 5, "|", 20, 6, 4, 2, "|", 2, 4, 6, 20]);
    expect(givenUp).toEqual([2, 4, 6, 20]);
  });

  test("takes areas that touch for one", async () => {
    const areas = [
      { start: 4, end: 8 },
      { start: 0, end: 4 },
    ];
    expect((await rescue(areas, { bad: always(1, 6) })).reads).toEqual([0, 1, 7, 6, 2, 3, 4, 5]);
  });

  test("does not read again at once what has failed by itself already", async () => {
    const { reads, givenUp } = await rescue([{ start: 3, end: 4, error: "bad 3" }], { bad: always(3), retry: 1 });
    expect(reads).toEqual(["|", 3]);
    expect(givenUp).toEqual([3]);
  });

  test("tries again, and gives up, before it tries more where many have failed", async () => {
    const { reads, givenUp } = await rescue([{ start: 0, end: 8 }], {
      bad: always(0, 1, 2, 3, 4, 5, 6, 7),
      retry: 1,
      mostFailed: 2,
    });
    expect(reads).toEqual([0, 7, 1, "|", 7, 1, 0, 2, 3, 4, "|", 4, 3, 2, 5, 6, "|", 6, 5]);
    expect(givenUp).toEqual([0, 1, 7, 2, 3, 4, 5, 6]);
  });

  test("rejects as a try or a pause does", async () => {
    const parts = {
      tryUnit: async () => Promise.reject(new Error("gone")),
      giveUp: () => {},
      isOver: () => false,
      retry: 0,
      pause: async () => {},
      mostFailed: 1,
      width: 4,
    };
    await expect(rescueAreas([{ start: 0, end: 8 }], parts)).rejects.toThrow("gone");
  });

  const areas = fc.array(fc.tuple(fc.nat(200), fc.integer({ min: 1, max: 40 })), { minLength: 1, maxLength: 8 });
  test("reads each unit once, and again only what has failed, as often as told; gives up what never can be read", () =>
    fc.assert(
      fc.asyncProperty(
        areas,
        fc.array(fc.tuple(fc.nat(240), fc.oneof(fc.nat(4), fc.constant(Infinity))), { maxLength: 40 }),
        fc.record({ retry: fc.nat(3), mostFailed: fc.constantFrom(0, 1, 5, 1000), width: fc.constantFrom(1, 3, 16) }),
        async (ranges, failures, options) => {
          const bad = new Map(failures);
          const units = new Set(ranges.flatMap(([start, length]) => Array.from({ length }, (_, i) => start + i)));
          const { reads, givenUp, mostAtWork } = await rescue(
            ranges.map(([start, length]) => ({ start, end: start + length })),
            { bad: new Map(bad), ...options },
          );
          const times = new Map<number, number>();
          for (const unit of reads) if (unit !== "|") times.set(unit, (times.get(unit) ?? 0) + 1);
          expect(new Set(times.keys())).toEqual(units);
          for (const unit of units) expect(times.get(unit)).toBe(1 + Math.min(options.retry, bad.get(unit) ?? 0));
          const hopeless = [...units].filter((unit) => (bad.get(unit) ?? 0) > options.retry);
          expect(givenUp.toSorted((a, b) => a - b)).toEqual(hopeless.toSorted((a, b) => a - b));
          expect(mostAtWork).toBeLessThanOrEqual(options.width);
        },
      ),
    ));

  test("stops wherever it is told that it is over, and gives nothing up from then on", () =>
    fc.assert(
      fc.asyncProperty(areas, fc.nat(60), async (ranges, overAfter) => {
        const { reads, givenUp } = await rescue(
          ranges.map(([start, length]) => ({ start, end: start + length })),
          { bad: always(...Array.from({ length: 240 }, (_, unit) => unit)), overAfter },
        );
        expect(reads.length).toBe(Math.min(overAfter, reads.length));
        if (reads.length === overAfter) expect(givenUp).toEqual([]);
      }),
    ));
});

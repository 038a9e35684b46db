import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LatencyHistogram } from "../../../src/engine/latency-histogram.ts";

describe("LatencyHistogram", () => {
  test("tells every quantile, rounded up by an eighth or a microsecond at most", () =>
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0, max: 4_000_000, noNaN: true }), { minLength: 1, maxLength: 200 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (times, q) => {
          const histogram = new LatencyHistogram();
          for (const ms of times) histogram.record(ms);
          const sorted = times.toSorted((a, b) => a - b);
          const exact = sorted[Math.max(0, Math.ceil(times.length * q) - 1)] as number;
          expect(histogram.quantile(q)).toBeGreaterThan(exact);
          expect(histogram.quantile(q)).toBeLessThanOrEqual(exact * (9 / 8) + 0.001 + 1e-9);
        },
      ),
      { numRuns: 1000 },
    ));

  test("counts what is as long several times over, takes in another, and forgets", () => {
    const [a, b] = [new LatencyHistogram(), new LatencyHistogram()];
    a.record(1, 98);
    b.record(50);
    a.add(b);
    a.record(20);
    expect(a.count).toBe(100);
    expect(a.quantile(0.98)).toBeCloseTo(1, 0);
    expect(a.quantile(0.985)).toBeGreaterThan(20);
    expect(a.quantile(0.99)).toBeLessThan(23);
    expect(a.quantile(1)).toBeGreaterThan(50);
    expect(b.count).toBe(1);
    a.clear();
    expect([a.count, a.quantile(0.99)]).toEqual([0, 0]);
  });

  test("holds what took longer than an hour, or less than nothing, for the most or the least it knows", () => {
    const histogram = new LatencyHistogram();
    histogram.record(1e12);
    expect(histogram.quantile(0.5)).toBeCloseTo(2 ** 32 / 1000, 0);
    histogram.clear();
    histogram.record(-1);
    expect(histogram.quantile(0.5)).toBe(0.001);
  });
});

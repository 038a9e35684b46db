import { describe, expect, test } from "vitest";
import { ForegroundComparison } from "../../../src/engine/foreground-comparison.ts";
import { LatencyHistogram } from "../../../src/engine/latency-histogram.ts";

/** A window in which `count` requests took `ms`, and two of a hundred `slowMs`. */
function times(ms: number, count = 10_000, slowMs = ms): LatencyHistogram {
  const histogram = new LatencyHistogram();
  histogram.record(ms, count - Math.ceil(count / 50));
  histogram.record(slowMs, Math.ceil(count / 50));
  return histogram;
}

describe("ForegroundComparison", () => {
  test("knows no difference before it knows both", () => {
    const foreground = new ForegroundComparison();
    expect([foreground.ratio, foreground.alone(0.99), foreground.atWork(0.99)]).toEqual([1, undefined, undefined]);
    foreground.addWork(times(10));
    expect([foreground.ratio, foreground.doubtful]).toEqual([1, false]);
    foreground.addRest("long", times(5));
    expect(foreground.ratio).toBeCloseTo(2, 0);
  });

  test("compares the 99th percentiles", () => {
    const foreground = new ForegroundComparison();
    foreground.addRest("long", times(1));
    foreground.addWork(times(1, 10_000, 4));
    foreground.addRest("short", times(1));
    expect(foreground.ratio).toBeCloseTo(4, 0);
    expect(foreground.atWork(0.99)).toBeCloseTo(4, 0);
    expect(foreground.atWork(0.5)).toBeCloseTo(1, 0);
    expect(foreground.alone(0.99)).toBeCloseTo(1, 0);
  });

  test.for([
    { count: 199, quantile: "90th percentile", ratio: 1 },
    { count: 19, quantile: "median", ratio: 1 },
    { count: 200, quantile: "99th percentile", ratio: 4 },
  ])("compares $count requests by their $quantile", ({ count, ratio }) => {
    const foreground = new ForegroundComparison();
    foreground.addRest("long", times(1, count));
    foreground.addWork(times(1, count, 4));
    expect(foreground.ratio).toBeCloseTo(ratio, 0);
    foreground.addWork(times(3, count));
    expect(foreground.ratio).toBeCloseTo(3, 0);
  });

  test("compares fewer than five not at all, on either side", () => {
    const foreground = new ForegroundComparison();
    foreground.addRest("long", times(1, 4));
    foreground.addWork(times(100));
    expect(foreground.ratio).toBe(1);
    foreground.addRest("long", times(1));
    foreground.addWork(times(100, 4));
    expect(foreground.ratio).toBe(1);
  });

  test("does not mind what nobody notices", () => {
    const foreground = new ForegroundComparison();
    foreground.addRest("long", times(0.01));
    foreground.addWork(times(0.055));
    expect(foreground.ratio).toBe(1);
    foreground.addWork(times(0.075));
    expect(foreground.ratio).toBeGreaterThan(4);
  });

  test("blames on copies neither what the last rest shows too, nor what one rest alone had less of", () => {
    const foreground = new ForegroundComparison();
    for (let i = 0; i < 3; i++) foreground.addRest("long", times(8));
    for (let i = 0; i < 4; i++) foreground.addRest("short", times(4));
    foreground.addWork(times(10));
    foreground.addRest("short", times(10)); // others are at it now
    expect(foreground.ratio).toBeCloseTo(1, 0);
    foreground.addRest("short", times(0.1));
    expect(foreground.ratio).toBeLessThan(3);
  });

  test("believes the short rests a quarter more than the long ones say, and says where it does not", () => {
    const foreground = new ForegroundComparison();
    foreground.addRest("long", times(1));
    foreground.addWork(times(10));
    foreground.addRest("short", times(1.1));
    expect(foreground.doubtful).toBe(false);
    for (let i = 0; i < 5; i++) foreground.addRest("short", times(10));
    expect([foreground.doubtful, foreground.ratio > 6]).toEqual([true, true]);
    expect(foreground.alone(0.99)).toBeLessThan(1.5);
    for (let i = 0; i < 2; i++) foreground.addRest("long", times(10));
    expect([foreground.doubtful, foreground.ratio]).toEqual([false, 1]);
  });

  test("forgets a rest after five short, or three long ones", () => {
    const foreground = new ForegroundComparison();
    foreground.addRest("long", times(1000));
    for (let i = 0; i < 3; i++) foreground.addRest("long", times(1));
    for (let i = 0; i < 3; i++) foreground.addRest("short", times(1000));
    for (let i = 0; i < 5; i++) foreground.addRest("short", times(1));
    expect(foreground.alone(0.99)).toBeLessThan(1.3);
  });

  test("copies what it takes note of", () => {
    const foreground = new ForegroundComparison();
    const window = times(1);
    foreground.addRest("long", window);
    window.clear();
    window.record(3, 1000);
    foreground.addWork(window);
    window.clear();
    expect(foreground.ratio).toBeCloseTo(3, 0);
  });
});

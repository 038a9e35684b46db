import { describe, expect, test } from "vitest";
import { RateMeter } from "../../../src/base/rate-meter.ts";

describe("RateMeter", () => {
  test("knows nothing from one moment alone", () => {
    const meter = new RateMeter();
    expect([meter.bytesPerSecond, meter.secondsLeft(100)]).toEqual([0, null]);
    meter.add(1000, { done: 10, moved: 10 });
    expect([meter.bytesPerSecond, meter.secondsLeft(100)]).toEqual([0, null]);
  });

  test("tells the rate by what moved, and the time left by what is done", () => {
    const meter = new RateMeter();
    meter.add(0, { done: 0, moved: 0 });
    meter.add(2000, { done: 200, moved: 50 });
    expect([meter.bytesPerSecond, meter.secondsLeft(1000), meter.secondsLeft(200)]).toEqual([25, 8, 0]);
  });

  test("forgets what is older than five seconds", () => {
    const meter = new RateMeter();
    for (let second = 0; second <= 60; second++) {
      const done = second < 50 ? second * 1000 : 50_000 + (second - 50);
      meter.add(second * 1000, { done, moved: done });
    }
    expect(meter.bytesPerSecond).toBeCloseTo(1);
  });
});

import { describe, expect, test } from "vitest";
import { ForegroundMeter } from "../../../src/engine/foreground-meter.ts";

/** A meter and a clock that is set by hand. */
function makeMeter() {
  const clock = { ms: 0, now: () => clock.ms, sleep: () => Promise.reject(new Error("nobody sleeps here")) };
  const meter = new ForegroundMeter(clock);
  /** A turn of the event loop that serves requests, which ends at a time. */
  const turn = async (ms: number, requests: number) => {
    clock.ms = ms;
    for (let i = 0; i < requests; i++) meter.touch();
    await Promise.resolve();
  };
  return { clock, meter, turn };
}

describe("ForegroundMeter", () => {
  test("takes the time of requests that are waited for, each its own", () => {
    const { clock, meter } = makeMeter();
    meter.measuring = true;
    const first = meter.begin();
    clock.ms = 5;
    const second = meter.begin();
    expect(meter.inFlight).toBe(2);
    clock.ms = 40;
    meter.end(first);
    clock.ms = 105;
    meter.end(second);
    expect([meter.inFlight, meter.requests]).toEqual([0, 2]);
    expect(meter.latency(0.5)).toBeGreaterThanOrEqual(40);
    expect(meter.latency(0.5)).toBeLessThan(46);
    expect(meter.latency(1)).toBeGreaterThanOrEqual(100);
    expect(meter.latency(1)).toBeLessThan(113);
    expect(meter.pressure.count).toBe(2);
  });

  test("takes the time from turn to turn for requests that are served at once, for each of the turn", async () => {
    const { meter, turn } = makeMeter();
    meter.measuring = true;
    await turn(100, 3); // nothing was before
    await turn(100.05, 98);
    await turn(101.05, 2);
    expect(meter.requests).toBe(103);
    expect(meter.pressure.count).toBe(100);
    expect(meter.pressure.quantile(0.98)).toBeCloseTo(0.05, 2);
    expect(meter.pressure.quantile(0.99)).toBeCloseTo(1, 0);
  });

  test("does not take the time in which nobody asked for a round trip", async () => {
    const { meter, turn } = makeMeter();
    meter.measuring = true;
    await turn(100, 1);
    await turn(121, 1);
    await turn(121.5, 1);
    expect(meter.pressure.count).toBe(1);
  });

  test("only counts what is served at once where nobody wants it measured", async () => {
    const { clock, meter, turn } = makeMeter();
    await turn(100, 3);
    await turn(101, 3);
    expect([meter.requests, meter.pressure.count]).toEqual([6, 0]);
    meter.end(meter.begin());
    expect([meter.requests, meter.pressure.count]).toEqual([7, 0]);
    clock.ms += 5;
    expect(meter.latency(1)).toBe(0.001);
  });

  test("is quiet since the last request ended, and not while one is in flight", async () => {
    const { clock, meter, turn } = makeMeter();
    meter.measuring = true;
    expect(meter.quietMs).toBe(Infinity);
    await turn(100, 1);
    clock.ms = 350;
    expect(meter.quietMs).toBe(250);
    const token = meter.begin();
    clock.ms = 10_000;
    expect(meter.quietMs).toBe(0);
    meter.end(token);
    clock.ms = 10_007;
    expect(meter.quietMs).toBe(7);
  });

  test("forgets latencies after ten to twenty seconds", () => {
    const { clock, meter } = makeMeter();
    const request = (at: number, ms: number) => {
      clock.ms = at;
      const token = meter.begin();
      clock.ms = at + ms;
      meter.end(token);
    };
    request(0, 1000);
    request(9000, 1);
    expect(meter.latency(1)).toBeGreaterThan(900);
    clock.ms = 12_000;
    expect(meter.latency(1)).toBeGreaterThan(900);
    request(25_000, 1);
    expect(meter.latency(1)).toBeLessThan(2);
    clock.ms = 60_000;
    expect(meter.latency(1)).toBe(0);
  });
});

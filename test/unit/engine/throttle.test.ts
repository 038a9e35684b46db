import { getEventListeners, setMaxListeners } from "node:events";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Throttle } from "../../../src/engine/throttle.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

interface Grant {
  at: number;
  bytes: number;
}

/** The most bytes granted in any window of `ms`, which begins at some grant. */
function mostIn(grants: Grant[], ms: number): number {
  return Math.max(
    0,
    ...grants.map(({ at: start }) =>
      grants.filter(({ at }) => at >= start && at < start + ms).reduce((sum, { bytes }) => sum + bytes, 0),
    ),
  );
}

/** Notes every grant of a throttle. */
function recorder(clock: VirtualClock, throttle: Throttle) {
  const grants: Grant[] = [];
  return {
    grants,
    async take(bytes: number, signal?: AbortSignal): Promise<void> {
      await throttle.take(bytes, signal);
      if (!signal?.aborted) grants.push({ at: clock.now(), bytes });
    },
  };
}

const RATE = 1_000_000;

describe("Throttle", () => {
  test("grants within its rate and one piece in every 200 ms while it is busy, and its rate within 1 % from then on", () =>
    fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 100_000, max: 2 ** 33 }),
        fc.array(fc.double({ min: 0.01, max: 1, noNaN: true }), { minLength: 1, maxLength: 6 }),
        async (rate, fractions) => {
          const clock = new VirtualClock();
          const throttle = new Throttle(clock, rate);
          const { grants, take } = recorder(clock, throttle);
          const worker = async (bytes: number) => {
            // Busy: a first one waits while others take.
            while (clock.now() < 3000) await take(bytes);
          };
          const pieces = fractions.map((fraction) => Math.ceil(throttle.pieceLength * fraction));
          await Promise.all([...pieces, Math.ceil(throttle.pieceLength)].map(worker));
          const largest = Math.max(...grants.map(({ bytes }) => bytes));
          const running = grants.filter(({ at }) => at >= 200 && at < 3000);
          expect(mostIn(running, 200)).toBeLessThanOrEqual(rate * 0.2 + largest + 1);
          const total = running.reduce((sum, { bytes }) => sum + bytes, 0);
          expect(Math.abs(total - rate * 2.8)).toBeLessThanOrEqual(0.01 * rate * 2.8 + largest);
        },
      ),
      { numRuns: 25 },
    ));

  test("keeps its rate within 1 % over a long time, although every sleep is a little too long", async () => {
    const clock = new VirtualClock();
    const late = {
      now: () => clock.now(),
      sleep: (ms: number, signal?: AbortSignal) => clock.sleep(Math.ceil(ms) + 4, signal),
    };
    const throttle = new Throttle(late, RATE);
    let granted = 0;
    while (clock.now() < 60_000) {
      await throttle.take(20_000);
      granted += 20_000;
    }
    expect(granted).toBeGreaterThan(0.99 * RATE * 60);
    expect(granted).toBeLessThan(1.01 * RATE * 60);
  });

  test("saves up no more than a quarter of a window while it is idle", () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(fc.record({ idleMs: fc.nat(1000), bytes: fc.integer({ min: 1, max: 50_000 }) }), { maxLength: 60 }),
        async (requests) => {
          const clock = new VirtualClock();
          const { grants, take } = recorder(clock, new Throttle(clock, RATE));
          for (const { idleMs, bytes } of requests) {
            if (idleMs > 600) await clock.sleep(idleMs);
            await take(bytes);
          }
          const largest = Math.max(0, ...grants.map(({ bytes }) => bytes));
          expect(mostIn(grants, 200)).toBeLessThanOrEqual(RATE * 0.2 * 1.25 + largest);
        },
      ),
      { numRuns: 100 },
    ));

  test("grants a request larger than its piece at once, and makes the next wait for all of it", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, 1000);
    expect(throttle.pieceLength).toBe(4096);
    await throttle.take(4096);
    expect(clock.now()).toBe(0);
    await throttle.take(4096);
    expect(clock.now()).toBe(4096 - 50);
    await throttle.take(1);
    expect(clock.now()).toBe(2 * 4096 - 50);
  });

  test("asks for pieces of 50 ms, and for any length where there is no limit", () => {
    expect(new Throttle(new VirtualClock(), RATE).pieceLength).toBe(50_000);
    expect(new Throttle(new VirtualClock(), 1).pieceLength).toBe(4096);
    expect(new Throttle(new VirtualClock(), null).pieceLength).toBe(Infinity);
  });

  test("without a limit never waits", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, null);
    for (let i = 0; i < 100; i++) await throttle.take(2 ** 40);
    expect(clock.now()).toBe(0);
    expect(clock.sleeping).toBe(0);
  });

  test("serves those who wait in the order they came, whatever they ask for", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, RATE);
    const order: number[] = [];
    const sizes = [50_000, 1, 30_000, 2, 100_000, 3, 3, 50_000];
    await Promise.all(sizes.map((bytes, index) => throttle.take(bytes).then(() => order.push(index))));
    expect(order).toEqual(sizes.map((_, index) => index));
    expect(clock.now()).toBeCloseTo(130.009, 6); // all but the last piece, less one burst
  });

  test("applies a faster rate at once to those who wait", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, 1000);
    await throttle.take(10_000);
    const waiting = Promise.all([throttle.take(1000), throttle.take(1000)]); // due in 10 s and 11 s
    for (let i = 0; i < 20; i++) await Promise.resolve();
    throttle.bytesPerSecond = RATE;
    await waiting;
    expect(clock.now()).toBeLessThan(20);
  });

  test("applies a slower rate at once, but does not make the bytes of the faster one be paid at it", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, 1_000_000_000);
    await throttle.take(50_000_000);
    await throttle.take(50_000_000); // 50 ms ahead now
    throttle.bytesPerSecond = 1000;
    await throttle.take(1000);
    expect(clock.now()).toBe(50);
    await throttle.take(1000);
    expect(clock.now()).toBe(1050);
  });

  test("lets everybody go when the limit is taken away, and limits from then on when it comes back", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, 10);
    await throttle.take(4096);
    const waiting = [1, 2, 3].map(() => throttle.take(4096));
    await Promise.resolve();
    throttle.bytesPerSecond = null;
    await Promise.all(waiting);
    expect(clock.now()).toBe(0);
    throttle.bytesPerSecond = 1000;
    expect(throttle.bytesPerSecond).toBe(1000);
    await throttle.take(1000);
    await throttle.take(1000);
    expect(clock.now()).toBe(1000);
  });

  test("ends a wait at once when its signal aborts, even behind others, and grants it nothing", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, 1000);
    await throttle.take(10_000);
    const stop = new AbortController();
    let behind = false;
    const first = throttle.take(5000); // due at 9950
    const given = throttle.take(1_000_000, stop.signal).then(() => {
      behind = true;
    });
    const last = throttle.take(1); // due 5 s after `first`, not 1000 s later
    for (let i = 0; i < 20; i++) await Promise.resolve();
    expect(behind).toBe(false);
    stop.abort();
    await given;
    expect(clock.now()).toBe(0);
    await first;
    expect(clock.now()).toBe(9950);
    await last;
    expect(clock.now()).toBe(14_950);
  });

  test("ends the wait of the first in the queue when its signal aborts, and of one that had aborted before", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, 1000);
    await throttle.take(10_000);
    const stop = new AbortController();
    const first = throttle.take(5000, stop.signal);
    for (let i = 0; i < 20; i++) await Promise.resolve();
    stop.abort();
    await first;
    await throttle.take(5000, stop.signal);
    expect(clock.now()).toBe(0);
    expect(clock.sleeping).toBe(0);
    expect(getEventListeners(stop.signal, "abort")).toEqual([]);
  });

  test("leaves no listener on a signal that never aborts", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, RATE);
    const { signal } = new AbortController();
    setMaxListeners(50, signal);
    await Promise.all(Array.from({ length: 50 }, () => throttle.take(10_000, signal)));
    expect(getEventListeners(signal, "abort")).toEqual([]);
  });
});

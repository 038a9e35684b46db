import { afterEach, describe, expect, test } from "vitest";
import { DEFAULT_MIN_RATE, Governor } from "../../../src/engine/governor.ts";
import { LatencyHistogram } from "../../../src/engine/latency-histogram.ts";
import { Throttle } from "../../../src/engine/throttle.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

const MIB = 2 ** 20;

/** What a simulated machine is like; may change at any time. */
interface Machine {
  /** Requests per second; each takes `aloneMs`, and so much longer as copies of `bears` bytes per second make it twice. */
  requests: number;
  aloneMs: number;
  bears: number;
  /** How long a piece takes besides its bytes, ms. */
  pieceMs: number;
  /** Whether there is anything to copy. */
  copies: boolean;
  /** Whether what is copied will be asked for. */
  urgent: boolean;
}

/** A background that copies as fast as it may, beside a foreground that suffers from it as `machine` says. */
function simulate(options: Partial<Machine> & { rate?: number | null; minRate?: number | null; far?: boolean } = {}) {
  const machine: Machine = {
    requests: 20_000,
    aloneMs: 1,
    bears: 50 * MIB,
    pieceMs: 1,
    ...{ copies: true, urgent: false },
    ...options,
  };
  const clock = new VirtualClock();
  const throttle = new Throttle(clock, options.rate ?? null);
  const meter = { pressure: new LatencyHistogram(), measuring: false, quietMs: Infinity };
  let moved = 0;
  const governor = new Governor({
    clock,
    meter,
    throttle,
    moved: () => moved,
    rate: options.rate ?? null,
    minRate: options.minRate ?? null,
    far: options.far ?? false,
    isUrgent: () => machine.urgent,
  });
  const requests: { at: number; ms: number; count: number }[] = [];
  const moves: { at: number; bytes: number }[] = [];
  const end = new AbortController();

  const foreground = async () => {
    let bytesPerSecond = 0;
    for (let before = 0; !end.signal.aborted; before = moved) {
      await clock.sleep(20);
      bytesPerSecond += 0.3 * ((moved - before) * 50 - bytesPerSecond);
      const count = machine.requests / 50;
      const ms = machine.aloneMs * (1 + bytesPerSecond / machine.bears);
      if (count > 0) {
        if (meter.measuring) meter.pressure.record(ms, count);
        requests.push({ at: clock.now(), ms, count });
        meter.quietMs = 0;
      } else meter.quietMs = meter.quietMs === Infinity ? Infinity : meter.quietMs + 20;
    }
  };
  const copy = async (index: number) => {
    while (!end.signal.aborted) {
      if (!machine.copies || index >= governor.depth) {
        await clock.sleep(5);
        continue;
      }
      const bytes = Math.min(governor.pieceLength, 2 * MIB, throttle.pieceLength);
      await throttle.take(bytes, end.signal);
      await clock.sleep(machine.pieceMs + bytes / (2000 * MIB) / 1000);
      moved += bytes;
      moves.push({ at: clock.now(), bytes });
    }
  };
  void foreground();
  for (let index = 0; index < 8; index++) void copy(index);
  cleanups.push(async () => {
    end.abort();
    await governor.stop();
  });

  /** Bytes per second moved since `from`, ms. */
  const rateSince = (from: number, to = clock.now()) => {
    const bytes = moves.filter(({ at }) => at >= from && at < to).reduce((sum, move) => sum + move.bytes, 0);
    return (bytes * 1000) / (to - from);
  };
  /** The foreground's 99th percentile since `from`, ms. */
  const p99Since = (from: number) => {
    const histogram = new LatencyHistogram();
    for (const { at, ms, count } of requests) if (at >= from) histogram.record(ms, count);
    return histogram.quantile(0.99);
  };
  return { machine, clock, throttle, meter, governor, rateSince, p99Since };
}

const cleanups: (() => Promise<void>)[] = [];
afterEach(async () => {
  await Promise.all(cleanups.splice(0).map((cleanup) => cleanup()));
});

describe("Governor", () => {
  test("limits nothing while nobody asks for anything", async () => {
    const { clock, governor, throttle, rateSince } = simulate({ requests: 0 });
    governor.start();
    await clock.sleep(1000);
    expect([governor.busy, throttle.bytesPerSecond, governor.pieceLength]).toEqual([false, null, Infinity]);
    expect(rateSince(0)).toBeGreaterThan(5000 * MIB);
  });

  test("holds back at once when somebody does, and lets go a quarter of a second after the last request", async () => {
    const { machine, clock, meter, governor, throttle } = simulate({ requests: 0 });
    governor.start();
    await clock.sleep(1001);
    meter.quietMs = 0;
    expect([governor.pieceLength, governor.depth, governor.busy]).toEqual([128 * 1024, 1, true]);
    expect(throttle.bytesPerSecond).toBe(DEFAULT_MIN_RATE); // a rest, to learn what the foreground is like alone
    expect(governor.shareLength).toBe(MIB);
    machine.requests = 20_000;
    await clock.sleep(5000);
    expect(throttle.bytesPerSecond).not.toBeNull();
    machine.requests = 0;
    await clock.sleep(200);
    expect(governor.busy).toBe(true);
    await clock.sleep(100);
    expect([governor.busy, governor.bytesPerSecond, governor.depth]).toEqual([false, null, Infinity]);
  });

  test("holds nothing back as long as that is urgent, whoever asks for what, and does from then on", async () => {
    const { machine, clock, governor, throttle } = simulate({ urgent: true, rate: 900 * MIB });
    governor.start();
    await clock.sleep(5000);
    expect([governor.busy, throttle.bytesPerSecond]).toEqual([false, 900 * MIB]); // but what somebody set
    expect([governor.depth, governor.pieceLength]).toEqual([Infinity, Infinity]);
    machine.urgent = false;
    expect([governor.depth, governor.busy]).toEqual([1, true]);
    await clock.sleep(50);
    expect(throttle.bytesPerSecond).toBe(DEFAULT_MIN_RATE);
    await clock.sleep(10_000);
    machine.urgent = true;
    expect([governor.busy, throttle.bytesPerSecond]).toEqual([false, 900 * MIB]);
  });

  test("leaves it to the window how much is on its way from a source far away, and bounds the rate all the same", async () => {
    const { machine, clock, meter, governor, throttle, rateSince } = simulate({ requests: 0, far: true, pieceMs: 20 });
    governor.start();
    await clock.sleep(1001);
    meter.quietMs = 0;
    expect([governor.pieceLength, governor.depth]).toEqual([128 * 1024, Infinity]);
    expect(throttle.bytesPerSecond).toBe(DEFAULT_MIN_RATE);
    machine.requests = 20_000;
    machine.bears = 10 * MIB;
    await clock.sleep(20_000);
    const from = clock.now();
    await clock.sleep(10_000);
    expect(rateSince(from)).toBeLessThan(20 * MIB);
  });

  test.for([5, 50, 150])(
    "finds the %i MiB/s that the foreground bears, and keeps its p99 within three times",
    async (mib) => {
      const { clock, governor, rateSince, p99Since } = simulate({ bears: mib * MIB });
      governor.start();
      await clock.sleep(90_000);
      expect(rateSince(30_000) / MIB).toBeGreaterThan(0.4 * mib);
      expect(p99Since(30_000)).toBeLessThan(3);
      expect(governor.p99.aloneMs).toBeLessThan(1.7); // the floor is there in rests, too
    },
  );

  test("follows a foreground that bears less, and one that bears more", async () => {
    const { machine, clock, governor, rateSince, p99Since } = simulate({ bears: 100 * MIB });
    governor.start();
    await clock.sleep(30_000);
    machine.bears = 5 * MIB;
    await clock.sleep(3000);
    const then = clock.now();
    await clock.sleep(20_000);
    expect(p99Since(then)).toBeLessThan(3);
    machine.bears = 100 * MIB;
    await clock.sleep(40_000);
    expect(rateSince(clock.now() - 10_000) / MIB).toBeGreaterThan(40);
  });

  test("never goes below the floor, also in rests, however the foreground suffers; and the floor can be moved", async () => {
    const { clock, governor, rateSince } = simulate({ bears: MIB / 2 });
    governor.start();
    await clock.sleep(20_000);
    const perSecond = (from: number, to: number) =>
      Array.from({ length: (to - from) / 1000 }, (_, i) => rateSince(from + 1000 * i, from + 1000 * (i + 1)));
    expect(Math.min(...perSecond(0, 20_000))).toBeGreaterThan(0.85 * DEFAULT_MIN_RATE);
    expect(rateSince(10_000)).toBeLessThan(5 * DEFAULT_MIN_RATE);
    governor.minRate = 20 * MIB;
    await clock.sleep(10_000);
    expect(Math.min(...perSecond(20_000, 30_000))).toBeGreaterThan(0.85 * 20 * MIB);
    governor.minRate = null;
    expect(governor.minRate).toBe(DEFAULT_MIN_RATE);
  });

  test("is not held down by a foreground that is slow by itself", async () => {
    const { machine, clock, governor, rateSince } = simulate({ bears: 1000 * MIB });
    governor.start();
    await clock.sleep(20_000);
    machine.aloneMs = 30;
    await clock.sleep(9500);
    expect(rateSince(clock.now() - 3000) / MIB).toBeGreaterThan(30);
  });

  test("gets on where others on the machine make the foreground now slow, now fast", async () => {
    const { machine, clock, governor, rateSince } = simulate({ bears: 100 * MIB });
    governor.start();
    let seed = 1;
    for (let i = 0; i < 300; i++) {
      seed = (seed * 16807) % 2147483647;
      machine.aloneMs = 1 + (seed % 5);
      await clock.sleep(100 + (seed % 400));
    }
    expect(rateSince(10_000) / MIB).toBeGreaterThan(10);
  });

  test("does not mind a few requests that say nothing", async () => {
    const { clock, governor, rateSince } = simulate({ requests: 50, bears: 10_000 * MIB });
    governor.start();
    await clock.sleep(30_000);
    expect(rateSince(20_000) / MIB).toBeGreaterThan(60);
  });

  test("keeps a foreground of few and slow requests within three times, too", async () => {
    const { clock, governor, rateSince, p99Since } = simulate({
      requests: 100,
      aloneMs: 15,
      bears: 20 * MIB,
      pieceMs: 4,
    });
    governor.start();
    await clock.sleep(60_000);
    expect(p99Since(20_000)).toBeLessThan(45);
    expect(rateSince(20_000) / MIB).toBeGreaterThan(5);
  });

  test("has more copies in flight where one at a time does not reach the floor, and takes them back", async () => {
    const { machine, clock, governor, rateSince } = simulate({ pieceMs: 200, bears: 3 * MIB });
    governor.start();
    await clock.sleep(30_000);
    expect(governor.depth).toBeGreaterThan(1);
    expect(rateSince(15_000)).toBeGreaterThan(0.85 * DEFAULT_MIN_RATE);
    machine.pieceMs = 1;
    machine.bears = MIB / 10;
    await clock.sleep(30_000);
    expect(governor.depth).toBe(1);
  });

  test("has one copy at a time where that is fast", async () => {
    const { clock, governor } = simulate({ pieceMs: 0.1, bears: 100_000 * MIB });
    governor.start();
    await clock.sleep(30_000);
    expect(governor.depth).toBe(1);
  });

  test("keeps to a rate that somebody set, busy or not, at once", async () => {
    const { machine, clock, governor, throttle, rateSince } = simulate({ rate: 30 * MIB, bears: 1000 * MIB });
    governor.start();
    await clock.sleep(20_000);
    expect(rateSince(10_000) / MIB).toBeLessThan(30.5);
    governor.rate = 2 * MIB;
    expect(throttle.bytesPerSecond).toBe(2 * MIB);
    machine.requests = 0;
    await clock.sleep(2000);
    expect(throttle.bytesPerSecond).toBe(2 * MIB);
    governor.rate = null;
    expect(throttle.bytesPerSecond).toBeNull();
    governor.rate = MIB / 2; // less than the floor: who sets it means it
    machine.requests = 20_000;
    await clock.sleep(20_000);
    expect(throttle.bytesPerSecond).toBe(MIB / 2);
  });

  test("begins a new busy time with what it knows", async () => {
    const { machine, clock, governor, rateSince } = simulate();
    governor.start();
    await clock.sleep(30_000);
    machine.requests = 0;
    await clock.sleep(2000);
    machine.requests = 20_000;
    await clock.sleep(300);
    const then = clock.now();
    await clock.sleep(600);
    expect(rateSince(then) / MIB).toBeGreaterThan(15);
  });

  test("measures, and governs, only from start to stop", async () => {
    const { clock, meter, governor, throttle } = simulate({ rate: 9 * MIB, bears: MIB });
    await clock.sleep(1000);
    expect([meter.measuring, governor.busy, throttle.bytesPerSecond]).toEqual([false, false, 9 * MIB]);
    governor.start();
    governor.start();
    expect(meter.measuring).toBe(true);
    await clock.sleep(5000);
    expect(throttle.bytesPerSecond).toBeLessThan(9 * MIB);
    await governor.stop();
    expect([meter.measuring, governor.busy, throttle.bytesPerSecond]).toEqual([false, false, 9 * MIB]);
  });
});

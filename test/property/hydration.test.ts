// One run of the hydrator under anything at once: any layout on both sides, any settings, devices of any speed, regions
// that cannot be read (for a while or for good), a full or lying destination, a flush that fails, a stop at any time.
// However it ends, it has ended; and what the metadata calls hydrated is on the destination.
import fc from "fast-check";
import { expect, test } from "vitest";
import { CloneError } from "../../src/base/errors.ts";
import { PaddedDevice } from "../../src/device/filters/padded.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { FaultyDevice } from "../support/faulty-device.ts";
import { committedRegions, formattedStore, makeHydration } from "../support/hydration.ts";
import { imageOf } from "../support/image.ts";
import { JitteryDevice } from "../support/jittery-device.ts";
import { arbitraryRuns, deviceOf } from "../support/layout.ts";
import { LoggingDevice } from "../support/logging-device.ts";
import { seededRandom } from "../support/power-loss-device.ts";
import { SlowDevice } from "../support/slow-device.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: null, freq: 2 });

const world = fc.record({
  size: fc.integer({ min: 1, max: 400_000 }),
  regionSize: fc.constantFrom(4096, 8192, 65536),
  sourceRuns: arbitraryRuns(),
  destinationRuns: arbitraryRuns(),
  /** Regions that cannot be read, and how often they fail. */
  bad: fc.array(
    fc.record({ region: fc.nat(99), times: fc.oneof(fc.integer({ min: 1, max: 4 }), fc.constant(Infinity)) }),
    { maxLength: 5 },
  ),
  known: fc.array(fc.nat(99), { maxLength: 3 }),
  latencies: fc.record({ source: fc.nat(300), destination: fc.nat(300), store: fc.nat(50) }),
  stopAt: maybe(fc.nat(5000)),
  failWrite: maybe(fc.nat(60)),
  failFlush: maybe(fc.nat(3)),
  settings: fc.record({
    threshold: maybe(fc.integer({ min: 1, max: 20 })),
    batchSize: maybe(fc.integer({ min: 1, max: 20 })),
    retry: fc.nat(3),
    maxErrors: fc.constantFrom(0, 2, 1000),
    onError: fc.constantFrom("stop" as const, "skip" as const),
    limit: maybe(fc.nat(300_000)),
  }),
  rate: maybe(fc.integer({ min: 20_000, max: 2_000_000 })),
  verify: fc.boolean(),
  trusted: fc.boolean(),
});

test(
  "A hydration ends however it ends, and has committed nothing that is not on the destination",
  { timeout: 60_000 },
  () =>
    fc.assert(
      fc.asyncProperty(world, async (w) => {
        const clock = new VirtualClock();
        const log: string[] = [];
        const padded = Math.ceil(w.size / 512) * 512;
        const regionCount = Math.ceil(padded / w.regionSize);
        const file = await deviceOf(w.sourceRuns, w.size, 1, "source");
        const reused = await deviceOf(w.destinationRuns, w.size, 2, "destination");
        const failures = new Map(w.bad.map(({ region, times }) => [region, times]));
        const faultySource = new FaultyDevice(new PaddedDevice(file), {
          failRead: ({ offset, length }) => {
            for (const [region, times] of failures) {
              if (offset >= (region + 1) * w.regionSize || offset + length <= region * w.regionSize || times === 0)
                continue;
              failures.set(region, times - 1);
              return true;
            }
            return false;
          },
        });
        const faultyDestination = new FaultyDevice(new LoggingDevice(new PaddedDevice(reused), "to", log), {
          ...(w.failWrite !== null && { failWrite: [w.failWrite], errno: "ENOSPC" }),
          ...(w.failFlush !== null && { failFlush: [w.failFlush] }),
        });
        const store = await formattedStore(padded, w.regionSize);
        const known = [...new Set(w.known)].filter((region) => region < regionCount).sort((a, b) => a - b);
        const h = await makeHydration({
          ...w,
          size: padded,
          clock,
          source: new SlowDevice(faultySource, clock, w.latencies.source),
          destination: new SlowDevice(faultyDestination, clock, w.latencies.destination),
          store: new SlowDevice(new LoggingDevice(store, "metadata", log), clock, w.latencies.store),
          lastTime: known.map((region) => ({ start: region, end: region + 1 })),
        });
        const stop = new AbortController();
        if (w.stopAt !== null) void clock.sleep(w.stopAt).then(() => stop.abort());
        const outcome = await h.run(stop.signal).catch((error: unknown) => error as Error);

        // It has ended: nothing sleeps but the stop that never came, nothing is written any more.
        const written = log.length;
        expect(clock.sleeping).toBeLessThanOrEqual(w.stopAt === null || stop.signal.aborted ? 0 : 1);
        await clock.sleep(1_000_000);
        expect(log).toHaveLength(written);
        expect(h.regions.hydratingCount).toBe(0);

        // What is called hydrated is there.
        const [expected, actual] = [await imageOf(file), await imageOf(reused)];
        const committed = await committedRegions(store);
        for (const { start, end } of committed) {
          const range = [start * w.regionSize, end * w.regionSize] as const;
          expect(Buffer.compare(actual.subarray(...range), expected.subarray(...range))).toBe(0);
        }
        const count = committed.reduce((sum, { start, end }) => sum + end - start, 0);
        if (h.commits.failure === undefined) expect(count).toBe(h.metadata.hydratedCount);
        expect(h.copier.counts.copied).toBeLessThan((w.settings.limit ?? Infinity) + w.regionSize);

        // And the outcome is what happened.
        if (outcome instanceof Error) {
          expect(outcome).toBeInstanceOf(CloneError);
          const cause = w.failWrite !== null || w.failFlush !== null || w.bad.length > 0;
          expect(cause, outcome.message).toBe(true);
          return;
        }
        const missing = regionCount - count;
        const givenUp = outcome.unreadable.reduce((sum, { start, end }) => sum + end - start, 0);
        if (outcome.end === "complete") expect([missing, Buffer.compare(actual, expected)]).toEqual([0, 0]);
        if (outcome.end === "partial") expect([missing > 0, givenUp]).toEqual([true, missing]);
        if (outcome.end === "limit") expect(w.settings.limit).not.toBeNull();
        if (outcome.end === "stopped") expect(stop.signal.aborted).toBe(true);
      }),
      { numRuns: 300 },
    ),
);

test(
  "A source that fails one read in twenty by chance is hydrated all the same, byte for byte",
  {
    timeout: 60_000,
  },
  () =>
    fc.assert(
      fc.asyncProperty(
        fc.record({
          seed: fc.integer(),
          batchSize: fc.constantFrom(null, 1, 16),
          rescueWidth: fc.constantFrom(1, 8),
          runs: arbitraryRuns(),
        }),
        async ({ seed, batchSize, rescueWidth, runs }) => {
          const size = 1200 * 4096;
          const clock = new VirtualClock();
          const random = seededRandom(seed);
          const file = await deviceOf([...runs, { kind: "data", length: size }], size, 1, "source");
          const source = new JitteryDevice(file, clock, random, { latencyMs: 50, failRead: 0.05 });
          const destination = new MemoryDevice({ size, content: Buffer.alloc(size, 0xaa) });
          const settings = { batchSize, threshold: 256 };
          const h = await makeHydration({ size, clock, source, destination, settings, rescueWidth });
          expect(await h.run()).toMatchObject({ end: "complete", unreadable: [] });
          expect(Buffer.compare(await imageOf(destination), await imageOf(file))).toBe(0);
          expect(await committedRegions(h.store)).toEqual([{ start: 0, end: 1200 }]);
        },
      ),
      // Four failures in a row are not impossible: with these dice they do not happen.
      { numRuns: 12, seed: 5 },
    ),
);

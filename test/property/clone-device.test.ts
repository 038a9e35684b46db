// A clone device under anything at once: overlapping reads, writes, zeroes, discards, flushes and FUA of any alignment,
// hydration in the background and on read, devices of any speed, that fail now and then, a source that hangs, a flush that
// fails. Whatever clients read, a plain disk might have answered too; and at the end nothing is left under way.
import fc from "fast-check";
import { expect, test } from "vitest";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { ReadsInFlight } from "../../src/engine/reads-in-flight.ts";
import { ByteHistory } from "../support/byte-history.ts";
import { bytesAt, destinationOf, makeClone } from "../support/clone-device.ts";
import { arbitraryRequests, hydrateInBackground, runClients } from "../support/clone-workload.ts";
import { formattedStore } from "../support/hydration.ts";
import { imageOf } from "../support/image.ts";
import { type Jitter, JitteryDevice } from "../support/jittery-device.ts";
import { arbitraryRuns, deviceOf, noise } from "../support/layout.ts";
import { seededRandom } from "../support/power-loss-device.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

const REGION = 4096;

const world = fc
  .record({ size: fc.integer({ min: 1, max: 12 * REGION }), seed: fc.integer() })
  .chain(({ size, seed }) =>
    fc.record({
      size: fc.constant(size),
      seed: fc.constant(seed),
      requests: arbitraryRequests(size, REGION, 40),
      sourceRuns: arbitraryRuns(5),
      latencies: fc.record({ source: fc.nat(400), destination: fc.nat(200), store: fc.nat(100) }),
      trouble: fc.constantFrom("none", "none", "errors", "hangs", "flush"),
      immediate: fc.constantFrom(0, 0.5),
      hydrateOnRead: fc.constantFrom("always" as const, "whole" as const, "never" as const),
      discardPassdown: fc.boolean(),
      background: fc.boolean(),
      sourceDepth: fc.constantFrom(1, 8),
      writeBehindBytes: fc.constantFrom(REGION, 8 * REGION),
      sharesReads: fc.boolean(),
      retry: fc.constantFrom(0, 2),
    }),
  );

test("A clone answers what a plain disk might answer, whatever happens at the same time", { timeout: 120_000 }, () =>
  fc.assert(
    fc.asyncProperty(world, async (w) => {
      const clock = new VirtualClock();
      const random = seededRandom(w.seed);
      const { size, immediate } = w;
      const trouble: Record<string, [Jitter, Jitter]> = {
        none: [{ latencyMs: 0 }, { latencyMs: 0 }],
        errors: [
          { latencyMs: 0, failRead: 0.2 },
          { latencyMs: 0, failWrite: 0.1 },
        ],
        hangs: [{ latencyMs: 0, hangRead: 0.1 }, { latencyMs: 0 }],
        flush: [{ latencyMs: 0 }, { latencyMs: 0, failFlush: 0.2 }],
      };
      const [badSource, badDestination] = trouble[w.trouble] as [Jitter, Jitter];
      const file = await deviceOf(w.sourceRuns, size, 1, "source");
      const disk = new MemoryDevice({ name: "disk", size, content: noise(size, 2) });
      const original = await imageOf(file);
      const source = new JitteryDevice(destinationOf(file, size), clock, random, {
        ...badSource,
        latencyMs: w.latencies.source,
        immediate,
      });
      const destination = new JitteryDevice(destinationOf(disk, size), clock, random, {
        ...badDestination,
        latencyMs: w.latencies.destination,
        immediate,
      });
      const store = await formattedStore(Math.ceil(size / 512) * 512, REGION);
      const latencyMs = w.latencies.store;
      const inFlight = new ReadsInFlight();
      const clone = await makeClone({
        ...w,
        clock,
        source,
        destination,
        ...(w.sharesReads && { reads: inFlight, readAheadBytes: () => 65_536 }),
        store: new JitteryDevice(store, clock, random, { latencyMs }),
        sourceTimeoutMs: 30_000,
      });
      const history = new ByteHistory(original);
      const stop = new AbortController();
      const background = w.background ? hydrateInBackground(clone, random, stop.signal) : undefined;

      const report = await runClients(clone, history, w.requests);
      expect(report.wrong).toEqual([]);
      if (w.trouble === "none") expect([...report.failures.keys()].filter((name) => name !== "ENOTSUP")).toEqual([]);
      stop.abort();
      await background;
      await clone.device.drain();

      // Nothing is left under way.
      expect(clone.regions.hydratingCount).toBe(0);
      expect([clone.device.inFlight, clone.device.stats.writeBehindBytes, clone.meter.busy]).toEqual([0, 0, 0]);

      for (const buffer of report.abandoned) expect(buffer.every((byte) => byte === 0xdd)).toBe(true);

      // Once the devices are well again, everything that was changed is there, and everything else is the source's.
      source.jitter = { latencyMs: 1 };
      destination.jitter = { latencyMs: 1 };
      await clock.sleep(7_200_000); // what hangs has answered, and holds no place any more
      expect(history.check(0, await bytesAt(clone.device, 0, size), history.now())).toBeUndefined();
      if (clone.commits.failure !== undefined) {
        await expect(clone.device.write(0, Buffer.alloc(1))).rejects.toBe(clone.commits.failure);
        await expect(clone.device.flush()).rejects.toBe(clone.commits.failure);
        return;
      }
      // And so it is when the clone stands alone.
      await clone.device.drain();
      for (let region = 0; region < clone.geometry.regionCount; region++) {
        if (clone.regions.state(region) === "hydrated") continue;
        const hydration = clone.regions.begin({ start: region, end: region + 1 });
        await clone.copier.copy(clone.geometry.bytesOf(hydration), new AbortController().signal);
        clone.regions.complete(hydration);
      }
      if (clone.metadata.changed) expect(clone.device.becomeLinear()).toBe(false);
      await clone.device.flush();
      expect(clone.device.becomeLinear()).toBe(true);
      const linear = await runClients(clone, history, w.requests);
      expect(linear.wrong).toEqual([]);
      expect([...linear.failures.keys()].filter((name) => name !== "ENOTSUP")).toEqual([]);
      expect(history.check(0, await imageOf(disk), history.now())).toBeUndefined();
      await clone.device[Symbol.asyncDispose]();
      expect(inFlight.count).toBe(0);
    }),
    { numRuns: Number(process.env.CLONE_TEST_RUNS ?? 150) },
  ),
);

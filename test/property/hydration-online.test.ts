// Hydration beside clients, with anything done to it at any time: tuned, paused, resumed, hinted at, made slower and
// faster, while clients hydrate regions themselves or fail to, reads and writes fail for a while, and the rest is retried.
// Whatever happened, no region is ever hydrated twice, threshold and batch size are never exceeded, and it ends with every
// region hydrated, on the destination, and committed.
import fc from "fast-check";
import { expect, test } from "vitest";
import type { RegionRange } from "../../src/base/geometry.ts";
import { FaultyDevice, type Operation } from "../support/faulty-device.ts";
import { committedRegions, makeOnlineHydration } from "../support/hydration.ts";
import { imageOf } from "../support/image.ts";
import { arbitraryRuns, deviceOf } from "../support/layout.ts";
import { SlowDevice } from "../support/slow-device.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: null, freq: 3 });
const threshold = maybe(fc.integer({ min: 0, max: 20 }));
const batchSize = maybe(fc.integer({ min: 0, max: 20 }));
const range = fc.record({ start: fc.nat(99), length: fc.integer({ min: 1, max: 50 }) });

const event = fc.oneof(
  fc.record({ what: fc.constant("tune" as const), to: fc.record({ threshold, batchSize }, { requiredKeys: [] }) }),
  fc.record({ what: fc.constantFrom("pause" as const, "resume" as const, "retry" as const) }),
  fc.record({ what: fc.constant("rate" as const), rate: maybe(fc.integer({ min: 20_000, max: 2_000_000 })) }),
  fc.record({
    what: fc.constant("allow" as const),
    pieceLength: fc.constantFrom(4096, 65536, 2 ** 20),
    depth: fc.integer({ min: 1, max: 4 }),
  }),
  fc.record({ what: fc.constant("hint" as const), range, kind: fc.constantFrom("asked" as const, "nearby" as const) }),
  /** A client hydrates some regions itself, which takes it a while, or fails to. */
  fc.record({ what: fc.constant("client" as const), range, ms: fc.nat(3000), fails: fc.boolean() }),
);

const world = fc.record({
  size: fc.integer({ min: 1, max: 400_000 }).map((bytes) => Math.ceil(bytes / 512) * 512),
  regionSize: fc.constantFrom(4096, 8192, 65536),
  sourceRuns: arbitraryRuns(),
  destinationRuns: arbitraryRuns(),
  settings: fc.record({
    threshold,
    batchSize,
    retry: fc.nat(2),
    maxErrors: fc.constantFrom(0, 2, 1000),
    onError: fc.constantFrom("stop" as const, "skip" as const),
  }),
  known: fc.array(fc.nat(99), { maxLength: 3 }),
  latencies: fc.record({ source: fc.nat(300), destination: fc.nat(300), store: fc.nat(50) }),
  /** Reads of these regions fail until then, ms. */
  bad: fc.array(fc.record({ region: fc.nat(99), until: fc.nat(30_000) }), { maxLength: 4 }),
  sourceGone: maybe(fc.record({ from: fc.nat(5000), ms: fc.nat(60_000) })),
  destinationFull: maybe(fc.record({ from: fc.nat(5000), ms: fc.nat(60_000), region: fc.nat(99) })),
  events: fc.array(fc.record({ at: fc.nat(20_000), event }), { maxLength: 20 }),
  rate: maybe(fc.integer({ min: 50_000, max: 2_000_000 })),
  trusted: fc.boolean(),
});

test(
  "Hydration beside clients ends with every region hydrated once, whatever is done to it meanwhile",
  { timeout: 60_000 },
  () =>
    fc.assert(
      fc.asyncProperty(world, async (w) => {
        const clock = new VirtualClock();
        const regionCount = Math.ceil(w.size / w.regionSize);
        const regionsAt = ({ start, length }: { start: number; length: number }): RegionRange => {
          const from = start % regionCount;
          return { start: from, end: Math.min(regionCount, from + length) };
        };
        const within = (now: number, span: { from: number; ms: number } | null) =>
          span !== null && now >= span.from && now < span.from + span.ms;
        const touches = (region: number, { offset, length }: Operation) =>
          offset < (region + 1) * w.regionSize && offset + length > region * w.regionSize;

        const file = await deviceOf(w.sourceRuns, w.size, 1, "source");
        const memory = await deviceOf(w.destinationRuns, w.size, 2, "destination");
        const source = new FaultyDevice(file, {
          failRead: (read) =>
            within(clock.now(), w.sourceGone) ||
            w.bad.some(({ region, until }) => clock.now() < until && touches(region % regionCount, read)),
        });
        const destination = new FaultyDevice(memory, {
          failWrite: (write) =>
            within(clock.now(), w.destinationFull) && touches((w.destinationFull?.region ?? 0) % regionCount, write),
          errno: "ENOSPC",
        });
        // What is gone answers ENODEV; a bad region EIO.
        Object.defineProperty(source.faults, "errno", {
          get: () => (within(clock.now(), w.sourceGone) ? "ENODEV" : "EIO"),
        });
        const allowance = { pieceLength: 65536, depth: 2, shareLength: 65536 };
        const h = await makeOnlineHydration({
          ...w,
          clock,
          source: new SlowDevice(source, clock, w.latencies.source),
          destination: new SlowDevice(destination, clock, w.latencies.destination),
          allowance,
          lastTime: w.known.map((region) => regionsAt({ start: region, length: 1 })),
        });

        // The bounds hold whenever a batch is begun. Zeros move nothing, and do not count.
        const content = await imageOf(file);
        const movesBytes = ({ start, end }: RegionRange) =>
          content.subarray(start * w.regionSize, end * w.regionSize).some((byte) => byte !== 0);
        const moving = new Map<object, number>();
        let byClient = false;
        const begin = h.regions.begin.bind(h.regions);
        h.regions.begin = (batch, ...rest) => {
          const { paused, threshold, batchSize } = h.hydrator;
          if (!byClient) {
            expect([paused, threshold === 0]).toEqual([false, false]);
            const length = batch.end - batch.start;
            const before = [...moving.values()].reduce((sum, regions) => sum + regions, 0);
            if (movesBytes(batch)) expect(length).toBeLessThanOrEqual(Math.min(batchSize, threshold - before));
          }
          const hydration = begin(batch, ...rest);
          if (byClient || movesBytes(batch)) moving.set(hydration, batch.end - batch.start);
          return hydration;
        };
        for (const how of ["complete", "fail"] as const) {
          const end = h.regions[how].bind(h.regions) as (hydration: RegionRange, ...rest: unknown[]) => boolean;
          h.regions[how] = ((hydration: RegionRange, ...rest: unknown[]) => {
            moving.delete(hydration);
            return end(hydration, ...rest);
          }) as never;
        }

        const client = async (part: RegionRange, ms: number, fails: boolean) => {
          const free = h.regions.nextUnhydrated(part.start, part.end, 100);
          if (free === undefined) return;
          byClient = true;
          const hydration = h.regions.begin(free);
          byClient = false;
          await clock.sleep(ms);
          if (fails) return h.regions.fail(hydration);
          const offset = free.start * w.regionSize;
          const bytes = new Uint8Array(Math.min(w.size, free.end * w.regionSize) - offset);
          await file.read(offset, bytes);
          await memory.write(offset, bytes);
          h.regions.complete(hydration);
        };
        const happen = async ({ at, event }: (typeof w.events)[number]) => {
          await clock.sleep(at);
          if (event.what === "tune") h.hydrator.tune(event.to);
          if (event.what === "pause") h.hydrator.pause();
          if (event.what === "resume") h.hydrator.resume();
          if (event.what === "retry") h.hydrator.retryUnreadable();
          if (event.what === "rate") h.throttle.bytesPerSecond = event.rate;
          if (event.what === "allow") Object.assign(allowance, event);
          if (event.what === "hint") h.hydrator.hint(regionsAt(event.range), event.kind);
          if (event.what === "client") await client(regionsAt(event.range), event.ms, event.fails);
        };
        const happenings = w.events.map(happen);
        const running = h.run();
        await Promise.all(happenings);
        // From here on everything is well, and somebody says so, as often as there may be something left to stop at.
        let ended: string | undefined;
        void running.then((end) => {
          ended = end;
        });
        for (let round = 0; round < 20 && ended === undefined; round++) {
          await clock.sleep(100_000);
          h.hydrator.tune({ threshold: 4, batchSize: 2 });
          h.hydrator.resume();
        }
        expect(ended).toBe("complete");
        expect(h.regions.hydratingCount).toBe(0);
        expect(clock.sleeping).toBe(0);
        expect(Buffer.compare(await imageOf(memory), await imageOf(file))).toBe(0);
        expect(await committedRegions(h.store)).toEqual([{ start: 0, end: regionCount }]);
        expect([h.hydrator.unreadable, h.hydrator.stalled, moving.size]).toEqual([[], undefined, 0]);
      }),
      { numRuns: 150 },
    ),
);

// A clone whose destination is behind a connection that breaks at any moment, and loses what was not flushed. Clients overlap
// in any way, hydration goes on in the background and on read. Whatever is lost: what clients read, a plain disk might have
// answered; at each break, what is durable and what the metadata says of it make a disk that a power cut might have left; and a
// client whose changes may be lost is told so, by a clone that has failed.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LostWritesError } from "../../src/base/errors.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { ByteHistory } from "../support/byte-history.ts";
import { bytesAt, destinationOf, makeClone } from "../support/clone-device.ts";
import { arbitraryRequests, hydrateInBackground, runClients } from "../support/clone-workload.ts";
import { committedRegions, formattedStore, makeHydration, makeOnlineHydration } from "../support/hydration.ts";
import { imageOf } from "../support/image.ts";
import { JitteryDevice } from "../support/jittery-device.ts";
import { arbitraryRuns, deviceOf, noise, type Run } from "../support/layout.ts";
import { LossyLinkDevice } from "../support/lossy-link-device.ts";
import { seededRandom } from "../support/power-loss-device.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

const REGION = 4096;
const RUNS = Number(process.env.CLONE_TEST_RUNS ?? 60);

/** Once the clone has failed, what was not durable may or may not be there. */
class ForgivingHistory extends ByteHistory {
  failed: () => boolean = () => false;

  override check(offset: number, actual: Uint8Array, begunAt: number): string | undefined {
    const wrong = super.check(offset, actual, begunAt);
    return wrong !== undefined && this.failed() ? this.checkAfterPowerLoss(offset, actual) : wrong;
  }
}

/** All bytes of a device in memory, at this very moment. */
function copyOf(device: MemoryDevice): Buffer {
  const bytes = Buffer.alloc(device.size);
  device.tryRead(0, bytes);
  return bytes;
}

/** What a clone of this destination and metadata shows when it is opened again. */
async function contentOf(size: number, source: MemoryDevice, disk: Uint8Array, store: Uint8Array): Promise<Buffer> {
  const reopened = await makeClone({
    size,
    regionSize: REGION,
    source: destinationOf(source, size),
    destination: destinationOf(new MemoryDevice({ size, content: disk }), size),
    store: new MemoryDevice({ size: store.length, content: store }),
  });
  return await bytesAt(reopened.device, 0, size);
}

const link = fc.record({
  latencyMs: fc.nat(200),
  chance: fc.constantFrom(0.02, 0.1, 0.3),
  most: fc.integer({ min: 0, max: 5 }),
  outageMs: fc.constantFrom(0, 500, 5000),
  patienceMs: fc.constantFrom(Infinity, Infinity, 1000),
  strayMs: fc.constantFrom(0, 2000, 20_000),
});

const served = fc
  .record({ size: fc.integer({ min: 1, max: 12 * REGION }), seed: fc.integer() })
  .chain(({ size, seed }) =>
    fc.record({
      size: fc.constant(size),
      seed: fc.constant(seed),
      requests: arbitraryRequests(size, REGION, 30),
      sourceRuns: arbitraryRuns(5),
      sourceLatencyMs: fc.nat(300),
      link,
      hydrateOnRead: fc.constantFrom("always" as const, "whole" as const, "never" as const),
      discardPassdown: fc.boolean(),
      background: fc.boolean(),
    }),
  );

test("A clone never shows what a destination has lost as data, nor vouches for it", { timeout: 120_000 }, () =>
  fc.assert(
    fc.asyncProperty(served, async (w) => {
      const clock = new VirtualClock();
      const random = seededRandom(w.seed);
      const { size } = w;
      const file = await deviceOf(w.sourceRuns, size, 1, "source");
      const original = await imageOf(file);
      const history = new ForgivingHistory(original);
      const moments: { disk: Buffer; store: Buffer; history: ByteHistory }[] = [];
      const remember = (): void =>
        void moments.push({ disk: lossy.durable, store: stored(), history: history.snapshot() });
      const lossy = new LossyLinkDevice(noise(size, 2), "disk", { ...w.link, clock, random, onBreak: remember });
      const store = await formattedStore(Math.ceil(size / 512) * 512, REGION);
      const stored = (): Buffer => copyOf(store);
      const clone = await makeClone({
        ...w,
        clock,
        source: new JitteryDevice(destinationOf(file, size), clock, random, { latencyMs: w.sourceLatencyMs }),
        destination: destinationOf(lossy, size),
        store: new JitteryDevice(store, clock, random, { latencyMs: 50 }),
        link: lossy,
      });
      history.failed = () => clone.commits.failure !== undefined;
      const stop = new AbortController();
      const background = w.background ? hydrateInBackground(clone, random, stop.signal) : undefined;
      const report = await runClients(clone, history, w.requests);
      const isOfLoss = (wrong: string): boolean => wrong.endsWith("regions are hydrated no more"); // which is as it should be
      expect(report.wrong.filter((wrong) => !isOfLoss(wrong))).toEqual([]);
      stop.abort();
      await background;
      await clone.device.drain();
      expect([clone.regions.hydratingCount, clone.device.inFlight]).toEqual([0, 0]);

      // The link is well again. A client that lost something hears of it; all others have what they wrote.
      lossy.options = { ...lossy.options, chance: 0, patienceMs: Infinity };
      await clock.sleep(w.link.strayMs);
      await clone.device.flush().catch((error: unknown) => expect(error).toBe(clone.commits.failure));
      expect(history.check(0, await bytesAt(clone.device, 0, size), history.now())).toBeUndefined();
      remember();
      for (const { disk, store: metadata, history: then } of moments) {
        const content = await contentOf(size, file, disk, metadata);
        expect(then.checkAfterPowerLoss(0, content)).toBeUndefined();
      }
      if (clone.commits.failure === undefined) {
        const content = await contentOf(size, file, lossy.durable, stored());
        expect(history.check(0, content, history.now())).toBeUndefined();
      } else expect(lossy.breaks).toBeGreaterThan(0);
      await clone.device[Symbol.asyncDispose]();
    }),
    { numRuns: RUNS },
  ),
);

// A copy and the flush behind it met each break one after the other, so that each of seven breaks cost two rounds of the ten.
const toldTwice = {
  size: 54_272,
  seed: 1116424317,
  sourceRuns: [
    { kind: "data", length: 12_288 },
    { kind: "hole", length: 20_480 },
    { kind: "data", length: 24_576 },
  ] as Run[],
  sourceLatencyMs: 0,
  link: { latencyMs: 17, chance: 0.1 as const, most: 7 },
  strayMs: 20_000 as const,
  outageMs: 20_000 as const,
  verify: false,
  threshold: null,
};

const hydrated = fc.record({
  size: fc.integer({ min: 1, max: 200_000 }).map((bytes) => Math.ceil(bytes / 512) * 512),
  seed: fc.integer(),
  sourceRuns: arbitraryRuns(),
  sourceLatencyMs: fc.nat(200),
  link: fc.record({ latencyMs: fc.nat(300), chance: fc.constantFrom(0.02, 0.1), most: fc.integer({ min: 0, max: 8 }) }),
  strayMs: fc.constantFrom(0, 20_000),
  outageMs: fc.constantFrom(0, 500, 20_000),
  verify: fc.boolean(),
  threshold: fc.constantFrom(null, 1, 7),
});

describe.for(["offline", "online"])("A hydration %s, of which the destination loses what it likes", (kind) => {
  test("copies it again, ends complete, and never calls hydrated what is not", { timeout: 120_000 }, () =>
    fc.assert(
      fc.asyncProperty(hydrated, async (w) => {
        const clock = new VirtualClock();
        const random = seededRandom(w.seed);
        const { size, verify } = w;
        const source = await deviceOf(w.sourceRuns, size, 1, "source");
        const expected = await imageOf(source);
        const store = await formattedStore(size, REGION);
        const moments: { disk: Buffer; metadata: Buffer }[] = [];
        const destination = new LossyLinkDevice(noise(size, 2), "disk", {
          ...w.link,
          clock,
          random,
          outageMs: w.outageMs,
          strayMs: w.strayMs,
          onBreak: () => void moments.push({ disk: destination.durable, metadata: copyOf(store) }),
        });
        const options = {
          size,
          clock,
          source: new JitteryDevice(source, clock, random, { latencyMs: w.sourceLatencyMs }),
          destination,
          store,
          link: destination,
          verify,
          settings: { threshold: w.threshold },
        };
        const hydrate = async (): Promise<string> => {
          if (kind === "offline") {
            const h = await makeHydration(options);
            return (await h.run()).end;
          }
          const h = await makeOnlineHydration(options);
          const end = await h.run();
          expect([h.commits.complete, h.hydrator.stalled]).toEqual([true, undefined]);
          return end;
        };
        // A commit that five breaks have met in a row gives up, and another run goes on. Ten rounds in vain take more breaks.
        const end = await hydrate().catch(async (error: unknown) => {
          if (!(error instanceof LostWritesError) || error.message.includes("again and again")) throw error;
          expect(destination.breaks).toBeGreaterThanOrEqual(5);
          destination.options = { ...destination.options, chance: 0 };
          return await hydrate();
        });
        expect(end).toBe("complete");
        expect(Buffer.compare(destination.durable, expected)).toBe(0);
        expect(await committedRegions(store)).toEqual([{ start: 0, end: Math.ceil(size / REGION) }]);
        for (const { disk, metadata } of moments) {
          const device = new MemoryDevice({ size: metadata.length, content: metadata });
          for (const { start, end } of await committedRegions(device)) {
            const range = [start * REGION, end * REGION] as const;
            expect(Buffer.compare(disk.subarray(...range), expected.subarray(...range))).toBe(0);
          }
        }
      }),
      { numRuns: RUNS, examples: [[toldTwice]] },
    ),
  );
});

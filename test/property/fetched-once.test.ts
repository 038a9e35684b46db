// Clients that read, hydration in the background, and a source that costs a round trip: whatever they ask for at the same
// time, and in whatever order it comes, each byte of the source is asked for once. Writes would make it less, and are left
// out; nothing fails, since what fails is asked for again.
import fc from "fast-check";
import { expect, test } from "vitest";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { ReadsInFlight } from "../../src/engine/reads-in-flight.ts";
import { bytesAt, makeClone } from "../support/clone-device.ts";
import { hydrateInBackground } from "../support/clone-workload.ts";
import { CountingSource } from "../support/counting-source.ts";
import { imageOf } from "../support/image.ts";
import { JitteryDevice } from "../support/jittery-device.ts";
import { noise } from "../support/layout.ts";
import { seededRandom } from "../support/power-loss-device.ts";
import { VirtualClock } from "../support/virtual-clock.ts";

const REGION = 8192;

const world = fc.integer({ min: 1, max: 24 }).chain((regions) =>
  fc.record({
    size: fc.constant(regions * REGION),
    seed: fc.integer(),
    pieceLength: fc.constantFrom(4096, 8192, 65_536),
    latencies: fc.record({ source: fc.nat(200), destination: fc.nat(200) }),
    sourceDepth: fc.constantFrom(1, 3, 64),
    background: fc.boolean(),
    readsAhead: fc.boolean(),
    reads: fc.array(
      fc.record({
        pauseMs: fc.oneof(fc.constant(0), fc.nat(40), fc.nat(400)),
        at: fc.nat(regions * REGION - 1),
        length: fc.oneof(fc.integer({ min: 1, max: REGION }), fc.integer({ min: 1, max: 6 * REGION })),
      }),
      { minLength: 1, maxLength: 40 },
    ),
  }),
);

test("No byte of the source is asked for twice, whoever needs it and whenever", () =>
  fc.assert(
    fc.asyncProperty(
      world,
      async ({ size, seed, pieceLength, latencies, sourceDepth, background, readsAhead, reads }) => {
        const clock = new VirtualClock();
        const random = seededRandom(seed);
        const content = noise(size, 1);
        const memory = new MemoryDevice({ name: "source", size, content });
        const source = new CountingSource(new JitteryDevice(memory, clock, random, { latencyMs: latencies.source }));
        const disk = new MemoryDevice({ name: "disk", size, content: noise(size, 2) });
        const destination = new JitteryDevice(disk, clock, random, { latencyMs: latencies.destination });
        const inFlight = new ReadsInFlight();
        const clone = await makeClone({
          size,
          regionSize: REGION,
          clock,
          source,
          destination,
          hydrateOnRead: "always",
          sourceDepth,
          pieceLength,
          reads: inFlight,
          ...(readsAhead && { readAheadBytes: () => 65_536 }),
        });
        const stop = new AbortController();
        const hydration = background ? hydrateInBackground(clone, random, stop.signal) : undefined;
        const clients: Promise<void>[] = [];
        for (const { pauseMs, at, length } of reads) {
          if (pauseMs > 0) await clock.sleep(pauseMs);
          const end = Math.min(size, at + length);
          const client = bytesAt(clone.device, at, end - at).then((bytes) =>
            expect(Buffer.compare(bytes, content.subarray(at, end))).toBe(0),
          );
          clients.push(client);
        }
        await Promise.all(clients);
        expect(Buffer.compare(await bytesAt(clone.device, 0, size), content)).toBe(0);
        await clone.device.drain();
        while (clone.regions.hydratedCount < clone.regions.regionCount) await clock.sleep(50);
        stop.abort();
        await hydration;
        expect(source.most).toBe(1);
        expect(Buffer.compare(await imageOf(disk), content)).toBe(0);
        await clone.device[Symbol.asyncDispose]();
        expect(inFlight.count).toBe(0);
      },
    ),
    { numRuns: Number(process.env.CLONE_TEST_RUNS ?? 100) },
  ));

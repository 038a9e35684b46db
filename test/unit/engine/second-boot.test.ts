// The second boot from an image, simulated: one client reads the places of a trace one after the other, over a link of some
// delay and bandwidth, while the rest of the image is hydrated. What is counted is how often it had to wait for the source,
// and how much later it was there than without waiting for anybody, in round trips.
import { describe, expect, test } from "vitest";
import type { RegionRange } from "../../../src/base/geometry.ts";
import { CloneDevice } from "../../../src/engine/clone-device.ts";
import { FirstTouches } from "../../../src/engine/first-touches.ts";
import { makeOnlineHydration } from "../../support/hydration.ts";
import { LinkDevice } from "../../support/link-device.ts";
import { OnesDevice } from "../../support/ones-device.ts";
import { seededRandom } from "../../support/random.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const REGION = 64 * KIB;
const SIZE = 4096 * MIB;
const READS = 500;
const READ = 16 * KIB;
const ROUND_TRIP_MS = 20;

/** A trace of reads all over the image. */
function bootTrace(seed: number): number[] {
  const random = seededRandom(seed);
  return Array.from({ length: READS }, () => random.integer(0, SIZE / READ - 1) * READ);
}

/** Boots from a new clone; `touched` is the order of first touches. */
async function boot(reads: readonly number[], { order = [] as RegionRange[], hydrates = true } = {}) {
  const clock = new VirtualClock();
  const link = new LinkDevice(new OnesDevice(SIZE), clock, { bytesPerSecond: 100 * MIB, roundTripMs: ROUND_TRIP_MS });
  const h = await makeOnlineHydration({
    ...{
      clock,
      size: SIZE,
      regionSize: REGION,
      source: link,
      destination: new OnesDevice(SIZE),
      trusted: false,
      order,
    },
    ...{ pieceLength: 2 * MIB, depth: 8, copiesInFlight: 8 },
  });
  const touched: RegionRange[] = [];
  const touches = new FirstTouches(SIZE, (range) => void touched.push(h.geometry.regionsTouching(range)));
  const device = new CloneDevice({
    ...h,
    exactSize: SIZE,
    meter: { begin: () => 0, end: () => {}, touch: () => {} },
    onHint: (range, kind) => h.hydrator.hint(range, kind),
    onTouch: (offset, length) => touches.touch(offset, length),
    hydrateOnRead: "always",
    discardPassdown: true,
    readOnly: false,
    sourceTimeoutMs: Infinity,
  });
  if (!hydrates) h.hydrator.pause();
  const running = h.run();
  const buffer = new Uint8Array(READ);
  let waited = 0;
  for (const offset of reads) {
    const before = clock.now();
    await device.read(offset, buffer);
    if (clock.now() > before) waited++;
    await clock.sleep(1); // what a machine does with what it has read
  }
  const roundTrips = (clock.now() - READS) / ROUND_TRIP_MS;
  h.stop.abort();
  await running;
  await device.drain();
  await device[Symbol.asyncDispose]();
  touches.tellRest();
  return { waited, roundTrips, touched };
}

describe("The second boot from an image", () => {
  test.for([1, 2])(
    "waits for a small part of what the first one waited for, with its trace (seed %i)",
    async (seed) => {
      const reads = bootTrace(seed);
      const alone = await boot(reads, { hydrates: false });
      const first = await boot(reads);
      const second = await boot(reads, { order: first.touched });
      expect(alone.waited).toBeGreaterThan(READS * 0.95);
      expect(first.waited).toBeGreaterThan(READS * 0.3); // by then the background has been everywhere
      expect(second.waited).toBeLessThanOrEqual(5);
      for (const before of [alone, first]) expect(second.roundTrips).toBeLessThan(before.roundTrips / 20);
      expect([alone.touched, second.touched]).toEqual([first.touched, first.touched]); // whatever came from where
    },
  );
});

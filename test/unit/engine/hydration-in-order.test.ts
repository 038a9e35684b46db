// Hydration in an order that is known from the last time: what comes first, how much of it is under way at once, and what
// becomes of it where something fails.
import { describe, expect, test } from "vitest";
import type { RegionRange } from "../../../src/base/geometry.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { WINDOW_BYTES } from "../../../src/engine/extent-cache.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { type HydrationOptions, makeHydration, makeOnlineHydration } from "../../support/hydration.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { OnesDevice } from "../../support/ones-device.ts";
import { SlowDevice } from "../../support/slow-device.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

const REGION = 4096;
const REGIONS = 64;
const SIZE = REGIONS * REGION;
const CONTENT = noise(SIZE, 1);
const ONE_BY_ONE = { threshold: 1, batchSize: 1 };
const range = (start: number, end = start + 1): RegionRange => ({ start, end });
const upTo = (end: number): number[] => Array.from({ length: end }, (_, region) => region);

/** Notes the regions read, in the order of the reads. */
class ReadLog extends FilterDevice {
  readonly reads: RegionRange[] = [];
  override tryRead(): boolean {
    return false;
  }
  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.reads.push({ start: offset / REGION, end: Math.ceil((offset + buffer.length) / REGION) });
    await super.read(offset, buffer);
  }
  get regions(): number[] {
    return this.reads.flatMap(({ start, end }) => upTo(end - start).map((i) => start + i));
  }
}

/** A source whose reads are noted and take 10 ms; `spoiled` regions cannot be read. */
function loggedSource(clock: VirtualClock) {
  const faulty = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT }), {});
  const source = new ReadLog(new SlowDevice(faulty, clock, 10));
  const spoil = (bad: number[], errno = "EIO"): void => {
    const touches = ({ offset, length }: { offset: number; length: number }) =>
      bad.some((region) => offset < (region + 1) * REGION && offset + length > region * REGION);
    faulty.faults = { failRead: touches, errno };
  };
  return { source, spoil };
}

async function makeOrdered(order: RegionRange[], options: HydrationOptions = {}) {
  const clock = new VirtualClock();
  const { source, spoil } = loggedSource(clock);
  const h = await makeHydration({ clock, source, order, trusted: false, ...options });
  return { ...h, source, spoil };
}

async function makeOrderedOnline(order: RegionRange[], options: HydrationOptions = {}) {
  const clock = new VirtualClock();
  const { source, spoil } = loggedSource(clock);
  const h = await makeOnlineHydration({ clock, source, order, trusted: false, ...options });
  return { ...h, source, spoil };
}

describe("A hydration in an order", () => {
  test("copies what is in it first and in that order, then the rest ascending, each region once", async () => {
    const h = await makeOrdered([range(40, 43), range(3), range(41, 45), range(60, 62)], { settings: ONE_BY_ONE });
    expect((await h.run()).end).toBe("complete");
    const first = [40, 41, 42, 3, 43, 44, 60, 61];
    expect(h.source.regions).toEqual([...first, ...upTo(REGIONS).filter((region) => !first.includes(region))]);
    expect(Buffer.compare(await imageOf(h.destination as MemoryDevice), CONTENT)).toBe(0);
  });

  test("copies neighbours as one, as the batch size allows, and single regions singly", async () => {
    const h = await makeOrdered([range(20), range(32, 40), range(9, 11)], {
      settings: { threshold: 4, batchSize: 4, limit: 11 * REGION },
    });
    expect((await h.run()).end).toBe("limit");
    expect(h.source.reads).toEqual([range(20), range(32, 36), range(36, 40), range(9, 11)]);
  });

  test("ends at its limit in the midst of it, with what came first committed", async () => {
    const order = upTo(REGIONS)
      .reverse()
      .map((region) => range(region));
    const h = await makeOrdered(order, { settings: { limit: 5 * REGION } });
    expect((await h.run()).end).toBe("limit");
    expect([...h.metadata.hydratedRanges()]).toEqual([range(REGIONS - 5, REGIONS)]);
    expect(h.metadata.committedCount).toBe(5);
    expect(h.clock.sleeping).toBe(0);
  });

  test("stops in the midst of it", async () => {
    const h = await makeOrdered(
      upTo(REGIONS)
        .reverse()
        .map((region) => range(region)),
      { settings: ONE_BY_ONE },
    );
    const stop = new AbortController();
    void h.clock.sleep(105).then(() => stop.abort());
    expect((await h.run(stop.signal)).end).toBe("stopped");
    expect(h.regions.hydratingCount).toBe(0);
    expect(h.metadata.committedCount).toBeGreaterThan(5);
    expect(h.metadata.committedCount).toBeLessThan(REGIONS / 2);
  });

  test("goes on past what cannot be read, tries that again afterwards, and lists it", async () => {
    const h = await makeOrdered([range(50), range(7), range(30), range(8, 12)], { settings: ONE_BY_ONE });
    h.spoil([7, 9]);
    expect(await h.run()).toMatchObject({ end: "partial", unreadable: [range(7), range(9)] });
    expect(h.source.regions.slice(0, 7)).toEqual([50, 7, 30, 8, 9, 10, 11]);
    expect(h.metadata.hydratedCount).toBe(REGIONS - 2);
  });

  test("with onError stop ends soon after the first error", async () => {
    const order = upTo(REGIONS)
      .reverse()
      .map((region) => range(region));
    const h = await makeOrdered(order, { settings: { ...ONE_BY_ONE, onError: "stop", retry: 0 } });
    h.spoil([60]);
    await expect(h.run()).rejects.toThrow("EIO");
    expect(h.source.regions.filter((region) => region < 55)).toEqual([]);
  });

  test("leaves what was found unreadable before for the end", async () => {
    const h = await makeOrdered([range(5, 9), range(20)], { settings: ONE_BY_ONE, lastTime: [range(6, 8)] });
    expect((await h.run()).end).toBe("complete");
    expect(h.source.regions.slice(0, 3)).toEqual([5, 8, 20]);
    expect(h.source.regions.slice(-2)).toEqual([6, 7]);
  });

  test("passes over a hundred thousand ranges that are hydrated without a step of the clock", async () => {
    const order = Array.from({ length: 100_000 }, (_, i) => range((2 * i) % (REGIONS - 2)));
    const h = await makeOrdered(order, { settings: ONE_BY_ONE });
    h.metadata.markHydrated(range(0, REGIONS - 1));
    expect((await h.run()).end).toBe("complete");
    expect(h.clock.now()).toBe(10);
    expect(h.source.regions).toEqual([REGIONS - 1]);
  });

  test("lets what clients ask for go first, as long as they ask", async () => {
    const h = await makeOrderedOnline([range(40, 44), range(50)], { settings: ONE_BY_ONE });
    const running = h.run();
    await h.clock.sleep(15);
    h.hydrator.hint(range(20, 22));
    h.hydrator.hint(range(30), "nearby");
    expect(await running).toBe("complete");
    expect(h.began.slice(0, 9).map(({ start }) => start)).toEqual([40, 41, 30, 20, 21, 42, 43, 50, 0]);
  });

  test("tells as long as there is any left of it to begin, and it is not paused", async () => {
    const h = await makeOrderedOnline([range(40, 44)], { settings: ONE_BY_ONE });
    expect(h.hydrator.followsOrder).toBe(false); // not before it runs
    const running = h.run();
    await h.clock.sleep(15);
    expect(h.hydrator.followsOrder).toBe(true);
    h.hydrator.pause();
    expect(h.hydrator.followsOrder).toBe(false);
    h.hydrator.resume();
    await h.clock.sleep(30);
    expect(h.hydrator.followsOrder).toBe(false);
    expect(await running).toBe("complete");
  });

  test("begins with what of it did not arrive when a source that was gone is there again", async () => {
    const h = await makeOrderedOnline([range(40, 44), range(10, 14)], { settings: ONE_BY_ONE });
    const running = h.run();
    await h.clock.sleep(15);
    h.spoil(upTo(REGIONS), "ENODEV");
    await h.clock.sleep(500);
    h.spoil([]);
    expect(await running).toBe("complete");
    const arrived = new Set<number>();
    for (const { start } of h.began.toReversed()) arrived.add(start); // the last time that each was begun, from the end
    expect([...arrived].toReversed().slice(0, 8)).toEqual([40, 41, 42, 43, 10, 11, 12, 13]);
  });

  describe("over a source of 20 ms", () => {
    const LARGE = 65536;

    /** Hydrates `count` single regions, far apart. */
    async function farApart(regionSize: number, count: number) {
      const clock = new VirtualClock();
      const size = 4 * count * regionSize;
      const slow = new SlowDevice(new OnesDevice(size), clock, 20);
      const order = upTo(count).map((i) => range(4 * ((i * 7919) % count)));
      const h = await makeHydration({
        ...{ clock, size, regionSize, order },
        source: slow,
        destination: new OnesDevice(size),
        pieceLength: 2 ** 21,
        depth: 8,
        copiesInFlight: 8,
        settings: { limit: count * regionSize },
        trusted: false,
      });
      expect((await h.run()).end).toBe("limit");
      return { roundTrips: clock.now() / 20, mostInFlight: slow.mostInFlight };
    }

    test("keeps as many bytes of single regions under way as of large batches", async () => {
      const { roundTrips, mostInFlight } = await farApart(LARGE, 1000);
      expect(mostInFlight).toBe(2 ** 24 / LARGE);
      expect(roundTrips).toBeLessThanOrEqual(5);
    });

    test("does not wait for what it says of its holes in one place before it goes on to the next", async () => {
      const clock = new VirtualClock();
      const [regionSize, windows] = [2 ** 20, 40];
      const size = windows * WINDOW_BYTES;
      const order = upTo(windows).map((i) => range((i * WINDOW_BYTES) / regionSize));
      const source = new SlowDevice(new OnesDevice(size), clock, 20);
      const settings = { limit: windows * regionSize };
      const destination = new OnesDevice(size);
      const h = await makeHydration({
        ...{ clock, size, regionSize, order, source, destination, settings },
        pieceLength: 2 ** 21,
        depth: 32,
        copiesInFlight: 32,
      });
      expect((await h.run()).end).toBe("limit");
      expect(clock.now() / 20).toBeLessThanOrEqual(4); // a question and a read of each, all at the same time; and the flush
    });

    test("keeps 256 requests under way where regions are small", async () => {
      const { roundTrips, mostInFlight } = await farApart(REGION, 1000);
      expect(mostInFlight).toBe(256);
      expect(roundTrips).toBeLessThanOrEqual(5);
    });
  });
});

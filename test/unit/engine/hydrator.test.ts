import { describe, expect, test } from "vitest";
import { CloneError, DeviceError, LostWritesError } from "../../../src/base/errors.ts";
import type { Extent } from "../../../src/device/block-device.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { SourceReadError } from "../../../src/engine/region-copier.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { committedRegions, formattedStore, type HydrationOptions, makeHydration } from "../../support/hydration.ts";
import { imageHash, imageOf } from "../../support/image.ts";
import { deviceOf, noise } from "../../support/layout.ts";
import { LoggingDevice } from "../../support/logging-device.ts";
import { SlowDevice } from "../../support/slow-device.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const REGIONS = 64;
const SIZE = REGIONS * REGION;
const CONTENT = noise(SIZE, 1);
const all = [{ start: 0, end: REGIONS }];

/** Notes which regions are read, one list of regions per read, and when. */
class ReadLog extends FilterDevice {
  readonly reads: { regions: number[]; at: number }[] = [];
  readonly #clock: VirtualClock;
  constructor(inner: MemoryDevice | FilterDevice, clock: VirtualClock) {
    super(inner);
    this.#clock = clock;
  }
  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    const count = Math.ceil(buffer.length / REGION);
    this.reads.push({
      regions: Array.from({ length: count }, (_, i) => offset / REGION + i),
      at: this.#clock.now(),
    });
    await super.read(offset, buffer);
  }
  /** The times at which a region was read by itself. */
  alone(region: number): number[] {
    return this.reads.filter(({ regions }) => regions.length === 1 && regions[0] === region).map(({ at }) => at);
  }
}

/** A hydration from a source of which some regions cannot be read. `faulty.faults` may be changed at any time. */
async function withBadRegions(bad: number[], options: HydrationOptions & { errno?: string } = {}) {
  const clock = new VirtualClock();
  const faulty = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT }), {
    failRead: ({ offset, length }) =>
      bad.some((region) => offset < (region + 1) * REGION && offset + length > region * REGION),
    ...(options.errno && { errno: options.errno }),
  });
  const source = new ReadLog(faulty, clock);
  return { ...(await makeHydration({ ...options, clock, source })), source, faulty };
}

/** The regions whose data is where it belongs. */
async function goodRegions(destination: MemoryDevice | FilterDevice, content = CONTENT): Promise<number[]> {
  const image = await imageOf(destination as MemoryDevice);
  return Array.from({ length: REGIONS }, (_, region) => region).filter((region) =>
    image
      .subarray(region * REGION, (region + 1) * REGION)
      .equals(content.subarray(region * REGION, (region + 1) * REGION)),
  );
}

function members(ranges: Iterable<{ start: number; end: number }>): number[] {
  return [...ranges].flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i));
}

describe("Hydrator", () => {
  test("hydrates everything, and has committed it when it says so", async () => {
    const h = await makeHydration({ source: new MemoryDevice({ size: SIZE, content: CONTENT }) });
    expect(await h.run()).toEqual({ end: "complete", unreadable: [], firstReadError: undefined });
    expect(Buffer.compare(await imageOf(h.destination as MemoryDevice), CONTENT)).toBe(0);
    expect(await committedRegions(h.store)).toEqual(all);
    expect(h.clock.sleeping).toBe(0);
    expect(h.regions.hydratingCount).toBe(0);
  });

  test("copies only what is missing, and is complete at once where nothing is", async () => {
    const clock = new VirtualClock();
    const source = new ReadLog(new MemoryDevice({ size: SIZE, content: CONTENT }), clock);
    const store = await formattedStore(SIZE, REGION);
    const first = await makeHydration({ clock, source, store, settings: { limit: 8 * REGION, batchSize: 4 } });
    expect((await first.run()).end).toBe("limit");
    source.reads.length = 0;
    const { destination } = first;
    const second = await makeHydration({ clock, source, store, destination });
    expect((await second.run()).end).toBe("complete");
    expect(source.reads.flatMap(({ regions }) => regions).sort((a, b) => a - b)).toEqual(
      members([{ start: 8, end: 64 }]),
    );
    source.reads.length = 0;
    const log: string[] = [];
    const third = await makeHydration({ clock, source, store, destination: new LoggingDevice(destination, "to", log) });
    expect((await third.run()).end).toBe("complete");
    expect([source.reads, log]).toEqual([[], []]);
    expect(await goodRegions(destination as MemoryDevice)).toHaveLength(REGIONS);
  });

  test.for([1, 2, 9])(
    "does %i regions of which the last is short, into a destination with an old life",
    async (sectors) => {
      const size = (sectors - 1) * 65536 + 512;
      const source = new MemoryDevice({ size, content: noise(size, 1) });
      const destination = await deviceOf([{ kind: "data", length: size }], size, 2);
      const h = await makeHydration({ size, regionSize: 65536, source, destination });
      expect((await h.run()).end).toBe("complete");
      expect(Buffer.compare(await imageOf(destination), await imageOf(source))).toBe(0);
      expect(await committedRegions(h.store)).toEqual([{ start: 0, end: sectors }]);
    },
  );

  test("does long runs of zeros in few steps, beside the copies that the threshold allows", async () => {
    const regions = 100_000;
    const size = regions * REGION;
    const clock = new VirtualClock();
    const source = new MemoryDevice({ size });
    for (const region of [20_000, 70_000]) await source.write(region * REGION, noise(REGION, 1));
    let asked = 0;
    const memory = new (class extends MemoryDevice {
      override extents(offset: number, length: number): Promise<Extent[]> {
        asked++;
        return super.extents(offset, length);
      }
    })({ size });
    const destination = new SlowDevice(memory, clock, 100);
    const h = await makeHydration({ clock, size, source, destination, settings: { threshold: 1 } });
    expect((await h.run()).end).toBe("complete");
    expect(h.copier.counts).toEqual({ copied: 2 * REGION, reflinked: 0, zeroed: 0, skipped: size - 2 * REGION });
    expect(asked).toBeLessThan(30);
    expect(clock.now()).toBe(400); // two copies, each beside the zeros before it, the last zeros, and the flush
    expect(await committedRegions(h.store)).toEqual([{ start: 0, end: regions }]);
  });

  test("runs out of nothing when the source cannot tell its holes", async () => {
    const mute = new (class extends MemoryDevice {
      override async extents(): Promise<Extent[]> {
        throw new DeviceError('Cannot query "source": EIO', { errno: "EIO" });
      }
    })({ size: SIZE, content: CONTENT });
    const h = await makeHydration({ source: mute, settings: { retry: 0 } });
    expect(await h.run()).toMatchObject({ end: "partial", unreadable: all });
  });

  describe("threshold and batch size", () => {
    test.for([
      { threshold: 1, batchSize: 1, most: 1, length: 1 },
      { threshold: 6, batchSize: 2, most: 6, length: 2 },
      { threshold: 7, batchSize: 2, most: 6, length: 2 },
      { threshold: 3, batchSize: 16, most: 3, length: 3 },
      { threshold: 20, batchSize: null, most: 16, length: 16 },
      { threshold: 5, batchSize: null, most: 5, length: 5 },
      { threshold: null, batchSize: 4, most: 16, length: 4 },
      { threshold: null, batchSize: null, most: 64, length: 16 },
    ])(
      "$threshold and $batchSize are kept: $most regions at once, $length together",
      async ({ threshold, batchSize, most, length }) => {
        const clock = new VirtualClock();
        const source = new ReadLog(new MemoryDevice({ size: SIZE, content: CONTENT }), clock);
        const destination = new SlowDevice(new MemoryDevice({ size: SIZE }), clock, 5);
        const h = await makeHydration({
          clock,
          source,
          destination,
          settings: { threshold, batchSize },
          depth: 64,
          copiesInFlight: 4,
        });
        let seen = 0;
        const begin = h.regions.begin.bind(h.regions);
        h.regions.begin = (range) => {
          const hydration = begin(range);
          seen = Math.max(seen, h.regions.hydratingCount);
          return hydration;
        };
        expect(h.hydrator.batchSize).toBe(length);
        expect(h.hydrator.threshold).toBe(threshold ?? length * 4);
        expect((await h.run()).end).toBe("complete");
        expect(seen).toBe(most);
        expect(Math.max(...source.reads.map(({ regions }) => regions.length))).toBe(length);
        expect(source.reads.flatMap(({ regions }) => regions).sort((a, b) => a - b)).toEqual(members(all));
      },
    );

    test("auto follows a low rate down to single regions", async () => {
      const h = await makeHydration({ rate: 100_000 });
      expect([h.hydrator.batchSize, h.hydrator.threshold]).toEqual([1, 4]);
      h.throttle.bytesPerSecond = 400_000;
      expect([h.hydrator.batchSize, h.hydrator.threshold]).toEqual([4, 16]);
    });
  });

  describe("limit", () => {
    test("ends after that many bytes, rounded up to a region, with them committed, and goes on from there", async () => {
      const store = await formattedStore(SIZE, REGION);
      const destination = new MemoryDevice({ size: SIZE });
      for (const [limit, hydrated] of [
        [10 * REGION, 10],
        [1, 11],
        [16 * REGION + 1, 28],
      ] as const) {
        const clock = new VirtualClock();
        const h = await makeHydration({
          clock,
          store,
          destination: new SlowDevice(destination, clock, 3),
          settings: { limit },
        });
        expect((await h.run()).end).toBe("limit");
        expect(await committedRegions(store)).toEqual([{ start: 0, end: hydrated }]);
      }
    });

    test("is complete, not limited, where it ends exactly at the last byte", async () => {
      const h = await makeHydration({ settings: { limit: SIZE } });
      expect((await h.run()).end).toBe("complete");
    });

    test("counts what was copied: zeros found by reading, and what could not be read, do not use it up", async () => {
      const content = Buffer.from(CONTENT).fill(0, 0, 32 * REGION);
      const clock = new VirtualClock();
      const source = new SlowDevice(new MemoryDevice({ size: SIZE, content }), clock, 5);
      const zeros = await makeHydration({ clock, source, trusted: false, settings: { limit: 16 * REGION } });
      expect((await zeros.run()).end).toBe("limit");
      expect(zeros.copier.counts.copied).toBe(16 * REGION);

      const bad = await withBadRegions(members([{ start: 0, end: 16 }]), { settings: { limit: 16 * REGION } });
      expect((await bad.run()).end).toBe("limit");
      expect(await committedRegions(bad.store)).toEqual([{ start: 16, end: 32 }]);
    });

    test("is kept while regions of failed batches are tried alone", async () => {
      const h = await withBadRegions([3, 40], { settings: { limit: 40 * REGION, retry: 0 } });
      expect((await h.run()).end).toBe("limit");
      expect(h.copier.counts.copied).toBe(40 * REGION);
    });
  });

  describe("stopped by its signal", () => {
    test.for([0, 1, 17, 50, 400])(
      "after %i ms, has committed exactly what it calls hydrated, and all of that is there",
      async (ms) => {
        const clock = new VirtualClock();
        const destination = new SlowDevice(new MemoryDevice({ size: SIZE }), clock, 20);
        const source = new SlowDevice(new MemoryDevice({ size: SIZE, content: CONTENT }), clock, 30);
        const h = await makeHydration({ clock, source, destination, settings: { threshold: 3, batchSize: 1 } });
        const stop = new AbortController();
        if (ms === 0) stop.abort();
        else void clock.sleep(ms).then(() => stop.abort());
        expect((await h.run(stop.signal)).end).toBe("stopped");
        const committed = members(await committedRegions(h.store));
        expect(committed).toHaveLength(h.metadata.hydratedCount);
        expect(committed.length).toBeLessThan(REGIONS);
        if (ms === 400) expect(committed.length).toBeGreaterThan(10);
        const good = await goodRegions(destination);
        for (const region of committed) expect(good).toContain(region);
        expect(h.regions.hydratingCount).toBe(0);
        const writtenUntil = clock.now();
        await clock.sleep(10_000);
        expect(await goodRegions(destination)).toEqual(good);
        expect(writtenUntil).toBeLessThanOrEqual(ms + 100);
        expect(clock.sleeping).toBe(0);
      },
    );

    test("while all wait for the rate, ends at once", async () => {
      const h = await makeHydration({ rate: 1000 });
      const stop = new AbortController();
      void h.clock.sleep(2000).then(() => stop.abort());
      expect((await h.run(stop.signal)).end).toBe("stopped");
      expect(h.clock.now()).toBeLessThan(2100);
    });

    test("in a pause before another try, ends at once", async () => {
      const h = await withBadRegions([5], { settings: { retry: 10 } });
      const stop = new AbortController();
      void h.clock.sleep(2000).then(() => stop.abort());
      expect(await h.run(stop.signal)).toEqual({ end: "stopped", unreadable: [], firstReadError: undefined });
      expect(h.clock.now()).toBe(2000);
      expect(await committedRegions(h.store)).toEqual([
        { start: 0, end: 5 },
        { start: 6, end: 64 },
      ]);
    });
  });

  describe("with a source that cannot be read everywhere", () => {
    test("loses only the bad region of a batch of 16, and reports it", async () => {
      const h = await withBadRegions([21]);
      const outcome = await h.run();
      expect(outcome).toMatchObject({ end: "partial", unreadable: [{ start: 21, end: 22 }] });
      expect(outcome.firstReadError).toBeInstanceOf(SourceReadError);
      expect(outcome.firstReadError?.message).toBe(`Cannot read 4096 bytes at ${21 * REGION} from "source": EIO`);
      expect(await committedRegions(h.store)).toEqual([
        { start: 0, end: 21 },
        { start: 22, end: 64 },
      ]);
      expect(await goodRegions(h.destination as MemoryDevice)).toHaveLength(REGIONS - 1);
      expect(
        (await imageOf(h.destination as MemoryDevice)).subarray(21 * REGION, 22 * REGION).every((b) => b === 0),
      ).toBe(true);
      // The rest of the source came first.
      const first = h.source.reads.findIndex(({ regions }) => regions.length === 1);
      expect(h.source.reads.slice(0, first).flatMap(({ regions }) => regions)).toEqual(members(all));
    });

    test("merges neighbours in its report, and reads nothing twice that could be read", async () => {
      const h = await withBadRegions([0, 30, 31, 32, 63], { settings: { retry: 0 } });
      const outcome = await h.run();
      expect(outcome.unreadable).toEqual([
        { start: 0, end: 1 },
        { start: 30, end: 33 },
        { start: 63, end: 64 },
      ]);
      expect(h.hydrator.unreadableCount).toBe(5);
      for (let region = 0; region < REGIONS; region++) expect(h.source.alone(region).length).toBeLessThanOrEqual(1);
    });

    test("tries a bad region again as often as told, with growing pauses of at most 5 s", async () => {
      const h = await withBadRegions([21], { settings: { retry: 8 } });
      await h.run();
      const times = h.source.alone(21);
      expect(times.map((at, i) => at - (times[i - 1] ?? at))).toEqual([0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    });

    test.for([
      { retry: 0, reads: 1 },
      { retry: 3, reads: 4 },
    ])("reads a region that is a batch by itself $reads times with retry $retry", async ({ retry, reads }) => {
      const h = await withBadRegions([21], { settings: { retry, batchSize: 1 } });
      expect(await h.run()).toMatchObject({ end: "partial", unreadable: [{ start: 21, end: 22 }] });
      expect(h.source.alone(21)).toHaveLength(reads);
      expect(h.clock.now()).toBe(retry === 0 ? 0 : 700);
    });

    test("trims all areas, scrapes all, and only then tries any region again, to and fro, all in one pause", async () => {
      const h = await withBadRegions([20, 22, 50], { settings: { retry: 2 } });
      await h.run();
      const alone = h.source.reads.filter(({ regions }) => regions.length === 1);
      const [forward, backward] = [members([{ start: 16, end: 21 }]), members([{ start: 22, end: 32 }]).reverse()];
      const [forward2, backward2] = [members([{ start: 48, end: 51 }]), members([{ start: 51, end: 64 }]).reverse()];
      const trimmed = [...forward, ...backward, ...forward2, ...backward2];
      expect(alone.map(({ regions }) => regions[0])).toEqual([...trimmed, 21, 50, 22, 20, 20, 22, 50]);
      expect(h.clock.now()).toBe(300);
    });

    test("is complete where another try succeeds", async () => {
      const h = await withBadRegions([21]);
      void h.clock.sleep(250).then(() => {
        h.faulty.faults = {};
      });
      expect(await h.run()).toEqual({ end: "complete", unreadable: [], firstReadError: undefined });
      expect(h.source.alone(21)).toHaveLength(3);
      expect(h.hydrator.unreadableCount).toBe(0);
      expect(await committedRegions(h.store)).toEqual(all);
    });

    test("tries regions known unreadable after all others, those of other failed batches too", async () => {
      const known = [
        { start: 2, end: 4 },
        { start: 60, end: 61 },
      ];
      const h = await withBadRegions([2, 20], { lastTime: known });
      const outcome = await h.run();
      expect(outcome.unreadable).toEqual([
        { start: 2, end: 3 },
        { start: 20, end: 21 },
      ]);
      const order = h.source.reads.flatMap(({ regions }) => regions);
      const isKnown = (region: number) => known.some(({ start, end }) => region >= start && region < end);
      const firstKnown = order.findIndex(isKnown);
      expect(order.slice(firstKnown).every(isKnown)).toBe(true);
      expect(new Set(order.slice(0, firstKnown)).size).toBe(REGIONS - 3);
      expect(await committedRegions(h.store)).toEqual([
        { start: 0, end: 2 },
        { start: 3, end: 20 },
        { start: 21, end: 64 },
      ]);
    });

    test("hydrates regions that are known unreadable, and hydrated meanwhile or readable again", async () => {
      const h = await withBadRegions([], { lastTime: [{ start: 0, end: 64 }] });
      expect((await h.run()).end).toBe("complete");
    });

    test("gives up after more unreadable regions than allowed, with what was good committed and both reported", async () => {
      const bad = [1, 18, 19, 35, 50];
      const enough = await withBadRegions(bad, { settings: { maxErrors: 5, retry: 0 } });
      expect((await enough.run()).end).toBe("partial");
      const h = await withBadRegions(bad, { settings: { maxErrors: 3, retry: 0 } });
      await expect(h.run()).rejects.toMatchObject({
        name: "CloneError",
        message: "Cannot go on: 4 unreadable regions are more than --max-errors 3 allows",
        hint: expect.stringContaining("Cannot read"),
        cause: expect.any(SourceReadError),
      });
      expect(h.hydrator.unreadable).toEqual([
        { start: 1, end: 2 },
        { start: 18, end: 20 },
        { start: 50, end: 51 },
      ]);
      expect(members(await committedRegions(h.store))).toHaveLength(h.metadata.hydratedCount);
      expect(h.metadata.hydratedCount).toBeGreaterThanOrEqual(30);
    });

    test("with on-error=stop ends at the first region that stays unreadable, with what came before committed", async () => {
      const clock = new VirtualClock();
      const h = await withBadRegions([5, 40], { clock, settings: { onError: "stop", batchSize: 4, threshold: 4 } });
      const error = await h.run().catch((caught: unknown) => caught);
      expect(error).toBeInstanceOf(SourceReadError);
      expect(error).toMatchObject({ errno: "EIO", offset: 5 * REGION });
      expect(h.source.alone(5)).toHaveLength(4);
      expect(h.hydrator.unreadable).toEqual([{ start: 5, end: 6 }]);
      const committed = members(await committedRegions(h.store));
      expect(committed).toHaveLength(h.metadata.hydratedCount);
      expect(committed.slice(0, 5)).toEqual([0, 1, 2, 3, 4]);
      expect(committed.length).toBeLessThan(20);
    });

    test.for([
      "ENODEV",
      "ENXIO",
      "ESTALE",
      "EACCES",
      "ETIMEDOUT",
      "ECONNREFUSED",
      "ECONNRESET",
      "EPIPE",
      "EHOSTUNREACH",
    ])("ends at once when the source is gone or away (%s), and calls nothing unreadable", async (errno) => {
      const h = await withBadRegions([20], { errno, settings: { threshold: 4, batchSize: 4 } });
      await expect(h.run()).rejects.toMatchObject({ errno, message: expect.stringContaining('"source"') });
      expect(h.hydrator.unreadable).toEqual([]);
      expect(h.clock.now()).toBe(0);
      expect(members(await committedRegions(h.store))).toEqual(members([{ start: 0, end: 20 }]));
    });

    test("ends at once when the source goes while a bad region is tried again", async () => {
      const h = await withBadRegions([20], { settings: { retry: 1000 } });
      void h.clock.sleep(150).then(() => {
        h.faulty.faults = { failRead: () => true, errno: "ENODEV" };
      });
      await expect(h.run()).rejects.toMatchObject({ errno: "ENODEV" });
      expect(h.clock.now()).toBe(300); // the third try
      expect(h.hydrator.unreadable).toEqual([]);
      expect(h.metadata.committedCount).toBe(REGIONS - 1);
    });
  });

  test("puts off what a disk that is there has not read in time, and does not end for it", async () => {
    const error = new DeviceError("Cannot read", { errno: "ETIMEDOUT", away: false });
    const slow = new (class extends MemoryDevice {
      override async read(offset: number, buffer: Uint8Array): Promise<void> {
        if (offset <= 20 * REGION && offset + buffer.length > 20 * REGION) throw error;
        await super.read(offset, buffer);
      }
    })({ size: SIZE, content: CONTENT });
    const h = await makeHydration({ source: slow });
    expect(await h.run()).toMatchObject({ end: "partial", unreadable: [{ start: 20, end: 21 }] });
  });

  test("works at several bad areas at a time where it is told that each read is a round trip", async () => {
    const times: number[] = [];
    for (const rescueWidth of [1, 4]) {
      const clock = new VirtualClock();
      const bad = [3, 20, 21, 40, 60];
      const faulty = new FaultyDevice(new MemoryDevice({ size: SIZE, content: CONTENT }), {
        failRead: ({ offset, length }) => bad.some((at) => offset <= at * REGION && offset + length > at * REGION),
      });
      const source = new SlowDevice(faulty, clock, 50);
      const h = await makeHydration({ clock, source, depth: 4, rescueWidth, settings: { retry: 0 } });
      expect(await h.run()).toMatchObject({ end: "partial" });
      expect(h.hydrator.unreadableCount).toBe(5);
      times.push(clock.now());
    }
    const [alone, together] = times as [number, number];
    expect(alone - together).toBeGreaterThanOrEqual(40 * 50); // of 64 reads one after the other, 56 are shared by four
  });

  describe("with a destination that loses what was not flushed", () => {
    /** A destination that loses something at each of the first `losses` flushes, or for ever. */
    async function losing(losses: number, options: HydrationOptions = {}) {
      const memory = new MemoryDevice({ name: "disk", size: SIZE });
      const error = new LostWritesError('Cannot flush "disk": the connection was lost');
      let flushes = 0;
      const disk = new (class extends FilterDevice {
        override async flush(): Promise<void> {
          if (++flushes > losses) return;
          await memory.zero(0, SIZE);
          throw error;
        }
      })(memory);
      const h = await makeHydration({
        source: new MemoryDevice({ size: SIZE, content: CONTENT }),
        destination: disk,
        ...options,
      });
      return { ...h, memory, error };
    }

    test("copies it again, and is complete only when all is there and committed", async () => {
      for (const losses of [1, 3]) {
        const h = await losing(losses);
        expect((await h.run()).end).toBe("complete");
        expect(Buffer.compare(await imageOf(h.memory), CONTENT)).toBe(0);
        expect(await committedRegions(h.store)).toEqual(all);
        expect([h.commits.failure, h.hydrator.unreadableCount]).toEqual([undefined, 0]);
      }
    });

    test("gives up, and can go on another time, where nothing ever lasts", async () => {
      const h = await losing(Infinity);
      await expect(h.run()).rejects.toBeInstanceOf(LostWritesError);
      expect([h.commits.failure, await committedRegions(h.store)]).toEqual([undefined, []]);
      const again = await losing(0, { store: h.store });
      expect((await again.run()).end).toBe("complete");
    });

    test("does not try again what it gave up on", async () => {
      const h = await withBadRegions([20], { settings: { retry: 0 } });
      const flush = h.destination.flush.bind(h.destination);
      let flushes = 0;
      h.destination.flush = async () => {
        if (++flushes === 1) throw new LostWritesError("lost");
        await flush();
      };
      expect(await h.run()).toMatchObject({ end: "partial", unreadable: [{ start: 20, end: 21 }] });
      expect(h.source.alone(20)).toHaveLength(1);
      expect(h.metadata.committedCount).toBe(REGIONS - 1);
    });

    test("does not tell of a loss again that has been dealt with while a part of the copy still hung", async () => {
      const lost = new LostWritesError("lost");
      let writes = 0;
      const disk = new (class extends FilterDevice {
        override async write(offset: number, data: Uint8Array): Promise<void> {
          if (++writes === 1) throw lost;
          await super.write(offset, data);
        }
        override tryWrite(): boolean {
          return false;
        }
      })(new MemoryDevice({ name: "disk", size: SIZE }));
      const source = new HeldDevice(new MemoryDevice({ size: SIZE, content: CONTENT }));
      source.hold("read");
      const h = await makeHydration({ source, destination: disk, pieceLength: REGION, settings: { batchSize: 4 } });
      const running = h.run();
      while (source.waiting.length < 2) await whenIdle();
      source.waiting.shift()?.letGo();
      while (writes === 0) await whenIdle();
      h.commits.lose(lost); // as a flush has told
      h.commits.noteChange(); // a client's, which came after
      source.release("read");
      expect((await running).end).toBe("complete");
      expect([h.commits.failure, h.commits.losses]).toEqual([undefined, 1]);
    });

    test("ends with what it says where it cannot be reached any more, and what was flushed is committed", async () => {
      const away = new DeviceError('Cannot write "disk": ETIMEDOUT', { errno: "ETIMEDOUT" });
      const clock = new VirtualClock();
      const memory = new MemoryDevice({ name: "disk", size: SIZE });
      const refuse = (): void => {
        if (clock.now() >= 2500) throw away;
      };
      const disk = new (class extends FilterDevice {
        override async write(offset: number, data: Uint8Array): Promise<void> {
          refuse();
          await super.write(offset, data);
        }
        override tryWrite(): boolean {
          return false;
        }
        override async flush(): Promise<void> {
          refuse();
        }
      })(memory);
      const h = await makeHydration({
        clock,
        source: new MemoryDevice({ size: SIZE, content: CONTENT }),
        destination: new SlowDevice(disk, clock, 100),
        link: { losses: 0, isAway: false },
        settings: { threshold: 1, batchSize: 1 },
      });
      await expect(h.run()).rejects.toBe(away);
      expect(h.commits.failure).toBeUndefined();
      const committed = members(await committedRegions(h.store));
      expect(committed.length).toBeGreaterThan(10);
      for (const region of committed) expect(await goodRegions(memory)).toContain(region);
    });
  });

  describe("with a destination that fails", () => {
    test.for(["ENOSPC", "EIO"])("stops at %s with everything before it committed, and resumes", async (errno) => {
      const memory = new MemoryDevice({ name: "full", size: SIZE });
      let copies = 0;
      const full = new FaultyDevice(memory, {
        failWrite: ({ length }) => length < SIZE && ++copies > 20,
        errno,
      });
      const store = await formattedStore(SIZE, REGION);
      const h = await makeHydration({ store, destination: full, settings: { batchSize: 1, threshold: 4 } });
      await expect(h.run()).rejects.toMatchObject({ name: "DeviceError", errno });
      expect(h.commits.failure).toBeUndefined();
      const committed = members(await committedRegions(store));
      expect(committed.length).toBeGreaterThanOrEqual(15);
      const good = await goodRegions(memory, await imageOf(h.source as MemoryDevice));
      for (const region of committed) expect(good).toContain(region);
      expect(h.regions.hydratingCount).toBe(0);
      const again = await makeHydration({ store, destination: memory });
      expect((await again.run()).end).toBe("complete");
      expect(Buffer.compare(await imageOf(memory), await imageOf(h.source as MemoryDevice))).toBe(0);
    });

    test("fails for good when a flush does: nothing more is written anywhere, and the metadata stays as it was", async () => {
      const clock = new VirtualClock();
      const log: string[] = [];
      const memory = await formattedStore(SIZE, REGION);
      const before = await imageHash(memory);
      const destination = new SlowDevice(
        new FaultyDevice(new LoggingDevice(new MemoryDevice({ name: "disk", size: SIZE }), "disk", log), {
          failFlush: [0],
        }),
        clock,
        100,
      );
      const h = await makeHydration({
        clock,
        destination,
        store: new LoggingDevice(memory, "metadata", log),
        settings: { threshold: 2, batchSize: 1 },
      });
      const failed = clock.sleep(1101).then(() => log.length); // the timer's flush was asked for at 1000
      await expect(h.run()).rejects.toThrow('Cannot flush "disk": EIO');
      const inFlight = log.length - (await failed);
      expect(inFlight).toBeLessThanOrEqual(2);
      expect(log.every((entry) => entry.startsWith("disk write"))).toBe(true);
      expect(log.length).toBeLessThan(40);
      expect(h.commits.failure).toMatchObject({ message: 'Cannot flush "disk": EIO' });
      expect(await imageHash(memory)).toBe(before);
      const { length } = log;
      await expect(h.commits.commit()).rejects.toThrow('Cannot flush "disk": EIO');
      await clock.sleep(10_000);
      expect(log).toHaveLength(length);
    });

    // A copy may land between a commit's failure and the news of it.
    test.for(Array.from({ length: 12 }, (_, i) => i))(
      "says what the metadata failed with when a copy lands %i steps later",
      async (steps) => {
        const clock = new VirtualClock();
        let land: (() => void) | undefined;
        const late = new (class extends MemoryDevice {
          override async write(offset: number, data: Uint8Array): Promise<void> {
            if (offset === 60 * REGION) await new Promise<void>((resolve) => (land = resolve));
            await super.write(offset, data);
          }
        })({ size: SIZE });
        const store = new FaultyDevice(await formattedStore(SIZE, REGION), {});
        const h = await makeHydration({ clock, destination: late, store, settings: { batchSize: 4 } });
        store.faults = {
          failWrite: () => {
            const step = (left: number): void => {
              if (left === 0) land?.();
              else void Promise.resolve().then(() => step(left - 1));
            };
            step(steps);
            return true;
          },
        };
        const error = await h.run().catch((caught: unknown) => caught);
        expect(error).toBeInstanceOf(DeviceError);
        expect(error).toMatchObject({ message: expect.stringMatching(/^Cannot write .* "metadata": EIO$/) });
        expect(h.regions.hydratingCount).toBe(0);
      },
    );

    test("commits nothing after a broken invariant", async () => {
      const log: string[] = [];
      const broken = new (class extends MemoryDevice {
        override async write(offset: number, data: Uint8Array): Promise<void> {
          if (offset >= 32 * REGION) throw new TypeError("a mistake");
          await super.write(offset, data);
        }
      })({ size: SIZE });
      const h = await makeHydration({ destination: new LoggingDevice(broken, "disk", log) });
      await expect(h.run()).rejects.toThrow("a mistake");
      expect(log).not.toContain("disk flush");
      expect(await committedRegions(h.store)).toEqual([]);
    });
  });

  test("commits once a second while it runs, and at the end", async () => {
    const clock = new VirtualClock();
    const log: string[] = [];
    const times: number[] = [];
    const memory = new (class extends MemoryDevice {
      override async flush(): Promise<void> {
        times.push(clock.now());
      }
    })({ size: SIZE });
    const destination = new SlowDevice(new LoggingDevice(memory, "disk", log), clock, 100);
    const h = await makeHydration({ clock, destination, settings: { threshold: 1, batchSize: 1 } });
    const progress: number[] = [];
    void clock.sleep(3500).then(() => progress.push(h.metadata.committedCount));
    expect((await h.run()).end).toBe("complete");
    const gaps = times.map((at, i) => at - (times[i - 1] ?? 0));
    expect(gaps.slice(0, -1).every((gap) => gap === 1100)).toBe(true); // a second after the last, and its own 100 ms
    expect(times.length).toBeGreaterThanOrEqual(6);
    expect(progress[0]).toBeGreaterThan(10);
    expect(h.metadata.committedCount).toBe(REGIONS);
    expect(clock.sleeping).toBe(0);
  });

  test("ends with the guard's error, and vouches for nothing, when the source has changed", async () => {
    const h = await makeHydration({ guard: () => Promise.reject(new CloneError("failed", "the source has changed")) });
    await expect(h.run()).rejects.toThrow("the source has changed");
    expect(await committedRegions(h.store)).toEqual([]);
  });

  test("makes no noise about listeners when hundreds of pieces wait for the rate", async () => {
    const warnings: string[] = [];
    const onWarning = (warning: Error) => void warnings.push(warning.message);
    process.on("warning", onWarning);
    try {
      const size = 300 * 65536;
      const h = await makeHydration({
        size,
        source: await deviceOf([{ kind: "data", length: size }], size, 1),
        rate: 100_000_000,
        depth: 40,
        settings: { batchSize: 64, threshold: 1024 },
      });
      expect((await h.run()).end).toBe("complete");
      await whenIdle();
      expect(warnings).toEqual([]);
    } finally {
      process.off("warning", onWarning);
    }
  });

  test("keeps to the rate, and goes faster at once when it is raised", async () => {
    const h = await makeHydration({ rate: SIZE / 100 });
    void h.clock.sleep(10_000).then(() => {
      h.throttle.bytesPerSecond = SIZE;
    });
    expect((await h.run()).end).toBe("complete");
    expect(h.clock.now()).toBeGreaterThan(10_700);
    expect(h.clock.now()).toBeLessThan(11_100);
  });
});

import { describe, expect, test } from "vitest";
import type { RegionRange } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import type { Stall } from "../../../src/engine/online-hydrator.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { committedRegions, type HydrationOptions, makeOnlineHydration } from "../../support/hydration.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { SlowDevice } from "../../support/slow-device.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

const REGION = 4096;
const REGIONS = 64;
const SIZE = REGIONS * REGION;
const CONTENT = noise(SIZE, 1);
const all = [{ start: 0, end: REGIONS }];
const one = (region: number) => ({ start: region, end: region + 1 });

/** A clone whose source and destination take 10 ms a request, and fail as `faults` say, which may change at any time. */
async function makeClone(options: HydrationOptions = {}) {
  const clock = new VirtualClock();
  const memory = new MemoryDevice({ name: "destination", size: SIZE });
  const source = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT }), {});
  const destination = new FaultyDevice(memory, {});
  const stalls: Stall[] = [];
  const h = await makeOnlineHydration({
    clock,
    source: new SlowDevice(source, clock, 10),
    destination: new SlowDevice(destination, clock, 10),
    onStall: (stall) => void stalls.push(stall),
    ...options,
  });
  /** Regions that cannot be read. */
  const spoil = (bad: number[], errno = "EIO") => {
    const touches = ({ offset, length }: { offset: number; length: number }) =>
      bad.some((region) => offset < (region + 1) * REGION && offset + length > region * REGION);
    source.faults = { failRead: touches, errno };
  };
  const isGood = async () => Buffer.compare(await imageOf(memory), CONTENT) === 0;
  return { ...h, clock, memory, faultySource: source, faultyDestination: destination, stalls, spoil, isGood };
}

/** A client that hydrates regions itself, by writing them. */
async function writeRegions(h: Awaited<ReturnType<typeof makeClone>>, range: RegionRange, ms: number) {
  const hydration = h.regions.begin(range);
  await h.clock.sleep(ms);
  await h.memory.write(range.start * REGION, CONTENT.subarray(range.start * REGION, range.end * REGION));
  h.regions.complete(hydration);
}

describe("OnlineHydrator", () => {
  test("hydrates everything, and is complete when that is committed", async () => {
    const h = await makeClone();
    expect(await h.run()).toBe("complete");
    expect(await h.isGood()).toBe(true);
    expect(await committedRegions(h.store)).toEqual(all);
    expect([h.hydrator.stalled, h.hydrator.unreadable, h.hydrator.triedAll]).toEqual([undefined, [], true]);
    expect(h.clock.sleeping).toBe(0);
  });

  test("stops with what is hydrated committed, and nothing under way", async () => {
    const h = await makeClone({ settings: { threshold: 2, batchSize: 1 } });
    void h.clock.sleep(305).then(() => h.stop.abort());
    expect(await h.run()).toBe("stopped");
    expect(h.regions.hydratingCount).toBe(0);
    expect(h.metadata.committedCount).toBe(h.metadata.hydratedCount);
    expect(h.metadata.hydratedCount).toBeGreaterThan(10);
    expect(h.clock.sleeping).toBe(0);
  });

  describe("paused", () => {
    test("begins nothing, ends what runs, commits that, and goes on when told", async () => {
      const h = await makeClone({ settings: { threshold: 4, batchSize: 2 } });
      const running = h.run();
      await h.clock.sleep(105);
      h.hydrator.pause();
      const begun = h.began.length;
      expect(h.regions.hydratingCount).toBe(4);
      await h.clock.sleep(3000);
      expect([h.hydrator.paused, h.regions.hydratingCount, h.began.length]).toEqual([true, 0, begun]);
      expect(h.metadata.committedCount).toBe(h.metadata.hydratedCount);
      expect(h.metadata.hydratedCount).toBeGreaterThan(4);
      h.hydrator.hint(one(60));
      await h.clock.sleep(3000);
      expect(h.began).toHaveLength(begun);
      h.hydrator.resume();
      await h.clock.sleep(1);
      expect(h.began[begun]).toEqual(one(60));
      expect(await running).toBe("complete");
    });

    test("from the beginning, notices when clients have hydrated everything", async () => {
      const h = await makeClone();
      h.hydrator.pause();
      const running = h.run();
      await writeRegions(h, { start: 0, end: 60 }, 5000);
      await writeRegions(h, { start: 60, end: 64 }, 5000);
      expect(await running).toBe("complete");
      expect(h.began).toHaveLength(2);
      expect(await committedRegions(h.store)).toEqual(all);
    });

    test("stops at once", async () => {
      const h = await makeClone();
      h.hydrator.pause();
      void h.clock.sleep(700).then(() => h.stop.abort());
      expect(await h.run()).toBe("stopped");
      expect(h.clock.now()).toBe(700);
    });
  });

  describe("tuned", () => {
    test("keeps to a new threshold and batch size from then on", async () => {
      const h = await makeClone({ settings: { threshold: 1, batchSize: 1 } });
      const running = h.run();
      await h.clock.sleep(105);
      expect(h.regions.hydratingCount).toBe(1);
      h.hydrator.tune({ threshold: 12 });
      expect([h.hydrator.threshold, h.hydrator.batchSize]).toEqual([12, 1]);
      await h.clock.sleep(1);
      expect(h.regions.hydratingCount).toBe(12);
      h.hydrator.tune({ batchSize: 6, threshold: 6 });
      await h.clock.sleep(250); // two pieces at a time: the twelve take their time
      expect(h.regions.hydratingCount).toBeLessThanOrEqual(6);
      expect(h.began.at(-1)).toEqual({ start: 48, end: 54 });
      h.hydrator.tune({ threshold: null, batchSize: null });
      expect([h.hydrator.threshold, h.hydrator.batchSize]).toEqual([64, 16]);
      expect(await running).toBe("complete");
    });

    test("to threshold 0 hydrates nothing, as dm-clone, until it is tuned again", async () => {
      const h = await makeClone({ settings: { threshold: 0 } });
      const running = h.run();
      await h.clock.sleep(5000);
      expect([h.began, h.hydrator.stalled, h.hydrator.threshold]).toEqual([[], undefined, 0]);
      h.hydrator.tune({ threshold: 3 });
      expect(await running).toBe("complete");
    });

    test("counts the foreground's hydrations, takes what they leave, and more again soon after they end", async () => {
      const h = await makeClone({ settings: { threshold: 8, batchSize: 8 } });
      const client = writeRegions(h, { start: 58, end: 64 }, 200);
      const running = h.run();
      await h.clock.sleep(195);
      expect(h.began.slice(1).every(({ start, end }) => end - start <= 2)).toBe(true);
      expect(h.regions.hydratingCount).toBe(8);
      await client;
      const before = h.began.length;
      expect(await running).toBe("complete");
      expect(Math.max(...h.began.slice(before).map(({ start, end }) => end - start))).toBe(8);
      expect(h.clock.now()).toBeLessThan(500);
    });

    test("waits where the foreground leaves nothing", async () => {
      const h = await makeClone({ settings: { threshold: 4, batchSize: 4 } });
      const client = writeRegions(h, { start: 0, end: 20 }, 1000);
      const running = h.run();
      await h.clock.sleep(900);
      expect(h.began).toHaveLength(1);
      await client;
      await h.clock.sleep(20);
      expect(h.began.length).toBeGreaterThan(1);
      expect(await running).toBe("complete");
    });
  });

  test("does not let a client wait for the rate, only for the copy", async () => {
    const h = await makeClone({ rate: REGION, settings: { threshold: 3, batchSize: 3 } });
    void h.run();
    await h.clock.sleep(500);
    const hydration = h.regions.hydrationAt(2);
    expect(hydration).toMatchObject({ start: 0, end: 3 }); // a second and more each, at this rate
    const before = h.clock.now();
    await h.regions.ended(hydration as RegionRange);
    expect(h.clock.now() - before).toBeLessThan(60);
    expect(h.regions.state(2)).toBe("hydrated");
    h.stop.abort();
  });

  describe("given hints", () => {
    test("hydrates what was asked for in its order, neighbours of reads before, and then the rest", async () => {
      const h = await makeClone({ settings: { threshold: 1, batchSize: 1 } });
      const running = h.run();
      await h.clock.sleep(5);
      h.hydrator.hint({ start: 40, end: 43 });
      h.hydrator.hint({ start: 20, end: 22 });
      h.hydrator.hint(one(50), "nearby");
      h.hydrator.hint(one(52), "nearby");
      await h.clock.sleep(300);
      h.hydrator.hint(one(30), "nearby");
      expect(await running).toBe("complete");
      expect(h.began.slice(0, 10).map(({ start }) => start)).toEqual([0, 52, 50, 40, 41, 42, 20, 21, 1, 2]);
      expect(h.began.findIndex(({ start }) => start === 30)).toBeLessThan(16);
      expect(h.began).toHaveLength(REGIONS);
    });

    test("works a long one off in batches, and leaves out what is hydrated or beyond the end", async () => {
      const h = await makeClone({ settings: { threshold: 4, batchSize: 4 } });
      const client = writeRegions(h, { start: 36, end: 40 }, 20);
      const running = h.run();
      await client;
      h.hydrator.hint({ start: 36, end: 39 });
      h.hydrator.hint({ start: 32, end: 1000 });
      expect(await running).toBe("complete");
      const hinted = h.began.slice(1).filter(({ start }) => start >= 32);
      expect(hinted.map(({ start }) => start)).toEqual([32, 40, 44, 48, 52, 56, 60]);
      expect(h.began.findIndex(({ start }) => start === 60)).toBeLessThan(12);
    });

    test("hydrates them while it tries unreadable regions again and again", async () => {
      const h = await makeClone({ settings: { threshold: 1, batchSize: 1, retry: 20 } });
      h.spoil([0, 1]);
      await h.memory.write(0, CONTENT);
      h.metadata.markHydrated({ start: 2, end: 60 });
      const client = h.regions.begin(one(63)); // so that the run cannot take it itself
      void h.run();
      await h.clock.sleep(20_000); // 60 … 62 are done, and there are pauses of 5 s
      h.regions.fail(client);
      h.hydrator.hint(one(63));
      await h.clock.sleep(50);
      expect(h.regions.state(63)).toBe("hydrated");
      h.stop.abort();
    });

    test("gets through them where more cannot be read than may wait to be tried alone", async () => {
      const size = 5000 * REGION;
      const clock = new VirtualClock();
      const source = new FaultyDevice(new MemoryDevice({ name: "source", size }), { failRead: () => true });
      const options = { clock, source, size, trusted: false, settings: { retry: 0, maxErrors: Infinity } };
      const h = await makeOnlineHydration(options);
      h.hydrator.hint({ start: 100, end: 5000 });
      void h.run();
      await clock.sleep(60_000);
      expect(h.hydrator.unreadable).toEqual([{ start: 0, end: 5000 }]);
      h.stop.abort();
    });

    test("does not try what is known to be unreadable before all others, hinted or not", async () => {
      const h = await makeClone({ lastTime: [{ start: 5, end: 8 }], settings: { threshold: 1, batchSize: 1 } });
      h.spoil([5, 6]);
      const running = h.run();
      h.hydrator.hint({ start: 4, end: 10 });
      await h.clock.sleep(10_000);
      expect(h.began.slice(0, 4).map(({ start }) => start)).toEqual([0, 4, 8, 9]);
      expect(h.began.findIndex(({ start }) => start >= 5 && start < 8)).toBe(REGIONS - 3);
      h.spoil([]);
      h.hydrator.retryUnreadable();
      expect(await running).toBe("complete");
    });

    test("does not try again what it was not asked to, nor lists it twice", async () => {
      const h = await makeClone({ settings: { retry: 0 } });
      h.spoil([5, 6]);
      void h.run();
      await h.clock.sleep(5000);
      const before = h.began.length;
      for (let i = 0; i < 3; i++) {
        h.hydrator.hint({ start: 0, end: 64 });
        await h.clock.sleep(3000);
      }
      expect(h.began).toHaveLength(before);
      expect(h.hydrator.unreadable).toEqual([{ start: 5, end: 7 }]);
      h.stop.abort();
    });
  });

  describe("with regions that cannot be read", () => {
    test("rests beside them, lists them, and hydrates them once they can be and it is told to", async () => {
      const h = await makeClone();
      h.spoil([7, 8, 40]);
      const running = h.run();
      await h.clock.sleep(60_000);
      expect(h.hydrator.unreadable).toEqual([{ start: 7, end: 9 }, one(40)]);
      expect([h.hydrator.unreadableCount, h.hydrator.triedAll, h.hydrator.stalled]).toEqual([3, true, undefined]);
      expect(h.hydrator.firstReadError).toBe(`Cannot read 4096 bytes at ${7 * REGION} from "source": EIO`);
      expect(h.metadata.committedCount).toBe(61);
      const before = h.began.length;
      await h.clock.sleep(60_000);
      expect(h.began).toHaveLength(before);
      h.spoil([40]);
      h.hydrator.retryUnreadable();
      await h.clock.sleep(60_000);
      expect(h.hydrator.unreadable).toEqual([one(40)]);
      h.spoil([]);
      h.hydrator.resume();
      expect(await running).toBe("complete");
      expect([h.hydrator.unreadable, await h.isGood()]).toEqual([[], true]);
    });

    test("is complete when clients overwrite them", async () => {
      const h = await makeClone();
      h.spoil([7, 8]);
      const running = h.run();
      await h.clock.sleep(10_000);
      await writeRegions(h, one(8), 10);
      expect(h.hydrator.unreadable).toEqual([one(7)]);
      await writeRegions(h, one(7), 10);
      expect(await running).toBe("complete");
      expect(await committedRegions(h.store)).toEqual(all);
    });

    test("tries those known from before after all others, and lists them meanwhile", async () => {
      const h = await makeClone({ lastTime: [{ start: 0, end: 3 }], settings: { threshold: 1, batchSize: 1 } });
      h.spoil([1]);
      void h.run();
      await h.clock.sleep(5);
      expect([h.hydrator.unreadable, h.hydrator.triedAll]).toEqual([[{ start: 0, end: 3 }], false]);
      await h.clock.sleep(60_000);
      expect([h.hydrator.unreadable, h.hydrator.triedAll]).toEqual([[one(1)], true]);
      expect(h.began.findIndex(({ start }) => start < 3)).toBe(REGIONS - 3);
      h.stop.abort();
    });

    test("with on-error=stop stalls at each until it is resumed, and passes them by then", async () => {
      const h = await makeClone({ settings: { onError: "stop", threshold: 4, batchSize: 4, retry: 1 } });
      h.spoil([5, 40]);
      const running = h.run();
      await h.clock.sleep(120_000);
      expect(h.hydrator.stalled).toMatchObject({ retryAt: null, reason: expect.stringContaining("Cannot read 4096") });
      expect(h.stalls).toHaveLength(1);
      expect(h.metadata.committedCount).toBeLessThan(20);
      h.hydrator.resume();
      await h.clock.sleep(10_000);
      expect(h.metadata.committedCount).toBeGreaterThan(30);
      expect(h.stalls).toHaveLength(2);
      h.spoil([]);
      h.hydrator.resume();
      expect(await running).toBe("complete");
    });

    test("stalls at more than allowed, and is complete when clients overwrite all that is left", async () => {
      const h = await makeClone({ settings: { maxErrors: 2, retry: 0 } });
      h.spoil([1, 2, 3, 4]);
      const running = h.run();
      await h.clock.sleep(60_000);
      expect(h.hydrator.stalled?.reason).toBe("Cannot go on: 3 unreadable regions are more than --max-errors 2 allows");
      await writeRegions(h, { start: 1, end: 5 }, 10);
      expect(await running).toBe("complete");
    });

    test("hydrates what a client's write began and did not end", async () => {
      const h = await makeClone();
      const client = h.regions.begin({ start: 30, end: 34 });
      const running = h.run();
      await h.clock.sleep(30_000);
      expect(h.metadata.committedCount).toBe(60);
      h.regions.fail(client);
      expect(await running).toBe("complete");
      expect(await h.isGood()).toBe(true);
    });
  });

  describe("with a destination that fails", () => {
    test.for(["ENOSPC", "EIO"])("stalls at %s, says since when, and tries again with growing pauses", async (errno) => {
      const h = await makeClone({ settings: { threshold: 1, batchSize: 1 } });
      const tries: number[] = [];
      h.faultyDestination.faults = {
        failWrite: ({ offset }) => offset >= 10 * REGION && tries.push(h.clock.now()) > 0,
        errno,
      };
      const running = h.run();
      await h.clock.sleep(100_000);
      const { stalled } = h.hydrator;
      expect(stalled?.reason).toContain(errno);
      expect(stalled?.since).toBe(h.stalls[0]?.since);
      expect(stalled?.since).toBeLessThan(1000);
      expect(h.stalls).toHaveLength(1);
      const pauses = tries.slice(1).map((at, i) => Math.round((at - (tries[i] as number)) / 1000));
      expect(pauses).toEqual([1, 2, 4, 8, 16, 30, 30]);
      expect(stalled?.retryAt).toBeGreaterThan(h.clock.now());
      expect(h.metadata.committedCount).toBe(10);
      expect(h.hydrator.unreadable).toEqual([]);
      h.faultyDestination.faults = {};
      expect(await running).toBe("complete");
      expect([h.hydrator.stalled, await h.isGood()]).toEqual([undefined, true]);
    });

    test("tries again what was known to be unreadable, too, where it did not come to that", async () => {
      const h = await makeClone({ lastTime: [{ start: 5, end: 8 }] });
      h.faultyDestination.faults = { failWrite: () => true };
      const running = h.run();
      await h.clock.sleep(1500);
      expect([h.hydrator.unreadable, h.hydrator.triedAll]).toEqual([[{ start: 5, end: 8 }], false]);
      h.faultyDestination.faults = {};
      expect(await running).toBe("complete");
    });

    test.for(["resume", "tune"] as const)("tries again at once on %s()", async (how) => {
      const h = await makeClone();
      h.faultyDestination.faults = { failWrite: () => true, errno: "ENOSPC" };
      const running = h.run();
      await h.clock.sleep(40_000);
      h.faultyDestination.faults = {};
      const now = h.clock.now();
      if (how === "resume") h.hydrator.resume();
      else h.hydrator.tune({ threshold: 64 });
      expect(await running).toBe("complete");
      expect(h.clock.now()).toBeLessThan(now + 500);
    });

    test("begins its pauses anew after headway, and is then stalled anew", async () => {
      const h = await makeClone({ settings: { threshold: 1, batchSize: 1 } });
      let full = 10;
      h.faultyDestination.faults = { failWrite: ({ offset }) => offset >= full * REGION, errno: "ENOSPC" };
      const running = h.run();
      await h.clock.sleep(40_000);
      const first = h.hydrator.stalled;
      full = 20;
      await h.clock.sleep(35_000);
      expect(h.stalls).toHaveLength(2);
      expect(h.stalls[1]).toMatchObject({ retryAt: (h.stalls[1]?.since as number) + 1000 });
      expect(h.hydrator.stalled?.since).toBeGreaterThan(first?.since as number);
      full = REGIONS;
      await h.clock.sleep(35_000);
      expect(await running).toBe("complete");
    });

    test("does not end copies that clients wait for", async () => {
      const h = await makeClone();
      h.faultyDestination.faults = { failWrite: ({ offset }) => offset < 10 * REGION };
      void h.run();
      await h.clock.sleep(1500);
      expect(h.hydrator.stalled).toBeDefined();
      expect(h.halt.signal.aborted).toBe(false);
      await h.copier.copy({ offset: 60 * REGION, length: REGION }, new AbortController().signal);
      h.stop.abort();
    });

    test.for(["during a pause", "during a run"])("stops at once %s", async (when) => {
      const h = await makeClone();
      h.faultyDestination.faults = { failWrite: () => true };
      void h.clock.sleep(when === "during a pause" ? 10_000 : 25).then(() => h.stop.abort());
      expect(await h.run()).toBe("stopped");
      expect(h.clock.now()).toBeLessThan(10_001);
      expect(h.clock.sleeping).toBe(0);
    });

    test("ends for good when a flush fails, and writes nothing from then on", async () => {
      const h = await makeClone({ settings: { threshold: 1, batchSize: 1 } });
      h.faultyDestination.faults = { failFlush: [0] };
      await expect(h.run()).rejects.toThrow('Cannot flush "destination": EIO');
      expect([h.halt.signal.aborted, h.commits.failure?.message]).toEqual([true, 'Cannot flush "destination": EIO']);
      const image = Buffer.from(await imageOf(h.memory));
      h.hydrator.resume();
      await h.clock.sleep(60_000);
      expect(Buffer.compare(await imageOf(h.memory), image)).toBe(0);
      expect(await committedRegions(h.store)).toEqual([]);
      expect(h.clock.sleeping).toBe(0);
    });

    test("ends for good at the last commit, too", async () => {
      const h = await makeClone();
      h.faultyDestination.faults = { failFlush: () => true };
      await expect(h.run()).rejects.toThrow("Cannot flush");
    });

    test("ends with what halted the clone elsewhere", async () => {
      const h = await makeClone({ settings: { threshold: 1, batchSize: 1 } });
      void h.clock.sleep(100).then(() => h.halt.abort(new Error("a client's flush failed")));
      await expect(h.run()).rejects.toThrow("a client's flush failed");
      expect(h.regions.hydratingCount).toBe(0);
    });

    test("ends for good at a broken invariant", async () => {
      const h = await makeClone({ settings: { threshold: 1, batchSize: 1 } });
      h.memory.write = async () => {
        throw new TypeError("a mistake");
      };
      await expect(h.run()).rejects.toThrow("a mistake");
      expect(h.halt.signal.aborted).toBe(true);
    });
  });

  test("waits for somebody's word where the source is another one by now", async () => {
    const h = await makeClone({ settings: { threshold: 4, batchSize: 4 } });
    void h.clock.sleep(100).then(() => h.spoil([...Array(REGIONS).keys()], "ESTALE"));
    const running = h.run();
    await h.clock.sleep(3_600_000);
    expect(h.hydrator.stalled).toMatchObject({ retryAt: null, reason: expect.stringContaining("ESTALE") });
    expect([h.hydrator.unreadable, h.stalls.length]).toEqual([[], 1]);
    h.hydrator.resume();
    await h.clock.sleep(1000);
    expect(h.hydrator.stalled).toMatchObject({ retryAt: null });
    h.spoil([]);
    h.hydrator.resume();
    expect(await running).toBe("complete");
  });

  test("stalls while the destination is away, takes back what it may have lost, and goes on when it is back", async () => {
    const h = await makeClone({ settings: { threshold: 1, batchSize: 1 }, link: { losses: 0, isAway: false } });
    const away = { failWrite: () => true, failFlush: () => true, errno: "ETIMEDOUT" };
    void h.clock.sleep(100).then(() => {
      h.faultyDestination.faults = away;
    });
    const running = h.run();
    await h.clock.sleep(60_000);
    expect(h.hydrator.stalled?.reason).toContain("ETIMEDOUT");
    expect([h.commits.failure, h.metadata.changed]).toEqual([undefined, false]);
    h.faultyDestination.faults = {};
    expect(await running).toBe("complete");
    expect(await h.isGood()).toBe(true);
    expect(await committedRegions(h.store)).toEqual(all);
  });

  test("stalls, and does not call itself complete, where the last commit cannot be made", async () => {
    const h = await makeClone({ link: { losses: 0, isAway: false } });
    h.faultyDestination.faults = { failFlush: () => true, errno: "ETIMEDOUT" };
    const running = h.run();
    await h.clock.sleep(600_000);
    expect(h.hydrator.stalled?.reason).toContain("ETIMEDOUT");
    expect(await committedRegions(h.store)).toEqual([]);
    h.faultyDestination.faults = {};
    expect(await running).toBe("complete");
    expect(await committedRegions(h.store)).toEqual(all);
  });

  test.for(["ENODEV", "ESHUTDOWN", "ETIMEDOUT", "ECONNREFUSED"])(
    "stalls while the source is gone or away (%s), and calls nothing unreadable",
    async (errno) => {
      const h = await makeClone({ settings: { threshold: 4, batchSize: 4 } });
      void h.clock.sleep(100).then(() => h.spoil([...Array(REGIONS).keys()], errno));
      const running = h.run();
      await h.clock.sleep(60_000);
      expect(h.hydrator.stalled?.reason).toContain(errno);
      expect(h.hydrator.unreadable).toEqual([]);
      h.spoil([]);
      expect(await running).toBe("complete");
      expect(await h.isGood()).toBe(true);
    },
  );

  test("leaves nothing behind on its signals, however often it stalled", async () => {
    const warnings: string[] = [];
    const onWarning = (warning: Error) => void warnings.push(warning.message);
    process.on("warning", onWarning);
    try {
      const h = await makeClone();
      h.faultyDestination.faults = { failWrite: () => true };
      const running = h.run();
      await h.clock.sleep(3_600_000);
      h.faultyDestination.faults = {};
      expect(await running).toBe("complete");
      await new Promise((resolve) => setImmediate(resolve));
      expect(warnings).toEqual([]);
    } finally {
      process.off("warning", onWarning);
    }
  });
});

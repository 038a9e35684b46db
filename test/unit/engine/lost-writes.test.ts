// A destination that loses what was not flushed, and can be used again: `LostWritesError`.
import { describe, expect, test } from "vitest";
import { DeviceError, LostWritesError } from "../../../src/base/errors.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { bytesAt, drawing, makeClone } from "../../support/clone-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { committedRegions } from "../../support/hydration.ts";
import { noise } from "../../support/layout.ts";
import { LossyLinkDevice } from "../../support/lossy-link-device.ts";
import { SlowDevice } from "../../support/slow-device.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 16 * REGION;
const DIRT = noise(SIZE, 2);
const lost = (): LostWritesError =>
  new LostWritesError('Cannot flush "disk": the connection was lost', { away: false });

/** Whose next operations of a kind fail as told; a flush takes `flushMs`. */
class Disk extends FilterDevice {
  flushes: (DeviceError | undefined)[] = [];
  writes: (DeviceError | undefined)[] = [];
  flushCount = 0;
  flushMs = 0;
  readonly clock: VirtualClock;

  constructor(inner: BlockDevice, clock: VirtualClock) {
    super(inner);
    this.clock = clock;
  }

  override async flush(): Promise<void> {
    this.flushCount++;
    const error = this.flushes.shift();
    if (this.flushMs > 0) await this.clock.sleep(this.flushMs);
    if (error !== undefined) throw error;
    await super.flush();
  }

  override async write(offset: number, data: Uint8Array): Promise<void> {
    const error = this.writes.shift();
    if (error !== undefined) throw error;
    await super.write(offset, data);
  }

  override tryWrite(): boolean {
    return false;
  }
}

/** A clone of 16 regions, over a disk as above. */
async function setUp(options: Parameters<typeof makeClone>[0] = {}) {
  const clock = new VirtualClock();
  const disk = new Disk(new MemoryDevice({ name: "disk", size: SIZE, content: DIRT }), clock);
  const clone = await makeClone({ size: SIZE, clock, destination: disk, ...options });
  const copy = async (start: number, end = start + 1): Promise<boolean> => {
    const hydration = clone.regions.begin({ start, end });
    await clone.copier.copy(clone.geometry.bytesOf(hydration), new AbortController().signal);
    return clone.regions.complete(hydration);
  };
  return { ...clone, clock, disk, copy };
}

describe("CommitPipeline, where the destination has lost what was not flushed", () => {
  test("takes back what was copied since, flushes again, and commits what was copied after that", async () => {
    const h = await setUp();
    await h.copy(0, 3);
    await h.commits.commit();
    await h.copy(3, 6);
    h.disk.flushes = [lost()];
    await h.commits.commit();
    expect(drawing(h)).toBe("###.............");
    expect([h.disk.flushCount, h.commits.losses, h.commits.failure]).toEqual([3, 1, undefined]);
    expect([h.metadata.hydratedCount, h.metadata.committedCount, h.metadata.changed]).toEqual([3, 3, false]);
    await h.copy(4);
    await h.commits.commit();
    expect(await committedRegions(h.store)).toEqual([
      { start: 0, end: 3 },
      { start: 4, end: 5 },
    ]);
  });

  test("takes back regions that were marked after the freeze, too", async () => {
    const h = await setUp();
    await h.copy(0);
    h.disk.flushes = [lost()];
    h.disk.flushMs = 10;
    const committing = h.commits.commit();
    while (h.disk.flushCount === 0) await whenIdle();
    await h.copy(1);
    await committing;
    expect(drawing(h)).toBe("................");
    expect(await committedRegions(h.store)).toEqual([]);
  });

  test("does not count a copy that was under way, whose first bytes may be among what was lost", async () => {
    const h = await setUp();
    const hydration = h.regions.begin({ start: 2, end: 3 });
    const waiting = h.regions.ended(hydration);
    h.disk.flushes = [lost()];
    await h.commits.flush();
    expect(h.regions.isTainted(hydration)).toBe(true);
    expect(h.regions.complete(hydration)).toBe(false);
    expect(await waiting).toBeUndefined(); // no error: who waits looks again
    expect(drawing(h)).toBe("................");
    expect(await h.copy(2)).toBe(true);
  });

  test.for(["write", "zero", "discard"] as const)("fails with a client's %s among it", async (kind) => {
    const h = await setUp();
    if (kind === "write") await h.device.write(5 * REGION, noise(REGION, 3));
    else if (kind === "zero") await h.device.zero(5 * REGION, REGION);
    else await h.device.discard(5 * REGION, REGION);
    h.disk.flushes = [lost()];
    const error = await h.device.flush().catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(LostWritesError);
    expect(error).toBe(h.commits.failure);
    expect(error).toMatchObject({ message: expect.stringMatching(/^Cannot go on: what clients wrote .*may be lost/) });
    expect(h.disk.flushCount).toBe(1);
    expect(drawing(h)).toBe("................"); // what the next run will say, too
    await expect(h.device.write(0, Buffer.alloc(1))).rejects.toBe(error);
    expect(
      Buffer.compare(await bytesAt(h.device, 5 * REGION, 1), noise(SIZE, 1).subarray(5 * REGION, 5 * REGION + 1)),
    ).toBe(0);
  });

  test("fails with a client's write among it to a region that had been there before, and is committed", async () => {
    const h = await setUp();
    await h.copy(5);
    await h.commits.commit();
    await h.device.write(5 * REGION, noise(512, 3));
    h.disk.flushes = [lost()];
    await expect(h.commits.flush()).rejects.toBeInstanceOf(LostWritesError);
    expect(h.commits.failure).toBeInstanceOf(LostWritesError);
    expect(drawing(h)).toBe(".....#..........");
  });

  test("fails at once where the lost write is the client's own: it may be carried out later, over newer data", async () => {
    const h = await setUp();
    h.disk.writes = [lost()];
    await expect(h.device.write(0, noise(REGION, 3))).rejects.toBeInstanceOf(LostWritesError);
    expect(h.commits.failure).toBeInstanceOf(LostWritesError);
  });

  test("goes on where clients' changes had been flushed, or had only been waiting", async () => {
    const h = await setUp();
    await h.device.write(0, noise(REGION, 3));
    await h.device.flush();
    await h.copy(3);
    h.disk.flushes = [lost()];
    await h.device.flush();
    expect(drawing(h)).toBe("#...............");
    // This one waits for a copy that the destination loses, and is made when the region is copied again.
    h.disk.writes = [lost()];
    await h.device.write(7 * REGION, noise(512, 3));
    expect([h.commits.failure, h.commits.losses]).toEqual([undefined, 2]);
    await h.device.flush();
    expect(drawing(h)).toBe("#......#........");
    const expected = Buffer.concat([noise(512, 3), noise(SIZE, 1).subarray(7 * REGION + 512, 8 * REGION)]);
    expect(Buffer.compare(await bytesAt(h.device, 7 * REGION, REGION), expected)).toBe(0);
  });

  test("is not told a second time by a copy that ends late, when what it says has been dealt with", async () => {
    const source = new HeldDevice(new MemoryDevice({ name: "source", size: SIZE, content: noise(SIZE, 1) }));
    const h = await setUp({ source, regionSize: 2 * REGION, pieceLength: REGION });
    source.hold("read");
    h.disk.writes = [lost()];
    const partial = h.device.write(100, noise(100, 3)); // waits for a copy in two pieces
    while (source.waiting.length < 2) await whenIdle();
    source.waiting.shift()?.letGo(); // what is written of the first one is lost, and the second one hangs
    while (h.disk.writes.length > 0) await whenIdle();
    await whenIdle();
    h.disk.flushes = [lost()];
    await h.device.flush();
    await h.device.write(6 * REGION, noise(2 * REGION, 4));
    expect(drawing(h)).toBe("~..#....");
    source.release("read");
    await partial;
    expect([h.commits.failure, h.commits.losses]).toEqual([undefined, 1]);
    expect(drawing(h)).toBe("#..#....");
    const expected = Buffer.from(noise(SIZE, 1).subarray(0, REGION));
    noise(100, 3).copy(expected, 100);
    expect(Buffer.compare(await bytesAt(h.device, 0, REGION), expected)).toBe(0);
    expect(Buffer.compare(await bytesAt(h.device, 6 * REGION, 2 * REGION), noise(2 * REGION, 4))).toBe(0);
  });

  test("fails with a change whose data a flush has covered, but whose bit no commit has", async () => {
    const looks: (() => Promise<void>)[] = [];
    const h = await setUp({ guard: async () => await looks.shift()?.() });
    await h.copy(0);
    looks.push(async () => await h.device.write(5 * REGION, noise(REGION, 3))); // after the freeze, before the flush
    await h.commits.commit();
    expect(await committedRegions(h.store)).toEqual([{ start: 0, end: 1 }]);
    h.disk.flushes = [lost()];
    await expect(h.device.flush()).rejects.toBeInstanceOf(LostWritesError);
    expect(h.commits.failure).toBeInstanceOf(LostWritesError);
  });

  test("fails with a change whose bit is not set yet when others freeze and flush", async () => {
    const h = await setUp();
    const release: (() => void)[] = [];
    const changing = h.commits.change(async () => {
      await new Promise<void>((resolve) => release.push(resolve));
      h.metadata.markHydrated({ start: 9, end: 10 });
    });
    await h.commits.flush();
    release[0]?.();
    await changing;
    h.disk.flushes = [lost()];
    await expect(h.commits.flush()).rejects.toBeInstanceOf(LostWritesError);
  });

  test("keeps bits that are being committed when a later write is lost: their data was flushed before", async () => {
    const clock = new VirtualClock();
    const h = await setUp({ clock });
    const store = new SlowDevice(h.store, clock, 10);
    const slow = await setUp({ clock, store });
    await slow.copy(2);
    const committing = slow.commits.commit();
    while (slow.disk.flushCount === 0) await whenIdle();
    await slow.copy(3);
    slow.commits.lose(lost());
    await committing;
    expect(await committedRegions(h.store)).toEqual([{ start: 2, end: 3 }]);
    expect(drawing(slow)).toBe("..#.............");
  });

  test("begins anew where a write has told of the loss, though the flush goes well", async () => {
    const h = await setUp();
    await h.copy(2);
    h.disk.flushMs = 10;
    const committing = h.commits.commit();
    while (h.disk.flushCount === 0) await whenIdle();
    h.commits.lose(lost());
    await committing;
    expect([drawing(h), h.disk.flushCount, h.commits.failure]).toEqual(["................", 2, undefined]);
    expect(await committedRegions(h.store)).toEqual([]);
  });

  test("gives up after some attempts, vouches for nothing, and can be asked again", async () => {
    const h = await setUp();
    await h.copy(0);
    h.disk.flushes = Array.from({ length: 5 }, lost);
    await expect(h.commits.commit()).rejects.toBeInstanceOf(LostWritesError);
    expect([h.disk.flushCount, h.commits.failure, h.metadata.hydratedCount]).toEqual([5, undefined, 0]);
    await h.copy(0);
    await h.commits.commit();
    expect(await committedRegions(h.store)).toEqual([{ start: 0, end: 1 }]);
  });

  test("does the same where it cannot be reached, without calling it again", async () => {
    const away = new DeviceError('Cannot flush "disk": ETIMEDOUT', { errno: "ETIMEDOUT" });
    const h = await setUp({ link: { losses: 0, isAway: false } });
    await h.copy(0);
    h.disk.flushes = [away];
    await expect(h.device.flush()).rejects.toBe(away);
    expect([h.disk.flushCount, h.commits.failure, h.metadata.hydratedCount]).toEqual([1, undefined, 0]);

    await h.device.write(0, noise(REGION, 3));
    h.disk.flushes = [away];
    await expect(h.device.flush()).rejects.toBeInstanceOf(LostWritesError);
    expect(h.commits.failure).toMatchObject({ cause: away });
  });

  test.for([
    ["EIO", new DeviceError('Cannot flush "disk": EIO', { errno: "EIO" })],
    ["ETIMEDOUT of a disk of this machine", new DeviceError("Cannot flush", { errno: "ETIMEDOUT" })],
    ["ETIMEDOUT of a disk that is there", new DeviceError("Cannot flush", { errno: "ETIMEDOUT", away: false })],
  ] as const)("but is failed for good by a flush that says %s", async ([, error]) => {
    const h = await setUp();
    await h.copy(0);
    h.disk.flushes = [error];
    await expect(h.commits.commit()).rejects.toBe(error);
    expect(h.commits.failure).toBe(error);
    expect(drawing(h)).toBe("#..............."); // reads go on from what is true in memory
  });
});

describe("CloneDevice, over a connection that breaks", () => {
  /** Its destination says zeros until something was written there; `chance` is 0, breaks are the test's. */
  async function overLink(options: Parameters<typeof makeClone>[0] = {}) {
    const clock = new VirtualClock();
    const link = new LossyLinkDevice(DIRT, "disk", { clock, random: () => 0, latencyMs: 0, chance: 0, most: 0 });
    const h = await setUp({ clock, destination: link, link, ...options });
    return { ...h, link, clock };
  }
  const SOURCE = noise(SIZE, 1);

  test("reads from the source again what the destination has lost, though it does not know yet", async () => {
    const h = await overLink();
    await h.copy(4);
    h.link.break();
    expect(drawing(h)).toBe("....#...........");
    const read = await bytesAt(h.device, 4 * REGION, REGION);
    expect(Buffer.compare(read, SOURCE.subarray(4 * REGION, 5 * REGION))).toBe(0);
    expect([drawing(h), h.commits.losses, h.commits.failure]).toEqual(["................", 1, undefined]);
  });

  test("reads what only the source has at once, though the destination is away and in doubt", async () => {
    const h = await overLink();
    await h.copy(4);
    h.link.options = { ...h.link.options, outageMs: 1e9, patienceMs: 60_000, random: () => 0.5 };
    h.link.break();
    expect(h.commits.isUnsteady).toBe(true);
    const read = await bytesAt(h.device, 5 * REGION, 3 * REGION);
    expect(Buffer.compare(read, SOURCE.subarray(5 * REGION, 8 * REGION))).toBe(0);
    expect([h.clock.now(), h.commits.losses]).toEqual([0, 0]);
  });

  test("is asked twice at most, for what only it can tell, while it cannot be reached", async () => {
    const link = { losses: 0, isAway: true };
    const h = await setUp({ link });
    await h.copy(4);
    await h.commits.commit();
    const away = (): DeviceError => new DeviceError('Cannot flush "disk"', { errno: "ECONNREFUSED" });
    const awayForGood = away();
    h.disk.flushes = [away(), awayForGood, away(), away()];
    link.losses++;
    await expect(h.device.extents(0, SIZE)).rejects.toBe(awayForGood);
    expect([h.disk.flushes.length, h.commits.failure]).toEqual([2, undefined]);
    h.disk.flushes = [away()];
    // Once is not too often: what is taken back meanwhile is found elsewhere.
    expect((await h.device.extents(0, SIZE)).length).toBeGreaterThan(0);
  });

  test("reads again what was under way when it happened", async () => {
    const h = await overLink();
    await h.copy(4);
    h.link.options = { ...h.link.options, latencyMs: 100, random: () => 0.5, outageMs: 1000 };
    const reading = bytesAt(h.device, 4 * REGION, REGION);
    await h.clock.sleep(1);
    h.link.options.random = () => 0;
    h.link.break();
    expect(Buffer.compare(await reading, SOURCE.subarray(4 * REGION, 5 * REGION))).toBe(0);
  });

  test("does not fail for a write that comes when the server has been started anew, nor for one that waits for it", async () => {
    const h = await overLink();
    await h.copy(4);
    await h.device.flush();
    h.link.break(); // with nothing to lose
    await h.device.write(4 * REGION, noise(512, 3));
    await h.device.flush();
    await h.copy(5);
    h.link.options = { ...h.link.options, random: () => 0.5, outageMs: 5000 };
    h.link.break(); // with a copy to lose
    await h.device.write(5 * REGION, noise(512, 4)); // of which nothing may be missing but what it overwrites
    await h.device.flush();
    expect(h.commits.failure).toBeUndefined();
    expect(drawing(h)).toBe("....##..........");
    const expected = Buffer.from(SOURCE.subarray(4 * REGION, 6 * REGION));
    noise(512, 3).copy(expected);
    noise(512, 4).copy(expected, REGION);
    expect(Buffer.compare(h.link.durable.subarray(4 * REGION, 6 * REGION), expected)).toBe(0);
  });

  test.for(["write", "zero", "discard", "a part"] as const)(
    "lets a client's %s wait for a lost copy that may still land",
    async (kind) => {
      const h = await overLink();
      h.link.options = { ...h.link.options, strayMs: 60_000, latencyMs: 100, random: () => 0.6 };
      const copying = h.copy(5).catch((error: unknown) => error); // a copy is on its way when the connection breaks
      await h.clock.sleep(1);
      h.link.break();
      h.link.options = { ...h.link.options, latencyMs: 0 };
      expect(await copying).toBeInstanceOf(LostWritesError);
      const hydration = h.regions.hydrationAt(5);
      if (hydration !== undefined) h.regions.fail(hydration);
      await h.device.flush();
      await h.device.write(7 * REGION, noise(REGION, 4)); // elsewhere nobody waits
      expect(h.clock.now()).toBeLessThan(10_000);

      const expected = Buffer.from(SOURCE.subarray(5 * REGION, 6 * REGION));
      if (kind === "write") await h.device.write(5 * REGION, noise(REGION, 3));
      else if (kind === "zero") await h.device.zero(5 * REGION, REGION);
      else if (kind === "discard") await h.device.discard(5 * REGION, REGION);
      else await h.device.write(5 * REGION, noise(512, 3));
      if (kind === "write" || kind === "a part") noise(kind === "write" ? REGION : 512, 3).copy(expected);
      else expected.fill(0);
      await h.device.flush();
      expect(h.clock.now()).toBeGreaterThanOrEqual(60_000);
      expect(h.commits.failure).toBeUndefined();
      await h.clock.sleep(120_000); // whatever the server had still to do is done
      await h.device.flush();
      expect(Buffer.compare(h.link.durable.subarray(5 * REGION, 6 * REGION), expected)).toBe(0);
    },
  );

  test("shows the old content of what clients wrote in vain, once it has failed, and of what was copied with it", async () => {
    const h = await overLink();
    await h.copy(4);
    await h.device.write(5 * REGION, noise(REGION, 3));
    h.link.break();
    expect(Buffer.compare(await bytesAt(h.device, 0, SIZE), SOURCE)).toBe(0);
    expect(h.commits.failure).toBeInstanceOf(LostWritesError);
    await expect(h.device.flush()).rejects.toBe(h.commits.failure);
  });

  test("takes back what was copied when it breaks once more after the clone has failed", async () => {
    const h = await overLink();
    await h.copy(4);
    h.commits.fail(new Error("something else"));
    h.link.break();
    expect(Buffer.compare(await bytesAt(h.device, 0, SIZE), SOURCE)).toBe(0);
    expect(drawing(h)).toBe("................");
  });
});

import { describe, expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { CommitPipeline } from "../../../src/engine/commit-pipeline.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { type Faults, FaultyDevice } from "../../support/faulty-device.ts";
import { committedRegions, formattedStore } from "../../support/hydration.ts";
import { imageHash } from "../../support/image.ts";
import { LoggingDevice } from "../../support/logging-device.ts";
import { SlowDevice } from "../../support/slow-device.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

const REGIONS = 200;
const SIZE = REGIONS * 4096;

interface Setup {
  /** What fails before it reaches the metadata's device, or the destination. */
  store?: Faults;
  disk?: Faults;
  guard?: (log: string[]) => Promise<void>;
  latencyMs?: number;
}

async function setUp({ store = {}, disk = {}, guard, latencyMs = 0 }: Setup = {}) {
  const clock = new VirtualClock();
  const log: string[] = [];
  const memory = await formattedStore(SIZE, 4096);
  const slow = (device: BlockDevice) => (latencyMs > 0 ? new SlowDevice(device, clock, latencyMs) : device);
  const metadata = await CloneMetadata.open(new FaultyDevice(new LoggingDevice(slow(memory), "metadata", log), store));
  const preCommit = metadata.preCommit.bind(metadata);
  metadata.preCommit = () => {
    log.push("freeze");
    preCommit();
  };
  const destination = new FaultyDevice(
    new LoggingDevice(slow(new MemoryDevice({ name: "disk", size: SIZE })), "disk", log),
    disk,
  );
  const commits = new CommitPipeline({
    metadata,
    destination,
    guard: async () => {
      log.push("guard");
      await guard?.(log);
    },
  });
  return { clock, log, memory, metadata, commits };
}

const region = (start: number) => ({ start, end: start + 1 });

describe("CommitPipeline", () => {
  test("freezes, asks the guard, flushes the destination, and only then writes metadata, its superblock last", async () => {
    const { log, metadata, commits, memory } = await setUp();
    metadata.markHydrated(region(7));
    await commits.commit();
    const [freeze, guard, flush, ...rest] = log;
    expect([freeze, guard, flush]).toEqual(["freeze", "guard", "disk flush"]);
    const superblock = rest.findIndex((entry) => entry.startsWith("metadata write 0+"));
    const before = rest.slice(0, superblock);
    expect(before.length).toBeGreaterThan(1);
    expect(before.at(-1)).toBe("metadata flush");
    expect(before.slice(0, -1).every((entry) => entry.startsWith("metadata write"))).toBe(true);
    expect(rest.slice(superblock)).toEqual(["metadata write 0+4096", "metadata flush"]);
    expect(await committedRegions(memory)).toEqual([region(7)]);
    expect(commits.failure).toBeUndefined();
  });

  test("does nothing at all where nothing changed", async () => {
    const { log, metadata, commits } = await setUp();
    await commits.commit();
    metadata.markHydrated(region(7));
    await commits.commit();
    log.length = 0;
    metadata.markHydrated(region(7));
    await Promise.all([commits.commit(), commits.commit()]);
    expect(log).toEqual([]);
  });

  test.for(["guard", "flush", "writing"])(
    "leaves regions that are marked during the %s to the next commit, of the same 64-bit word or another",
    async (phase) => {
      const { clock, log, metadata, commits, memory } = await setUp({
        latencyMs: 10,
        guard: () => clock.sleep(10),
      });
      metadata.markHydrated(region(3));
      const committing = commits.commit();
      const begins = { guard: "guard", flush: "disk flush", writing: "metadata write" }[phase] as string;
      while (!log.some((entry) => entry.startsWith(begins))) await whenIdle();
      metadata.markHydrated(region(4));
      metadata.markHydrated(region(150));
      await committing;
      expect(await committedRegions(memory)).toEqual([region(3)]);
      expect(metadata.changed).toBe(true);
      await commits.commit();
      expect(await committedRegions(memory)).toEqual([{ start: 3, end: 5 }, region(150)]);
    },
  );

  test("shares one commit among all who ask before it has frozen, and makes one more for all who ask after", async () => {
    const { clock, log, metadata, commits, memory } = await setUp({ latencyMs: 10 });
    const flushes = () => log.filter((entry) => entry === "disk flush").length;
    metadata.markHydrated(region(1));
    const first = [commits.commit(), commits.commit(), commits.commit()];
    while (flushes() === 0) await whenIdle();
    metadata.markHydrated(region(2));
    const second = [commits.commit(), commits.commit()];
    await clock.sleep(1);
    metadata.markHydrated(region(3)); // before the second has frozen: may come along
    second.push(commits.commit());
    await Promise.all(first);
    expect(await committedRegions(memory)).toEqual([region(1)]);
    await Promise.all(second);
    expect(await committedRegions(memory)).toEqual([{ start: 1, end: 4 }]);
    expect(flushes()).toBe(2);
  });

  test("never lets two commits overlap", async () => {
    const { clock, log, metadata, commits } = await setUp({ latencyMs: 10 });
    const all: Promise<void>[] = [];
    for (let i = 0; i < 20; i++) {
      metadata.markHydrated(region(i));
      all.push(commits.commit());
      await clock.sleep(7);
    }
    await Promise.all(all);
    const order = log.filter((entry) => ["freeze", "disk flush", "metadata write 0+4096"].includes(entry));
    for (let i = 0; i < order.length; i += 3) {
      expect(order.slice(i, i + 3)).toEqual(["freeze", "disk flush", "metadata write 0+4096"]);
    }
    expect(metadata.committedCount).toBe(20);
  });

  test("works without a guard", async () => {
    const memory = await formattedStore(SIZE, 4096);
    const metadata = await CloneMetadata.open(memory);
    metadata.markHydrated(region(7));
    await new CommitPipeline({ metadata, destination: new MemoryDevice({ size: SIZE }) }).commit();
    expect(await committedRegions(memory)).toEqual([region(7)]);
  });

  const changed = new CloneError("failed", "the source has changed");
  test.for<[string, Setup]>([
    ["the guard", { guard: () => Promise.reject(changed) }],
    ["the destination's flush", { disk: { failFlush: [0] } }],
    ["a write of metadata", { store: { failWrite: [0] } }],
    ["the metadata's flush", { store: { failFlush: [0] } }],
    ["the write of the superblock", { store: { failWrite: ({ offset }) => offset === 0 } }],
    ["the last flush", { store: { failFlush: [1] } }],
  ])("is final when %s fails, although it would work the next time: nothing more is written", async ([what, setup]) => {
    const { log, metadata, commits, memory } = await setUp(setup);
    const before = await imageHash(memory);
    metadata.markHydrated(region(7));
    const waiting = [commits.commit(), commits.commit()];
    const results = await Promise.allSettled(waiting);
    const errors = results.map((result) => (result.status === "rejected" ? (result.reason as Error) : undefined));
    expect(errors[0]).toBeInstanceOf(CloneError);
    expect(errors[1]).toBe(errors[0]);
    expect(commits.failure).toBe(errors[0]);
    if (what === "the guard" || what === "the destination's flush") expect(await imageHash(memory)).toBe(before);
    if (!metadata.failed) metadata.markHydrated(region(8));
    log.length = 0;
    for (let i = 0; i < 3; i++) await expect(commits.commit()).rejects.toBe(errors[0]);
    expect(log).toEqual([]);
    expect(await committedRegions(memory)).toEqual(what === "the last flush" ? [region(7)] : []);
  });

  test("tells those who wait for the next commit of the failure of the one before", async () => {
    const { log, metadata, commits } = await setUp({ latencyMs: 10, disk: { failFlush: [0] }, guard: async () => {} });
    metadata.markHydrated(region(1));
    const first = commits.commit();
    while (!log.includes("guard")) await Promise.resolve();
    const second = commits.commit();
    const [a, b] = await Promise.allSettled([first, second]);
    expect(a).toMatchObject({ status: "rejected", reason: { message: 'Cannot flush "disk": EIO' } });
    expect(b).toEqual(a);
    expect(log).toEqual(["freeze", "guard"]);
  });
});

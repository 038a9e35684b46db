import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { CommitPipeline } from "../../../src/engine/commit-pipeline.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { committedRegions, formattedStore } from "../../support/hydration.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGIONS = 200;
const SIZE = REGIONS * 4096;
const region = (start: number) => ({ start, end: start + 1 });

async function setUp() {
  const memory = await formattedStore(SIZE, 4096);
  const store = new FaultyDevice(memory, {});
  const faulty = new FaultyDevice(new MemoryDevice({ name: "disk", size: SIZE }), {});
  const disk = new HeldDevice(faulty);
  const metadata = await CloneMetadata.open(store);
  const events: string[] = [];
  const commits = new CommitPipeline({
    metadata,
    destination: disk,
    onCommitted: () => events.push(`committed ${metadata.committedCount}`),
    onFailed: (error) => events.push(`failed: ${error.message}`),
  });
  const flushes = () => disk.log.filter((entry) => entry === "flush").length;
  return { memory, store, faulty, disk, metadata, commits, events, flushes };
}

describe("CommitPipeline.flush()", () => {
  test("flushes the destination where nothing is to be committed, each time", async () => {
    const { commits, flushes, events } = await setUp();
    await commits.flush();
    await commits.flush();
    expect(flushes()).toBe(2);
    expect(events).toEqual([]);
  });

  test("commits where something is, which flushes the destination once", async () => {
    const { commits, metadata, flushes, memory, events } = await setUp();
    metadata.markHydrated(region(7));
    await commits.flush();
    expect(flushes()).toBe(1);
    expect(await committedRegions(memory)).toEqual([region(7)]);
    expect(events).toEqual(["committed 1"]);
    await commits.commit();
    expect(flushes()).toBe(1);
  });

  test("is shared by all who ask before it has begun, and not by those who ask after", async () => {
    const { commits, disk, flushes } = await setUp();
    disk.hold("flush");
    const first = [commits.flush(), commits.flush(), commits.commit(), commits.flush()];
    await whenIdle();
    expect(disk.waiting).toHaveLength(1);
    // What was written meanwhile is not covered by the flush that waits.
    const second = [commits.flush(), commits.flush()];
    await whenIdle();
    expect(disk.waiting).toHaveLength(1);
    disk.release("flush");
    await Promise.all([...first, ...second]);
    expect(flushes()).toBe(2);
  });

  test("waits for the bits that a running commit has frozen: a write to such a region is durable only with its bit", async () => {
    const { commits, disk, metadata, memory } = await setUp();
    metadata.markHydrated(region(7));
    disk.hold("flush");
    const committing = commits.commit();
    await whenIdle();
    let flushed = false;
    const flushing = commits.flush().then(() => {
      flushed = true;
    });
    await whenIdle();
    expect(flushed).toBe(false);
    disk.release("flush");
    await committing;
    expect(await committedRegions(memory)).toEqual([region(7)]);
    await flushing;
  });

  test.for([
    { phase: "in the same 64-bit word", late: 8 },
    { phase: "in another word", late: 150 },
  ])("leaves a region that is hydrated while the destination flushes, $phase, to the next one", async ({ late }) => {
    const { commits, disk, metadata, memory } = await setUp();
    metadata.markHydrated(region(7));
    disk.hold("flush");
    const flushing = commits.flush();
    await whenIdle();
    metadata.markHydrated(region(late));
    disk.release("flush");
    await flushing;
    expect(await committedRegions(memory)).toEqual([region(7)]);
    expect(metadata.changed).toBe(true);
    await commits.flush();
    expect(await committedRegions(memory)).toHaveLength(late === 8 ? 1 : 2);
    expect(metadata.committedCount).toBe(2);
  });

  test("that fails is final, though nothing was to be committed: for flushes, commits, and those who wait", async () => {
    const { commits, disk, faulty, metadata, events, memory } = await setUp();
    faulty.faults = { failFlush: [0] };
    disk.hold("flush");
    const first = commits.flush();
    await whenIdle();
    metadata.markHydrated(region(7));
    const second = commits.flush();
    const results = Promise.allSettled([first, second]);
    disk.release("flush");
    expect((await results).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(commits.failure?.message).toBe('Cannot flush "disk": EIO');
    await expect(commits.commit()).rejects.toBe(commits.failure);
    expect(events).toEqual(['failed: Cannot flush "disk": EIO']);
    expect(await committedRegions(memory)).toEqual([]);
  });
});

describe("CommitPipeline", () => {
  test("is complete when every bit is on disk, not when every region is hydrated", async () => {
    const { commits, metadata, events } = await setUp();
    metadata.markHydrated({ start: 0, end: REGIONS });
    expect(commits.complete).toBe(false);
    await commits.commit();
    expect(commits.complete).toBe(true);
    expect(events).toEqual([`committed ${REGIONS}`]);
  });

  test("does not become complete by a commit that fails", async () => {
    const { commits, metadata, store, events } = await setUp();
    metadata.markHydrated({ start: 0, end: REGIONS });
    store.faults = { failFlush: () => true };
    await expect(commits.commit()).rejects.toThrow("EIO");
    expect(commits.complete).toBe(false);
    expect(events).toHaveLength(1);
    expect(events[0]).toMatch(/^failed: /);
  });

  test("fail() ends it for a reason of somebody else's, also a commit that has begun: nothing more is vouched for", async () => {
    const { commits, disk, metadata, events, memory } = await setUp();
    metadata.markHydrated(region(7));
    disk.hold("flush");
    const committing = commits.commit();
    const ended = expect(committing).rejects.toThrow("region 7 is not what it should be");
    await whenIdle();
    commits.fail(new Error("region 7 is not what it should be"));
    commits.fail(new Error("another"));
    disk.release("flush");
    await ended;
    expect(await committedRegions(memory)).toEqual([]);
    expect(() => commits.check()).toThrow("region 7");
    expect(events).toEqual(["failed: region 7 is not what it should be"]);
  });

  test("that was released only flushes the destination; it is not released before everything is committed", async () => {
    const { commits, metadata, flushes } = await setUp();
    metadata.markHydrated({ start: 0, end: REGIONS });
    expect(() => commits.release()).toThrow("regions are not committed yet");
    await commits.commit();
    commits.release();
    expect(commits.complete).toBe(true);
    const before = flushes();
    await commits.flush();
    await commits.commit();
    expect(flushes()).toBe(before + 1);
  });
});

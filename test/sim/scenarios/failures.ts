/** What goes wrong after an error, at an end, and when nobody looks. */
import { CloneError, LostWritesError, MetadataError } from "../../../src/base/errors.ts";
import { Geometry } from "../../../src/base/geometry.ts";
import { keepTuned, tunedBefore } from "../../../src/clone/tuned.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { Governor } from "../../../src/engine/governor.ts";
import { LatencyHistogram } from "../../../src/engine/latency-histogram.ts";
import { PeriodicCommits } from "../../../src/engine/periodic-commits.ts";
import { Throttle } from "../../../src/engine/throttle.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES, type Descriptor, DescriptorStore } from "../../../src/metadata/descriptor.ts";
import { minimumBlockCount } from "../../../src/metadata/metadata-size.ts";
import { SpaceMap } from "../../../src/persistent-data/space-map.ts";
import { bytesAt, makeClone } from "../../support/clone-device.ts";
import { CountingSource } from "../../support/counting-source.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { formattedStore, makeOnlineHydration } from "../../support/hydration.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { LoggingDevice } from "../../support/logging-device.ts";
import { MetadataImage } from "../../support/metadata-image.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const MIB = 2 ** 20;

/** 14.2, 2: commits that change everything, on the fewest blocks that metadata is made with. */
export async function leastSpace(): Promise<string[]> {
  const wrong: string[] = [];
  for (const regions of [16, 32_577, 400_000]) {
    const geometry = new Geometry({ size: regions * REGION, regionSize: REGION });
    const blockCount = minimumBlockCount(regions);
    const store = new MemoryDevice({ name: "metadata", size: blockCount * 4096 });
    await CloneMetadata.create(store, { geometry, blockCount });
    const metadata = await CloneMetadata.open(store);
    try {
      // Every array block in every commit.
      for (let region = 0; region < 6; region++) {
        for (let at = region; at < regions; at += 32_576) metadata.markHydrated({ start: at, end: at + 1 });
        metadata.preCommit();
        await metadata.commit();
      }
    } catch (error) {
      wrong.push(`${regions} regions on ${blockCount} blocks: ${(error as Error).message}`);
    }
    if ((await checkMetadata(store)).verdict !== "clean") wrong.push(`${regions} regions: the metadata is not clean`);
  }
  return wrong;
}

/** Blocks are handed out until none is left: all that are free, wherever the search begins and the last bitmap ends. */
export async function searchForFreeBlocks(): Promise<string[]> {
  const wrong: string[] = [];
  for (const blockCount of [37, 50, 16_339]) {
    for (const used of blockCount < 100 ? [0, 1, 2, 3, 5] : [3]) {
      const map = SpaceMap.format(blockCount, "metadata");
      map.markCommitted();
      const first = Array.from({ length: used }, () => map.allocate());
      map.markCommitted();
      for (const block of first) map.free(block);
      map.markCommitted();
      const free = Array.from({ length: blockCount }, (_, block) => block).filter((block) => map.count(block) === 0);
      const handedOut = new Set<number>();
      try {
        for (;;) handedOut.add(map.allocate());
      } catch (error) {
        if (!(error instanceof CloneError)) throw error;
      }
      // The bitmaps themselves move, and take and leave a block each.
      if (handedOut.size < free.length - 2 * Math.ceil(blockCount / 16_320)) {
        wrong.push(`of ${free.length} free blocks of ${blockCount} only ${handedOut.size} are found`);
      }
    }
  }
  return wrong;
}

/** A node that says it has more entries than there is room for is refused before any of them is looked at. */
export async function tooManyEntries(): Promise<string[]> {
  const geometry = new Geometry({ size: 16 * REGION, regionSize: REGION });
  const store = new MemoryDevice({ name: "metadata", size: 32 * 4096 });
  await CloneMetadata.create(store, { geometry, blockCount: 32 });
  const image = new MetadataImage(await imageOf(store));
  image.set32(4, 16, 300);
  image.seal(4, "node");
  const damaged = new MemoryDevice({ name: "metadata", size: image.bytes.length, content: image.bytes });
  const error = await CloneMetadata.open(damaged).catch((thrown: unknown) => thrown as Error);
  if (error instanceof MetadataError && /300 entries/.test(error.message)) return [];
  return [`300 entries in a node are met by ${error instanceof Error ? error.name : "nothing"}`];
}

/** 14.2, 3: everything is hydrated, and the commit that would say so is under way, then fails. */
export async function completeOnDiskOnly(): Promise<string[]> {
  const wrong: string[] = [];
  const disk = new MemoryDevice({ name: "destination", size: 4 * REGION, content: noise(4 * REGION, 2) });
  let seen = false;
  class Failing extends FilterDevice {
    override async flush(): Promise<void> {
      seen = clone.commits.complete || clone.device.becomeLinear();
      throw new CloneError("failed", "Cannot flush: EIO");
    }
  }
  const clone = await makeClone({ size: 4 * REGION, destination: new Failing(disk) });
  await clone.device.write(0, Buffer.alloc(4 * REGION, 0x77));
  await clone.device.flush().catch(() => {});
  if (seen) wrong.push("the clone is called complete before its last bits are on disk");
  if (clone.commits.complete) wrong.push("the clone is called complete though its last bits were never committed");
  return wrong;
}

/** A flush of the destination fails once, and is not to be trusted again: nothing is committed, and whoever asks is told. */
export async function flushThatFails(): Promise<string[]> {
  const wrong: string[] = [];
  for (const asks of ["flush", "commit"] as const) {
    const disk = new MemoryDevice({ name: "destination", size: 4 * REGION, content: noise(4 * REGION, 2) });
    const store = await formattedStore(4 * REGION, REGION);
    const destination = new FaultyDevice(disk, { failFlush: [0] });
    const clone = await makeClone({ size: 4 * REGION, regionSize: REGION, destination, store });
    await clone.device.write(REGION, Buffer.alloc(REGION, 0x77));
    for (const time of ["at once", "later"]) {
      const done = await (asks === "flush" ? clone.device.flush() : clone.commits.commit()).then(
        () => true,
        () => false,
      );
      if (done) wrong.push(`a ${asks} succeeds ${time}, though the destination could not flush`);
    }
    const { hydratedCount } = await CloneMetadata.open(store, { readOnly: true });
    if (hydratedCount > 0) wrong.push(`${hydratedCount} regions are committed, though the destination could not flush`);
  }
  return wrong;
}

/** A region is being copied when the destination says that it has lost what was not flushed: the copy ends well, and does not count. */
export async function lostDuringACopy(): Promise<string[]> {
  const clone = await makeClone({ size: 4 * REGION, regionSize: REGION });
  const hydration = clone.regions.begin({ start: 1, end: 2 });
  await clone.copier.copy(clone.geometry.bytesOf(hydration), new AbortController().signal);
  clone.commits.lose(new LostWritesError("The scene's destination has lost what was not flushed"));
  const counts = clone.regions.complete(hydration);
  if (!counts && clone.regions.state(1) === "unhydrated") return [];
  return ["a region is hydrated, though the destination lost a part of it"];
}

/** 14.2, 8: a write was answered, and then the commit failed. */
export async function readsAfterAFailedCommit(): Promise<string[]> {
  const disk = new MemoryDevice({ name: "destination", size: 4 * REGION, content: noise(4 * REGION, 2) });
  const clone = await makeClone({ size: 4 * REGION, destination: new FaultyDevice(disk, { failFlush: [0] }) });
  const written = Buffer.alloc(REGION, 0x77);
  await clone.device.write(REGION, written);
  await clone.device.flush().catch(() => {});
  const wrong: string[] = [];
  if (clone.commits.failure === undefined) wrong.push("the clone has not failed");
  const seen = await bytesAt(clone.device, REGION, REGION);
  if (!seen.equals(written)) wrong.push("a write that was answered disappears while the clone is served");
  const again = await clone.device.flush().then(
    () => "succeeds",
    () => "fails",
  );
  if (again !== "fails") wrong.push("a flush succeeds after a lost write");
  return wrong;
}

/** 14.1, removal: closed while its timer, a commit and a copy are pending, nothing of it runs any more. */
export async function nothingAfterTheEnd(): Promise<string[]> {
  const wrong: string[] = [];
  const clock = new VirtualClock();
  const log: string[] = [];
  const disk = new MemoryDevice({ name: "destination", size: 16 * REGION, content: noise(16 * REGION, 2) });
  const destination = new SlowToFlush(new LoggingDevice(disk, "disk", log), clock);
  const bytes = new MemoryDevice({ name: "source", size: 16 * REGION, content: noise(16 * REGION, 1) });
  const source = new SlowToRead(bytes, clock);
  const clone = await makeClone({ clock, destination, source, regionSize: REGION });
  const periodic = new PeriodicCommits({ commits: clone.commits, clock, onFailure: () => {} });
  periodic.start();
  await clone.device.write(0, Buffer.alloc(REGION, 0x77));
  // At 1000 the timer commits, which takes until 1400; a write of a part of a region copies the rest from 1200 to 1500.
  await clock.sleep(1200);
  const writing = clone.device.write(2 * REGION + 512, Buffer.alloc(512, 0x77));
  await clock.sleep(50);
  if (destination.pending === 0) wrong.push("no commit is pending");
  if (source.pending === 0) wrong.push("no copy is pending");
  await Promise.all([periodic.stop(), clone.device.drain()]);
  if (destination.pending > 0) wrong.push("a commit is still under way after its end");
  await writing;
  const before = log.length;
  await clock.sleep(60_000);
  const after = log.slice(before);
  if (after.length > 0) wrong.push(`after its end: ${after.join(", ")}`);
  clone.commits.fail(new CloneError("failed", "The scene is over")); // whatever still runs ends with this
  return wrong;
}

/** Flushes in 400 ms. */
class SlowToFlush extends FilterDevice {
  pending = 0;
  readonly #clock: VirtualClock;

  constructor(inner: BlockDevice, clock: VirtualClock) {
    super(inner);
    this.#clock = clock;
  }

  override async flush(): Promise<void> {
    this.pending++;
    await this.#clock.sleep(400);
    await super.flush();
    this.pending--;
  }
}

/** Reads in 300 ms. */
class SlowToRead extends FilterDevice {
  pending = 0;
  readonly #clock: VirtualClock;

  constructor(inner: BlockDevice, clock: VirtualClock) {
    super(inner);
    this.#clock = clock;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.pending++;
    await this.#clock.sleep(300);
    await super.read(offset, buffer);
    this.pending--;
  }
}

/** 14.2, 4: clients ask without a pause, and are slower beside copies. Hydration gets on all the same. */
export async function steadyClients(): Promise<string[]> {
  const clock = new VirtualClock();
  const throttle = new Throttle(clock, null);
  const meter = { pressure: new LatencyHistogram(), measuring: false, quietMs: 0 };
  let moved = 0;
  const governor = new Governor({ clock, meter, throttle, moved: () => moved, rate: null, minRate: MIB });
  const end = new AbortController();
  const clients = async (): Promise<void> => {
    for (let before = 0; !end.signal.aborted; before = moved) {
      await clock.sleep(20);
      meter.quietMs = 0;
      // A hundred times slower beside the smallest copy.
      if (meter.measuring) meter.pressure.record(moved > before ? 100 : 1, 100);
    }
  };
  const copies = async (): Promise<void> => {
    while (!end.signal.aborted) {
      const bytes = Math.min(governor.pieceLength, MIB);
      await throttle.take(bytes, end.signal);
      await clock.sleep(1);
      moved += bytes;
    }
  };
  governor.start();
  const running = [clients(), copies()];
  const seconds = 60;
  await clock.sleep(10_000);
  const from = moved;
  await clock.sleep(seconds * 1000);
  const rate = (moved - from) / seconds;
  end.abort();
  await governor.stop();
  await Promise.all(running);
  return rate >= 0.9 * MIB ? [] : [`hydration starves: ${Math.round(rate)} bytes/s of the ${MIB} that are its own`];
}

/** 14.2, 5: one region can never be read. It is tried a few times, not for ever. */
export async function oneBadRegion(): Promise<string[]> {
  const clock = new VirtualClock();
  const memory = new MemoryDevice({ name: "source", size: 64 * REGION, content: noise(64 * REGION, 1) });
  let tries = 0;
  const source = new FaultyDevice(memory, {
    failRead: ({ offset, length }) => {
      const isBad = offset <= 7 * REGION && offset + length > 7 * REGION;
      if (isBad) tries++;
      return isBad;
    },
  });
  const h = await makeOnlineHydration({ clock, source });
  const running = h.run();
  await clock.sleep(600_000);
  const wrong: string[] = [];
  if (h.regions.hydratedCount !== 63) wrong.push(`${h.regions.hydratedCount} of the 63 good regions are hydrated`);
  if (tries > 40) wrong.push(`the bad region was tried ${tries} times in ten minutes`);
  if (h.hydrator.unreadableCount !== 1) wrong.push("the bad region is not listed");
  h.stop.abort();
  await running;
  return wrong;
}

/** 14.2, 9: what was read once is not asked of the source again. */
export async function readTwice(): Promise<string[]> {
  const memory = new MemoryDevice({ name: "source", size: 8 * REGION, content: noise(8 * REGION, 1) });
  const source = new CountingSource(memory);
  const clone = await makeClone({ size: 8 * REGION, source, hydrateOnRead: "always" });
  const expected = await imageOf(memory);
  for (let time = 0; time < 3; time++) {
    const seen = await bytesAt(clone.device, 2 * REGION, 3 * REGION);
    if (!seen.equals(expected.subarray(2 * REGION, 5 * REGION))) return ["what is read is not the source's"];
    await clone.device.drain();
    await whenIdle();
  }
  return source.most === 1 ? [] : [`the source is asked ${source.most} times for what was read once`];
}

/** 14.2, 10: what was tuned while one process hydrated holds for the next. */
export async function rateThatWasTuned(): Promise<string[]> {
  const geometry = new Geometry({ size: 16 * REGION, regionSize: REGION });
  const place = { geometry, blockCount: 32 };
  const device = new MemoryDevice({ name: "metadata", size: 32 * 4096 + DESCRIPTOR_BYTES });
  const descriptors = await DescriptorStore.format(device, place);
  const identity = { uri: "disk.img", size: geometry.size, fingerprint: {} };
  const first: Descriptor = {
    uuid: "1",
    created: "2026-01-01T00:00:00Z",
    source: { ...identity, format: "raw" },
    destination: identity,
    exactSize: geometry.size,
    options: {},
    unreadable: { ranges: [], inexact: false },
    served: false,
    finalized: null,
  };
  await descriptors.write(first);
  const clone = {
    descriptor: descriptors.read(),
    updateDescriptor: async (changes: Partial<Descriptor>) => {
      await descriptors.write({ ...first, ...changes });
      return true;
    },
  };
  await keepTuned(clone, { rate: MIB, threshold: null });
  await keepTuned({ ...clone, descriptor: descriptors.read() }, { batchSize: 7 });
  const next = { descriptor: (await DescriptorStore.open(device, place)).read() };
  const tuned = JSON.stringify(tunedBefore(next, { threshold: 3 }));
  const expected = JSON.stringify({ rate: MIB, batchSize: 7 });
  return tuned === expected ? [] : [`the next process hydrates with ${tuned}`];
}

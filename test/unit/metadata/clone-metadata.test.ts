import { describe, expect, test } from "vitest";
import { DeviceError, MetadataError } from "../../../src/base/errors.ts";
import { Geometry, type RegionRange } from "../../../src/base/geometry.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { imageOf } from "../../support/image.ts";
import { buildMetadata, type MetadataImage, REGIONS, twoLevelImage, writeNode } from "../../support/metadata-image.ts";
import { RecordingDevice } from "../../support/recording-device.ts";

function memory(blockCount: number, content?: Uint8Array): MemoryDevice {
  const size = blockCount * 4096;
  return new MemoryDevice(content === undefined ? { name: "x.meta", size } : { name: "x.meta", size, content });
}

function geometryOf(regionCount: number): Geometry {
  return new Geometry({ size: regionCount * 4096, regionSize: 4096 });
}

/** A new clone on a device that notes what is done to it. */
async function newClone(regionCount: number, blockCount: number) {
  const device = new RecordingDevice(memory(blockCount));
  await CloneMetadata.create(device, { geometry: geometryOf(regionCount), blockCount });
  device.takeChanges();
  return { device, metadata: await CloneMetadata.open(device) };
}

async function commit(metadata: CloneMetadata, ...ranges: RegionRange[]): Promise<void> {
  for (const range of ranges) metadata.markHydrated(range);
  metadata.preCommit();
  await metadata.commit();
}

const region = (index: number): RegionRange => ({ start: index, end: index + 1 });

describe("CloneMetadata.create()", () => {
  test("writes the superblock last, between two flushes", async () => {
    const device = new RecordingDevice(memory(32));
    await CloneMetadata.create(device, { geometry: geometryOf(16), blockCount: 32 });
    expect(device.takeChanges()).toEqual(["write 1+5", "flush", "write 0+1", "flush"]);
  });

  test("destroys an older superblock before it writes anything else", async () => {
    const device = new RecordingDevice(
      memory(32, buildMetadata({ regionSectors: 8, targetSectors: 64, blockCount: 32 }).bytes),
    );
    await CloneMetadata.create(device, { geometry: geometryOf(16), blockCount: 32 });
    expect(device.takeChanges()).toEqual(["write 0+1", "flush", "write 1+5", "flush", "write 0+1", "flush"]);
  });

  test("refuses fewer blocks than commits need, and more than there are, before it writes", async () => {
    const device = new RecordingDevice(memory(32));
    const create = (blockCount: number) => CloneMetadata.create(device, { geometry: geometryOf(16), blockCount });
    await expect(create(9)).rejects.toMatchObject({
      code: "usage",
      message: 'Cannot create clone metadata of 9 blocks on "x.meta": 16 regions need 10',
    });
    await expect(create(33)).rejects.toThrow('Cannot create clone metadata of 33 blocks on "x.meta": it has 32');
    await expect(create(5_000_000)).rejects.toThrow("the format has room for 4161600");
    await expect(create(10.5)).rejects.toThrow(RangeError);
    expect(device.takeChanges()).toEqual([]);
  });

  test("leaves what lies behind its blocks alone", async () => {
    const device = memory(40, new Uint8Array(40 * 4096).fill(9));
    await CloneMetadata.create(device, { geometry: geometryOf(16), blockCount: 32 });
    await commit(await CloneMetadata.open(device), region(3));
    expect((await imageOf(device)).subarray(32 * 4096).every((byte) => byte === 9)).toBe(true);
  });
});

describe("CloneMetadata", () => {
  test("knows in memory what was marked, and on disk what was committed", async () => {
    const { device, metadata } = await newClone(100, 32);
    expect(metadata).toMatchObject({ regionCount: 100, hydratedCount: 0, committedCount: 0, changed: false });
    expect(metadata).toMatchObject({ usedBlocks: 6, totalBlocks: 32, byteLength: 131072, warnings: [] });
    metadata.markHydrated({ start: 10, end: 20 });
    metadata.markHydrated({ start: 15, end: 30 });
    expect(metadata).toMatchObject({ hydratedCount: 20, committedCount: 0, changed: true });
    expect([9, 10, 29, 30].map((index) => metadata.isHydrated(index))).toEqual([false, true, true, false]);
    expect([metadata.nextUnhydrated(0), metadata.nextUnhydrated(10), metadata.nextUnhydrated(99)]).toEqual([0, 30, 99]);
    expect([metadata.nextHydrated(0), metadata.nextHydrated(12), metadata.nextHydrated(30)]).toEqual([10, 12, 100]);
    metadata.preCommit();
    metadata.markHydrated(region(50));
    expect(metadata.changed).toBe(true);
    await metadata.commit();
    expect(metadata).toMatchObject({ hydratedCount: 21, committedCount: 20, changed: true });
    expect([...(await CloneMetadata.open(device)).hydratedRanges()]).toEqual([{ start: 10, end: 30 }]);
    await commit(metadata);
    expect(metadata).toMatchObject({ committedCount: 21, changed: false, usedBlocks: 6 });
  });

  test("hydrated to the last region has no next unhydrated one", async () => {
    const { metadata } = await newClone(100, 32);
    metadata.markHydrated({ start: 0, end: 100 });
    expect(metadata.nextUnhydrated(0)).toBe(100);
    expect([...metadata.hydratedRanges()]).toEqual([{ start: 0, end: 100 }]);
  });

  test("does not call regions dirty that were hydrated already", async () => {
    const { device, metadata } = await newClone(100, 32);
    await commit(metadata, { start: 10, end: 20 });
    metadata.markHydrated({ start: 12, end: 18 });
    expect(metadata.changed).toBe(false);
    device.takeChanges();
    await commit(metadata);
    expect(device.takeChanges()).toEqual([]);
  });

  test("commits one region of a 1 GiB clone in four blocks and the superblock", async () => {
    const { device, metadata } = await newClone(262_144, 64);
    await commit(metadata, region(200_000));
    // 14 blocks were formatted: the four come right behind them.
    expect(device.takeChanges()).toEqual(["write 14+4", "flush", "write 0+1", "flush"]);
  });

  test("refuses ranges outside the clone", async () => {
    const { metadata } = await newClone(100, 32);
    for (const range of [
      { start: 99, end: 101 },
      { start: -1, end: 2 },
      { start: 5, end: 4 },
      { start: 0, end: Number.NaN },
    ]) {
      expect(() => metadata.markHydrated(range)).toThrow(RangeError);
    }
  });

  test("keeps preCommit() and commit() in order", async () => {
    const { metadata } = await newClone(100, 32);
    await expect(metadata.commit()).rejects.toThrow("commit without preCommit");
    metadata.preCommit();
    expect(() => metadata.preCommit()).toThrow("preCommit while the previous commit is frozen");
    await metadata.commit();
    metadata.preCommit();
  });

  test("opened read-only takes no changes, and may lie on a read-only device", async () => {
    const image = buildMetadata({ regionSectors: 8, targetSectors: 1024, blockCount: 32, hydrated: [[3, 7]] }).bytes;
    const device = new MemoryDevice({ name: "x.meta", size: image.length, content: image, readOnly: true });
    const metadata = await CloneMetadata.open(device, { readOnly: true });
    expect(metadata.hydratedCount).toBe(4);
    expect(() => metadata.markHydrated(region(1))).toThrow(TypeError);
    expect(() => metadata.preCommit()).toThrow(TypeError);
    await expect(CloneMetadata.open(device)).rejects.toThrow(TypeError);
  });

  test("survives many commits that wrap round a space map of three bitmaps", async () => {
    const device = memory(33_000);
    await CloneMetadata.create(device, { geometry: geometryOf(1_000_000), blockCount: 33_000 });
    let metadata = await CloneMetadata.open(device);
    for (let round = 0; round < 1900; round++) {
      // One region below each of the 31 array blocks: 34 blocks or more per commit.
      await commit(metadata, ...Array.from({ length: 30 }, (_, key) => region(key * 32_576 + round)));
      if (round % 500 !== 0) continue;
      expect((await checkMetadata(device)).verdict).toBe("clean");
      metadata = await CloneMetadata.open(device); // the search starts at 0 again
    }
    expect((await checkMetadata(device)).verdict).toBe("clean");
    const ranges = Array.from({ length: 30 }, (_, key) => ({ start: key * 32_576, end: key * 32_576 + 1900 }));
    expect([...(await CloneMetadata.open(device)).hydratedRanges()]).toEqual(ranges);
    expect(metadata.usedBlocks).toBe(3 + 3 + 1 + 31);
  });

  test("carries on with a tree of another shape than the kernel's", async () => {
    const device = memory(64, twoLevelImage().bytes);
    const metadata = await CloneMetadata.open(device);
    await commit(metadata, { start: 0, end: 100 }, { start: 70_000, end: 130_000 });
    await commit(metadata, { start: 0, end: REGIONS });
    expect((await checkMetadata(device)).verdict).toBe("clean");
    expect((await CloneMetadata.open(device)).hydratedCount).toBe(REGIONS);
  });
});

describe("CloneMetadata after a failed commit", () => {
  async function failing(faults: ConstructorParameters<typeof FaultyDevice>[1]) {
    const device = memory(32);
    await CloneMetadata.create(device, { geometry: geometryOf(100), blockCount: 32 });
    const faulty = new FaultyDevice(device, {});
    const metadata = await CloneMetadata.open(faulty);
    await commit(metadata, region(1));
    metadata.markHydrated(region(2));
    metadata.preCommit();
    metadata.markHydrated(region(3));
    faulty.faults = faults;
    await expect(metadata.commit()).rejects.toBeInstanceOf(DeviceError);
    faulty.faults = {};
    return { device, metadata };
  }

  test.each([
    ["the blocks", { failWrite: () => true }, 1],
    ["their flush", { failFlush: () => true }, 1],
    ["the superblock", { failWrite: ({ offset }: { offset: number }) => offset === 0 }, 1],
  ])("at %s refuses everything but abort(), which reads again what is on disk", async (_what, faults, hydrated) => {
    const { metadata } = await failing(faults);
    expect(metadata).toMatchObject({ failed: true, changed: true });
    expect(() => metadata.markHydrated(region(4))).toThrow("a commit failed");
    expect(() => metadata.preCommit()).toThrow("a commit failed");
    await expect(metadata.commit()).rejects.toThrow("commit without preCommit (failed)");
    await metadata.abort();
    expect(metadata).toMatchObject({ failed: true, changed: false, hydratedCount: hydrated, committedCount: hydrated });
    expect([...metadata.hydratedRanges()]).toEqual([region(1)]);
    expect(() => metadata.markHydrated(region(4))).toThrow("a commit failed");
    await metadata[Symbol.asyncDispose]();
    await metadata[Symbol.asyncDispose]();
  });

  test("at the last flush finds the new state by abort(), where the superblock has been written", async () => {
    let flushes = 0;
    const { metadata, device } = await failing({ failFlush: () => ++flushes === 2 });
    await metadata.abort();
    expect([...metadata.hydratedRanges()]).toEqual([{ start: 1, end: 3 }]);
    expect((await checkMetadata(device)).verdict).toBe("clean");
  });

  test("abort() of nothing failed drops what was not committed and lets work go on", async () => {
    const { device, metadata } = await newClone(100, 32);
    await commit(metadata, region(1));
    metadata.markHydrated(region(2));
    metadata.preCommit();
    metadata.markHydrated(region(3));
    await metadata.abort();
    expect(metadata).toMatchObject({ changed: false, hydratedCount: 1, failed: false });
    await commit(metadata, region(9));
    expect([...(await CloneMetadata.open(device)).hydratedRanges()]).toEqual([region(1), region(9)]);
  });

  test("abort() refuses the metadata of another clone in its place", async () => {
    const { device, metadata } = await newClone(100, 32);
    await CloneMetadata.create(device, { geometry: geometryOf(200), blockCount: 32 });
    await expect(metadata.abort()).rejects.toThrow("replaced by that of another clone");
    expect(metadata.failed).toBe(true);
  });

  test("runs out of space with an error that says so, on metadata that is too small", async () => {
    const device = memory(9, buildMetadata({ regionSectors: 8, targetSectors: 128, blockCount: 9 }).bytes);
    const metadata = await CloneMetadata.open(device);
    expect(metadata.warnings).toEqual([
      "The metadata has 9 blocks, fewer than the 10 it needs: a commit may find no space",
    ]);
    await expect(commit(metadata, region(1))).rejects.toThrow('No block is free in the metadata "x.meta"');
    expect((await checkMetadata(device)).facts?.hydratedRegions).toBe(0);
  });
});

/** Runs commits of another process right before some of the reads. */
class ChangingDevice extends FilterDevice {
  readonly #writer: CloneMetadata;
  /** How many commits come before a read, counted from 0. */
  readonly #commitsBefore: (read: number) => number;
  #reads = 0;
  #next = 0;

  constructor(inner: BlockDevice, writer: CloneMetadata, commitsBefore: (read: number) => number) {
    super(inner);
    this.#writer = writer;
    this.#commitsBefore = commitsBefore;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    for (let left = this.#commitsBefore(this.#reads++); left > 0; left--)
      await commit(this.#writer, region(this.#next++));
    await super.read(offset, buffer);
  }
}

describe("CloneMetadata.open()", () => {
  test("read-only starts again when a commit came in between, and shows the newer state", async () => {
    const { device, metadata } = await newClone(100, 32);
    const opened = await CloneMetadata.open(new ChangingDevice(device, metadata, (read) => (read === 2 ? 1 : 0)), {
      readOnly: true,
    });
    expect([...opened.hydratedRanges()]).toEqual([region(0)]);
  });

  test("read-only gives up on metadata that never holds still", async () => {
    const { device, metadata } = await newClone(100, 32);
    await expect(CloneMetadata.open(new ChangingDevice(device, metadata, () => 1), { readOnly: true })).rejects.toThrow(
      "changed 10 times while it was read",
    );
  });

  test("read-only starts again when blocks it was reading were reused", async () => {
    const { device, metadata } = await newClone(16, 10);
    // The third read is of the array block; by then three commits have come round to put another block in its place.
    const changing = new ChangingDevice(device, metadata, (read) => (read === 2 ? 3 : 0));
    const opened = await CloneMetadata.open(changing, { readOnly: true });
    expect([...opened.hydratedRanges()]).toEqual([{ start: 0, end: 3 }]);
  });

  test("stops when its signal is aborted", async () => {
    const { device } = await newClone(100, 32);
    const stopped = CloneMetadata.open(device, { signal: AbortSignal.abort(new Error("stopped")) });
    await expect(stopped).rejects.toThrow("stopped");
  });

  test("ignores bits beyond the last region and preserves them", async () => {
    const image = buildMetadata({ regionSectors: 8, targetSectors: 80, blockCount: 32, hydrated: [[2, 3]] });
    image.edit(5, "array", (bytes) => bytes.set([0x04, 0xf0], 24)); // regions 12 … 15 of 10
    const device = memory(32, image.bytes);
    const metadata = await CloneMetadata.open(device);
    expect([...metadata.hydratedRanges()]).toEqual([region(2)]);
    expect(metadata.hydratedCount).toBe(1);
    await commit(metadata, region(9));
    const after = await imageOf(device);
    expect([...after.subarray(6 * 4096 + 24, 6 * 4096 + 26)]).toEqual([0x04, 0xf2]);
  });

  test("corrects wrong statistics of the space map, and says so", async () => {
    const image = twoLevelImage();
    image.edit(1, "index", (bytes) => bytes.writeUInt32LE(0, 24)); // nr_free: the kernel would find no space
    image.set64(0, 52, 60);
    image.seal(0, "superblock");
    const device = memory(64, image.bytes);
    const metadata = await CloneMetadata.open(device);
    expect(metadata.warnings).toEqual([
      "The space map index says 0 entries of bitmap 0 are free, none before 13; the bitmap says 16307, the first at 13",
      "The superblock says 60 metadata blocks are in use; the space map says 13",
    ]);
    await commit(metadata, region(7));
    expect((await checkMetadata(device)).verdict).toBe("clean");
    expect((await CloneMetadata.open(device)).warnings).toEqual([]);
  });

  /** Damage to `twoLevelImage()`, where its block numbers are drawn, and what is said of it. */
  const damages: [string, (image: MetadataImage) => void, string, number][] = [
    ["a damaged array block", (i) => void i.block(7).fill(1, 30, 31), "Block 7 of", 7],
    ["a damaged leaf", (i) => void i.block(11).fill(1, 4000, 4001), "Block 11 of", 11],
    [
      "a node in the place of an array block",
      (i) =>
        writeNode(i, 10, 2, [
          [0, 5],
          [1, 11],
        ]),
      "holds a btree node where an array block",
      11,
    ],
    [
      "an array block named twice",
      (i) =>
        writeNode(i, 10, 2, [
          [0, 5],
          [1, 5],
        ]),
      "it names block 5 as array block 1, which has another use",
      10,
    ],
    ["a first key of 1", (i) => writeNode(i, 10, 2, [[1, 5]]), "it has key 1 where", 10],
    ["a missing key", (i) => writeNode(i, 12, 2, []), "ends after 4 of 5 array blocks", 4],
    [
      "a key too many",
      (i) =>
        writeNode(i, 12, 2, [
          [4, 9],
          [5, 20],
        ]),
      "it has key 5 where",
      12,
    ],
    [
      "keys out of order",
      (i) =>
        writeNode(i, 11, 2, [
          [3, 7],
          [2, 8],
        ]),
      "key 2 follows 3",
      11,
    ],
    [
      "keys outside the parent's range",
      (i) =>
        writeNode(i, 11, 2, [
          [2, 7],
          [4, 8],
        ]),
      "its keys are not within 2 … 4",
      11,
    ],
    [
      "an array block number beyond the device",
      (i) => writeNode(i, 12, 2, [[4, 64]]),
      "it names block 64 as array block 4",
      12,
    ],
    [
      "a child beyond the device",
      (i) =>
        writeNode(i, 4, 1, [
          [0, 10],
          [2, 2 ** 40],
        ]),
      "names block 1099511627776 as a child",
      4,
    ],
    ["a child of block 0", (i) => writeNode(i, 4, 1, [[0, 0]]), "it names block 0 as a child", 4],
    ["a node that is its own child", (i) => writeNode(i, 4, 1, [[0, 4]]), "it is reached twice", 4],
    [
      "a child named twice",
      (i) =>
        writeNode(i, 4, 1, [
          [0, 10],
          [2, 10],
          [4, 12],
        ]),
      "it is reached twice",
      10,
    ],
    ["an internal node without children", (i) => writeNode(i, 4, 1, []), "it is internal and has no children", 4],
    [
      "leaves at two depths",
      (i) => {
        writeNode(i, 11, 1, [[2, 20]]);
        writeNode(i, 20, 2, [
          [2, 7],
          [3, 8],
        ]);
      },
      "it is a leaf at depth 2, others are at 1",
      20,
    ],
    [
      "a node that is leaf and internal",
      (i) => i.edit(10, "node", (b) => b.writeUInt32LE(3, 4)),
      "its flags are 3",
      10,
    ],
    [
      "too many entries",
      (i) => i.edit(10, "node", (b) => b.writeUInt32LE(253, 16)),
      "it has 253 entries and room for 252",
      10,
    ],
    [
      "another max_entries",
      (i) => i.edit(10, "node", (b) => b.writeUInt32LE(253, 20)),
      "it has room for 253 entries instead of 252",
      10,
    ],
    [
      "another value_size",
      (i) => i.edit(10, "node", (b) => b.writeUInt32LE(4, 24)),
      "its values have 4 bytes instead of 8",
      10,
    ],
    [
      "an array block with too few words",
      (i) => i.edit(6, "array", (b) => b.writeUInt32LE(508, 8)),
      "nr_entries is 508 instead of 509",
      6,
    ],
    [
      "an array block with another max_entries",
      (i) => i.edit(6, "array", (b) => b.writeUInt32LE(500, 4)),
      "max_entries is 500 instead of 509",
      6,
    ],
    [
      "an array block with another value_size",
      (i) => i.edit(6, "array", (b) => b.writeUInt32LE(4, 12)),
      "value_size is 4 instead of 8",
      6,
    ],
  ];
  test.each(damages)("refuses %s", async (_what, damage, message, block) => {
    const image = twoLevelImage();
    damage(image);
    for (const readOnly of [false, true]) {
      const error = await CloneMetadata.open(memory(64, image.bytes), { readOnly }).catch((caught: unknown) => caught);
      expect(error).toBeInstanceOf(MetadataError);
      expect((error as MetadataError).message).toContain(message);
      expect((error as MetadataError).block).toBe(block);
    }
  });

  const spaceMapDamages: [string, (image: MetadataImage) => void, string][] = [
    [
      "a block in use that is counted free",
      (i) => i.setCount(7, 0),
      'Block 7 of "x.meta" is in use, but the space map calls it free',
    ],
    ["the superblock counted free", (i) => i.setCount(0, 0), "Block 0 of"],
    ["a damaged bitmap", (i) => void i.block(3).fill(1, 50, 51), "Block 3 of"],
    ["a damaged reference-count leaf", (i) => void i.block(2).fill(1, 50, 51), "Block 2 of"],
    ["a damaged index", (i) => void i.block(1).fill(1, 500, 501), "Block 1 of"],
    [
      "a bitmap beyond the device",
      (i) => i.edit(1, "index", (b) => b.writeUInt32LE(64, 16)),
      "names block 64 as a bitmap",
    ],
    [
      "a root used for two things",
      (i) => {
        i.set64(0, 68, 4);
        i.seal(0, "superblock");
      },
      'Block 4 of "x.meta" is used twice',
    ],
  ];
  test.each(spaceMapDamages)(
    "refuses %s for writing, and reads the regions all the same",
    async (_what, damage, message) => {
      const image = twoLevelImage();
      damage(image);
      await expect(CloneMetadata.open(memory(64, image.bytes))).rejects.toThrow(message);
      const metadata = await CloneMetadata.open(memory(64, image.bytes), { readOnly: true });
      expect([...metadata.hydratedRanges()].map(({ start, end }) => [start, end])).toEqual(
        twoLevelImage().hydratedRanges(),
      );
    },
  );

  const overcounts: [string, (image: MetadataImage) => void, string][] = [
    ["a block counted twice", (i) => i.setCount(11, 2), "counts 1 blocks more than once"],
    ["a block counted three times", (i) => i.setCount(11, 3), "counts 1 blocks more than once"],
    ["blocks that do not exist counted", (i) => i.setCount(70, 1), "counts 1 blocks as in use that do not exist"],
  ];
  test.each(overcounts)(
    "works with %s, says so, and never hands out what is in use",
    async (_what, damage, warning) => {
      const image = twoLevelImage();
      damage(image);
      const device = memory(64, image.bytes);
      const metadata = await CloneMetadata.open(device);
      expect(metadata.warnings.join()).toContain(warning);
      for (let i = 0; i < 40; i++) await commit(metadata, region(100 + i));
      const report = await checkMetadata(device);
      expect(report.fatal).toEqual([]);
      expect(report.facts?.hydratedRegions).toBe(metadata.hydratedCount);
    },
  );

  test("takes a lost block for what it is: in use for ever", async () => {
    const image = twoLevelImage();
    image.setCount(20, 1);
    const device = memory(64, image.bytes);
    const metadata = await CloneMetadata.open(device);
    for (let i = 0; i < 40; i++) await commit(metadata, region(100 + i));
    expect((await imageOf(device)).subarray(20 * 4096, 21 * 4096).every((byte) => byte === 0)).toBe(true);
    expect(metadata.usedBlocks).toBe(14);
  });
});

describe("CloneMetadata.rollback()", () => {
  test("takes back what no commit has made durable, frozen or not, and nothing else", async () => {
    const { device, metadata } = await newClone(200, 64);
    await commit(metadata, { start: 10, end: 80 });
    metadata.markHydrated({ start: 0, end: 20 });
    metadata.preCommit();
    metadata.markHydrated({ start: 70, end: 90 });
    metadata.markHydrated(region(199));
    device.takeChanges();
    expect(metadata.rollback()).toBe(10 + 10 + 1);
    expect([...metadata.hydratedRanges()]).toEqual([{ start: 10, end: 80 }]);
    expect([metadata.hydratedCount, metadata.committedCount, metadata.changed]).toEqual([70, 70, false]);
    expect(device.takeChanges()).toEqual([]);
    // And it goes on from there.
    await commit(metadata, { start: 5, end: 15 });
    expect([...(await CloneMetadata.open(device)).hydratedRanges()]).toEqual([{ start: 5, end: 80 }]);
    expect(metadata.rollback()).toBe(0);
  });

  test("takes back 500,000 frozen ranges", async () => {
    const { metadata } = await newClone(1_000_000, 256);
    for (let start = 0; start < 1_000_000; start += 2) metadata.markHydrated(region(start));
    metadata.preCommit();
    expect(metadata.rollback()).toBe(500_000);
    expect([metadata.hydratedCount, metadata.changed]).toEqual([0, false]);
  });

  test("leaves alone what is being committed at that moment: its data was flushed before", async () => {
    const { device, metadata } = await newClone(200, 64);
    metadata.markHydrated({ start: 0, end: 3 });
    metadata.preCommit();
    const committing = metadata.commit();
    metadata.markHydrated({ start: 3, end: 6 });
    expect(metadata.rollback()).toBe(3);
    await committing;
    expect([metadata.hydratedCount, metadata.committedCount]).toEqual([3, 3]);
    expect([...(await CloneMetadata.open(device)).hydratedRanges()]).toEqual([{ start: 0, end: 3 }]);
  });

  test("still takes back after a failed commit, for those who read", async () => {
    const { device, metadata } = await newClone(200, 64);
    const failing = await CloneMetadata.open(new FaultyDevice(device, { failWrite: [0] }));
    failing.markHydrated({ start: 0, end: 3 });
    failing.preCommit();
    await expect(failing.commit()).rejects.toThrow(/EIO/);
    expect(failing.rollback()).toBe(3);
    expect([failing.hydratedCount, failing.failed]).toEqual([0, true]);
    await metadata[Symbol.asyncDispose]();
  });
});

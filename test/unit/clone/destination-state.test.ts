import { describe, expect, test } from "vitest";
import { ChangedError, DeviceError } from "../../../src/base/errors.ts";
import { Geometry } from "../../../src/base/geometry.ts";
import type { Clone } from "../../../src/clone/clone.ts";
import { refuseDifferentSamples, settledState } from "../../../src/clone/destination-state.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { noise } from "../../support/layout.ts";

const SAMPLES = 32;

/** As much of a clone as samples need: `hydrated` are half-open ranges of regions. */
async function cloneOf(
  size: number,
  regionSize: number,
  hydrated: [start: number, end: number][],
): Promise<Clone & { warnings: string[] }> {
  const geometry = new Geometry({ size, regionSize });
  const store = new MemoryDevice({ size: 64 * 4096 });
  await CloneMetadata.create(store, { geometry, blockCount: 64 });
  const metadata = await CloneMetadata.open(store);
  for (const [start, end] of hydrated) metadata.markHydrated({ start, end });
  const warnings: string[] = [];
  const warn = (warning: string) => warnings.push(warning);
  const parts = { geometry, exactSize: size, metadata, metadataDevice: store };
  return { ...parts, warn, warnings } as unknown as Clone & { warnings: string[] };
}

/** Notes the offsets and lengths that are read. */
class NotingDevice extends MemoryDevice {
  readonly reads: { offset: number; length: number }[] = [];

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.reads.push({ offset, length: buffer.length });
    await super.read(offset, buffer);
  }
}

/** The regions that are compared. */
async function sampled(clone: Clone): Promise<number[]> {
  const { size, regionSize } = clone.geometry;
  const [source, destination] = [new NotingDevice({ size }), new NotingDevice({ size })];
  await refuseDifferentSamples(clone, source, destination);
  expect(destination.reads).toEqual(source.reads);
  return source.reads.map(({ offset }) => offset / regionSize);
}

describe("refuseDifferentSamples()", () => {
  test.each([
    ["one region", [[5, 6]]],
    ["two far apart", [[0, 1], [999, 1000]]], // biome-ignore format: ranges
    ["exactly as many as there are samples", [[10, 10 + SAMPLES]]],
    ["fewer, scattered", [[1, 3], [7, 8], [20, 30], [500, 505]]], // biome-ignore format: ranges
  ] as [string, [number, number][]][])(
    "compares all of the hydrated regions where there are few: %s",
    async (_, hydrated) => {
      const all = hydrated.flatMap(([start, end]) => Array.from({ length: end - start }, (_, index) => start + index));
      expect(await sampled(await cloneOf(1000 * 4096, 4096, hydrated))).toEqual(all);
    },
  );

  test.each([
    ["all of them", [[0, 1000]]],
    ["every other one", Array.from({ length: 500 }, (_, index) => [2 * index, 2 * index + 1])],
    ["two blocks at the ends", [[0, 400], [980, 1000]]], // biome-ignore format: ranges
    ["one more than there are samples", [[3, 4 + SAMPLES]]],
  ] as [string, [number, number][]][])("spreads samples evenly where there are many: %s", async (_, hydrated) => {
    const all = hydrated.flatMap(([start, end]) => Array.from({ length: end - start }, (_, index) => start + index));
    const regions = await sampled(await cloneOf(1000 * 4096, 4096, hydrated));
    expect(regions).toHaveLength(SAMPLES);
    const places = regions.map((region) => all.indexOf(region));
    expect(places[0]).toBe(0);
    expect(places.at(-1)).toBe(all.length - 1);
    const even = (all.length - 1) / (SAMPLES - 1);
    places.forEach((place, index) => {
      expect(Math.abs(place - index * even)).toBeLessThan(1);
      if (index > 0) expect(place).toBeGreaterThan(places[index - 1] as number);
    });
  });

  test("compares nothing where nothing is hydrated", async () => {
    expect(await sampled(await cloneOf(100 * 4096, 4096, []))).toEqual([]);
  });

  test("reads at most 64 KiB of a region, and of a short last one what there is", async () => {
    const clone = await cloneOf(3 * 2 ** 20 + 512, 2 ** 20, [[2, 4]]);
    const [source, destination] = [
      new NotingDevice({ size: clone.geometry.size }),
      new NotingDevice({ size: clone.geometry.size }),
    ];
    await refuseDifferentSamples(clone, source, destination);
    expect(source.reads).toEqual([
      { offset: 2 * 2 ** 20, length: 65536 },
      { offset: 3 * 2 ** 20, length: 512 },
    ]);
  });

  test("refuses where one byte of a sample differs, and names the region", async () => {
    const clone = await cloneOf(100 * 4096, 4096, [[10, 20]]);
    const content = noise(100 * 4096, 1);
    const damaged = Buffer.from(content);
    damaged[13 * 4096 + 4095] = (damaged[13 * 4096 + 4095] as number) ^ 1;
    const source = new MemoryDevice({ size: content.length, content });
    const wrong = new MemoryDevice({ name: "copy.img", size: content.length, content: damaged });
    await expect(refuseDifferentSamples(clone, source, wrong)).rejects.toMatchObject({
      code: "failed",
      message: `Cannot use "copy.img" as the destination: region 13 is called hydrated, but differs from the source`,
    });
  });

  test("lets what is not hydrated differ", async () => {
    const clone = await cloneOf(100 * 4096, 4096, [[10, 20]]);
    const content = noise(100 * 4096, 1);
    const partly = Buffer.alloc(content.length);
    content.copy(partly, 10 * 4096, 10 * 4096, 20 * 4096);
    const source = new MemoryDevice({ size: content.length, content });
    const destination = new MemoryDevice({ size: content.length, content: partly });
    await refuseDifferentSamples(clone, source, destination);
  });

  test("fails where a sample cannot be read", async () => {
    const clone = await cloneOf(100 * 4096, 4096, [[10, 20]]);
    const source = new MemoryDevice({ size: 100 * 4096 });
    const destination = new FaultyDevice(new MemoryDevice({ size: 100 * 4096 }), { failRead: [3] });
    await expect(refuseDifferentSamples(clone, source, destination)).rejects.toMatchObject({ errno: "EIO" });
  });

  // Which regions the source cannot be read in is said by a function; what was compared is what of the destination is wrong and found.
  describe("where the source cannot be read everywhere", () => {
    const size = 1000 * 4096;
    const content = Buffer.alloc(size, "right");

    class Dying extends NotingDevice {
      readonly isBad: (region: number) => boolean;

      constructor(isBad: (region: number) => boolean) {
        super({ name: "dying", size, content });
        this.isBad = isBad;
      }

      override async read(offset: number, buffer: Uint8Array): Promise<void> {
        await super.read(offset, buffer);
        if (this.isBad(offset / 4096)) throw new DeviceError("Cannot read: EIO", { errno: "EIO" });
      }
    }

    test("asks once as long as half of the samples can be read", async () => {
      const clone = await cloneOf(size, 4096, [[0, 1000]]);
      const source = new Dying((region) => region > 500);
      await refuseDifferentSamples(clone, source, new MemoryDevice({ size, content }));
      expect(source.reads).toHaveLength(SAMPLES);
      expect(clone.warnings).toEqual([]);
    });

    test("takes others nearby where most cannot be read, and finds what is wrong there", async () => {
      const clone = await cloneOf(size, 4096, [[0, 1000]]);
      const samples = new Set(await sampled(clone));
      const source = new Dying((region) => samples.has(region));
      const right = new MemoryDevice({ size, content });
      await refuseDifferentSamples(clone, source, right);
      expect(source.reads).toHaveLength(2 * SAMPLES);
      await expect(refuseDifferentSamples(clone, source, new MemoryDevice({ size }))).rejects.toThrow(/differs from/);
    });

    test("says so where only few could be compared", async () => {
      const clone = await cloneOf(size, 4096, [[0, 1000]]);
      const source = new Dying((region) => region > 100);
      await refuseDifferentSamples(clone, source, new MemoryDevice({ size, content }));
      expect(clone.warnings).toEqual([expect.stringMatching(/^Only 4 of 32 samples of .* were compared/)]);
    });

    test.each([
      ["one region is hydrated", [[7, 8]]],
      ["all are", [[0, 1000]]],
    ] as [string, [number, number][]][])("refuses where nothing can be compared: %s", async (_, hydrated) => {
      const clone = await cloneOf(size, 4096, hydrated);
      const destination = new MemoryDevice({ name: "copy.img", size });
      await expect(refuseDifferentSamples(clone, new Dying(() => true), destination)).rejects.toMatchObject({
        name: "CloneError", // which --accept-changed-source accepts
        message: expect.stringContaining('none of its samples could be compared with "dying"'),
        hint: expect.stringContaining("--accept-changed-source"),
      });
    });

    test.each([
      new DeviceError("Cannot read: ENXIO", { errno: "ENXIO" }),
      new DeviceError("Cannot read: ETIMEDOUT", { errno: "ETIMEDOUT" }),
      new ChangedError("Cannot read: another", { difference: "another" }),
    ])("fails where all of it is gone, away or another: %s", async (error) => {
      const clone = await cloneOf(size, 4096, [[0, 1000]]);
      const source = new MemoryDevice({ size });
      source.read = () => Promise.reject(error);
      await expect(refuseDifferentSamples(clone, source, new MemoryDevice({ size }))).rejects.toBe(error);
    });
  });
});

describe("settledState()", () => {
  test("records the bits that are on disk, whatever is hydrated while it is read", async () => {
    const size = 8 * 4096;
    const clone = await cloneOf(size, 4096, [[2, 4]]);
    const { metadata } = clone;
    metadata.preCommit();
    await metadata.commit();
    const onDisk = { hydratedRegions: 2, hydratedDigest: metadata.hydratedDigest() };
    const destination = { device: new MemoryDevice({ size }), file: undefined };
    for (let late = 1; late <= 100; late++) {
      let reads = 0;
      const opened = await CloneMetadata.open(clone.metadataDevice);
      const read = async (offset: number, buffer: Uint8Array) => {
        await clone.metadataDevice.read(offset, buffer);
        if (++reads === late) opened.markHydrated({ start: 6, end: 7 });
      };
      const left = { ...clone, metadata: opened, metadataDevice: { ...clone.metadataDevice, size: 64 * 4096, read } };
      const settled = await settledState(left as unknown as Clone, destination as never);
      if (settled.hydratedDigest !== undefined) expect(settled).toMatchObject(onDisk);
      if (reads < late) return;
    }
    throw new Error("it reads more than a hundred times");
  });
});

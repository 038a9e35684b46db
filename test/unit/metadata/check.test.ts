// The checker on what the kernel wrote, where nothing is to be found, and on input that means harm. What it says of each
// single fault is in check-violations.test.ts.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test, vi } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata, formatFinding } from "../../../src/metadata/check.ts";
import { FaultyDevice, type Operation } from "../../support/faulty-device.ts";
import { kernelFixtures, readFixtureImage, readFixtureTruth } from "../../support/kernel-fixtures.ts";
import {
  BLOCK,
  buildMetadata,
  flipBit,
  MetadataImage,
  REGIONS,
  twoLevelImage,
  writeNode,
} from "../../support/metadata-image.ts";

vi.setConfig({ testTimeout: 120_000 }); // for slow and busy machines; nothing here measures time

function deviceOf(bytes: Uint8Array): MemoryDevice {
  return new MemoryDevice({ size: bytes.length, content: bytes, readOnly: true });
}

const check = (image: { bytes: Uint8Array }) => checkMetadata(deviceOf(image.bytes));

test("the checker shares no code with what writes metadata", () => {
  const folder = new URL("../../../src/metadata/", import.meta.url);
  const files = readdirSync(folder).filter((file) =>
    /^(check|descriptor|unreadable|settled-witness|repair-space-map)/.test(file),
  );
  const imported = files.flatMap((file) =>
    [...readFileSync(new URL(file, folder), "utf8").matchAll(/from "(\..+?)"/g)].map((match) => match[1] as string),
  );
  const allowed =
    /^\.\/(check-|descriptor|unreadable-ranges|foreign-content|settled-witness|repair-space-map)|^\.\.\/base\/|^\.\.\/device\/block-device\.ts$/;
  expect(files).toContain("check.ts");
  expect(imported.filter((path) => !allowed.test(path))).toEqual([]);
});

test("the support's own encoder makes the kernel's bytes", () => {
  const digest = (image: MetadataImage) => createHash("sha256").update(image.bytes).digest("hex");
  expect(digest(buildMetadata({ regionSectors: 8, targetSectors: 128, blockCount: 32 }))).toBe(
    "aaff031cfd2d8a4470db5305e6e0c6be84715320aac8df8c49123858ef860652",
  );
  expect(digest(buildMetadata({ regionSectors: 8, targetSectors: 800003, blockCount: 1024 }))).toBe(
    "3a2a9028fa9a9236d7fe97b29560d054bf47286a6535091e310053cfb8db121a",
  );
});

test.for(kernelFixtures)("checkMetadata() finds nothing in the kernel's %s and counts what is there", async (name) => {
  const truth = readFixtureTruth(name);
  const report = await checkMetadata(deviceOf(readFixtureImage(name)));
  expect(report).toMatchObject({ ok: true, verdict: "clean", fatal: [], warnings: [] });
  expect(report.facts).toMatchObject({
    size: truth.target_size * 512,
    regionSize: truth.region_size * 512,
    regions: truth.nr_regions,
    hydratedRegions: truth.nr_hydrated,
    totalBlocks: truth.metadata_sectors / 8,
    usedBlocks: truth.used_metadata_blocks,
  });
});

test("checkMetadata() finds nothing in a sound image of two levels", async () => {
  const report = await check(twoLevelImage());
  expect(report).toEqual({
    ok: true,
    verdict: "clean",
    fatal: [],
    warnings: [],
    facts: {
      size: (8 * REGIONS - 3) * 512,
      regionSize: 4096,
      regions: REGIONS,
      hydratedRegions: 36,
      hydratedDigest: "9b084a88498f11a9ba1cb9a0c6f0f7fc",
      totalBlocks: 64,
      usedBlocks: 13,
      minimumBlocks: 24,
    },
  });
});

describe("checkMetadata()", () => {
  test("knows what is hydrated only where no bits are lost", async () => {
    const image = twoLevelImage();
    flipBit(image, 9);
    expect((await check(image)).facts).toMatchObject({ hydratedRegions: null, usedBlocks: 13, minimumBlocks: 24 });
  });

  test("does not count bits beyond the last region as hydrated", async () => {
    const image = twoLevelImage();
    image.edit(9, "array", (bytes) => bytes.fill(0xff, 24 + 8 * 508));
    const { facts, warnings } = await check(image);
    expect(facts?.hydratedRegions).toBe(35 + 34); // 34 regions in the last word
    expect(warnings.map(formatFinding)).toEqual([expect.stringContaining("30 bits beyond the last region are set")]);
  });

  test("attributes a block to its own bitmap and does not join runs across bitmaps", async () => {
    const image = buildMetadata({ regionSectors: 8, targetSectors: 128, blockCount: 16400 });
    for (const block of [16318, 16319, 16320, 16399]) image.setCount(block, 1);
    image.edit(1, "index", () => {
      image.set32(1, 24, 16320 - 9);
      image.set32(1, 40, 16320 - 2);
    });
    image.edit(0, "superblock", () => image.set64(0, 52, 11));
    expect((await check(image)).warnings.map(formatFinding)).toEqual([
      "bitmap block 3: blocks 16318 to 16319 are counted in use but nothing refers to them: leaked",
      "bitmap block 4: block 16320 is counted in use but nothing refers to it: leaked",
      "bitmap block 4: block 16399 is counted in use but nothing refers to it: leaked",
    ]);
  });

  test("goes on past unreadable blocks and names each", async () => {
    const image = twoLevelImage();
    const failRead = ({ offset, length }: Operation) =>
      [6, 12].some((block) => offset < (block + 1) * BLOCK && offset + length > block * BLOCK);
    const report = await checkMetadata(new FaultyDevice(deviceOf(image.bytes), { failRead }));
    expect(report.fatal.map(formatFinding)).toEqual([
      'bitset node 12: it cannot be read: Cannot read 4096 bytes at 49152 from "memory": EIO; whether regions 130304 to 162849 are hydrated is unknown',
      'array block 6: it cannot be read: Cannot read 4096 bytes at 24576 from "memory": EIO; whether regions 32576 to 65151 are hydrated is unknown',
    ]);
  });

  test("calls a device blank only where it could be read", async () => {
    const blank = deviceOf(Buffer.alloc(40 * BLOCK));
    const failRead = ({ offset, length }: Operation) => offset < 8 * BLOCK && offset + length > 7 * BLOCK;
    const { fatal } = await checkMetadata(new FaultyDevice(blank, { failRead }));
    expect(fatal.map(formatFinding)).toEqual([
      "superblock: not formatted: the first block is all zero; whether metadata blocks stand behind it is not known: 1 of them cannot be read",
    ]);
  });

  test("lists fifty findings of a kind and counts the rest", async () => {
    const image = buildMetadata({ regionSectors: 8, targetSectors: 8 * 32576 * 120, blockCount: 400 });
    for (let block = 5; block < 125; block++) flipBit(image, block);
    flipBit(image, 3);
    const { fatal } = await check(image);
    expect(fatal).toHaveLength(52);
    expect(fatal.filter(({ structure }) => structure === "bitmap block")).toHaveLength(1);
    expect(formatFinding(fatal[51] as (typeof fatal)[0])).toBe(
      "array block: 70 more findings of this kind are not listed",
    );
  });

  test("stops where its signal says", async () => {
    const controller = new AbortController();
    const image = twoLevelImage();
    class AbortingDevice extends MemoryDevice {
      override async read(offset: number, buffer: Uint8Array): Promise<void> {
        if (offset === 4 * BLOCK) controller.abort(new Error("enough"));
        return super.read(offset, buffer);
      }
    }
    const device = new AbortingDevice({ size: image.bytes.length, content: image.bytes });
    await expect(checkMetadata(device, { signal: controller.signal })).rejects.toThrow("enough");
  });

  test("gives up on a tree of a thousand unusable nodes", async () => {
    // A root of 252 internal nodes with 252 children each, all of which are blank: 63504 reads if all were made.
    const image = buildMetadata({ regionSectors: 8, targetSectors: 128, blockCount: 10 }).block(0);
    const hostile = new MetadataImage(Buffer.concat([image, Buffer.alloc(80000 * BLOCK)]));
    hostile.edit(0, "superblock", () => {
      hostile.set64(0, 44, 80000);
      hostile.set64(0, 180, 8 * 2 ** 31);
      hostile.set64(0, 188, 10);
    });
    writeNode(
      hostile,
      10,
      1,
      Array.from({ length: 252 }, (_, i) => [252 * i, 11 + i]),
    );
    for (let i = 0; i < 252; i++) {
      writeNode(
        hostile,
        11 + i,
        1,
        Array.from({ length: 252 }, (_, j) => [252 * i + j, 1000 + 252 * i + j]),
      );
    }
    let reads = 0;
    class CountingDevice extends MemoryDevice {
      override async read(offset: number, buffer: Uint8Array): Promise<void> {
        reads++;
        return super.read(offset, buffer);
      }
    }
    const report = await checkMetadata(new CountingDevice({ size: hostile.bytes.length, content: hostile.bytes }));
    expect(report.ok).toBe(false);
    expect(reads).toBeLessThan(1500);
  });
});

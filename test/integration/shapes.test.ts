// Sources and destinations of odd shapes: sizes that are no whole number of anything, every region size, destinations that
// are larger or dirty, holes.
import { open, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { allocatedBytes, holds, randomFile, readRange, sparseFile } from "../support/files.ts";
import { contentBytes } from "../support/random.ts";
import { clone, cloneOk, oneJson } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

const MIB = 1024 * 1024;

describe("a source whose size is odd", () => {
  test.each([1, 511, 513, 4097, 65537, 3 * 65536 - 1, 16 * 4096 + 1])(
    "%i bytes become a clone in whole sectors and a copy of exactly that size",
    async (size) => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "disk.img"), size);
      const created = await clone(["create", "disk.img", "copy.img"], { cwd });
      expect(created.code).toBe(0);
      expect(created.stderr).toMatch(/^clone: Warning: .*kernel.*cannot take over/m);
      const sectors = Math.ceil(size / 512);
      expect(await cloneOk(["status", "copy.img", "--dm"], { cwd })).toMatch(new RegExp(`^0 ${sectors} clone 8 `));
      await cloneOk(["hydrate", "copy.img"], { cwd });
      expect((await stat(join(cwd, "copy.img"))).size).toBe(size);
      await cloneOk(["finalize", "copy.img", "--verify"], { cwd });
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
  );

  test("goes on after an interruption at any region", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), 5 * 4096 + 77);
    await cloneOk(["create", "disk.img", "copy.img", "--region-size", "4K"], { cwd });
    const one = ["--limit", "4K", "--threshold", "1", "--batch-size", "1", "--json"];
    const counts = [];
    for (let run = 0; run < 6; run++) {
      const out = oneJson<{ hydratedRegions: number }>(await cloneOk(["hydrate", "copy.img", ...one], { cwd }));
      counts.push(out.hydratedRegions);
    }
    expect(counts).toEqual([1, 2, 3, 4, 5, 6]);
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  });
});

describe("a region size of", () => {
  test.each(["4K", "8K", "64K", "128KiB", "256s", "1M", "1G"])(
    "%s works from create to finalize",
    async (regionSize) => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await sparseFile(join(cwd, "disk.img"), 3 * MIB + 8192, [
        [4096, 4096],
        [MIB - 1, 70_000],
        [3 * MIB, 8192],
      ]);
      await cloneOk(["create", "disk.img", "copy.img", "--region-size", regionSize], { cwd });
      await cloneOk(["hydrate", "copy.img", "--limit", "40K"], { cwd });
      await cloneOk(["hydrate", "copy.img"], { cwd });
      await cloneOk(["check", "copy.img.clone"], { cwd });
      await cloneOk(["finalize", "copy.img", "--verify"], { cwd });
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
  );
});

describe("a destination larger than the source", () => {
  test.each([8 * 65536, 8 * 65536 - 100])("keeps the bytes behind the clone's %i", async (size) => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), size);
    const old = await randomFile(join(cwd, "copy.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img", "--force"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    await cloneOk(["finalize", "copy.img", "--verify"], { cwd });
    bytes.copy(old);
    expect(await holds(join(cwd, "copy.img"), old)).toBe(true);
  });

  test("keeps them also where the source ends in a hole", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseFile(join(cwd, "disk.img"), 8 * 65536 + 512, [[0, 4096]]);
    const old = await randomFile(join(cwd, "copy.img"), MIB);
    await cloneOk(["copy", "disk.img", "copy.img", "--force"], { cwd });
    bytes.copy(old);
    expect(await holds(join(cwd, "copy.img"), old)).toBe(true);
  });
});

describe("holes of the source", () => {
  const SIZE = 64 * MIB;
  const PIECES: [number, number][] = [
    [0, 4096],
    [10 * MIB, 300_000],
    [SIZE - 4096, 4096],
  ];

  test("stay holes in a new copy", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseFile(join(cwd, "disk.img"), SIZE, PIECES);
    await cloneOk(["copy", "disk.img", "copy.img"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    // Regions that hold data in part may be written whole.
    expect(await allocatedBytes(join(cwd, "copy.img"))).toBeLessThanOrEqual(
      (await allocatedBytes(join(cwd, "disk.img"))) + 8 * 65536,
    );
  });

  test("are holes again in a dirty destination, which ends byte-equal", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseFile(join(cwd, "disk.img"), SIZE, PIECES);
    await randomFile(join(cwd, "copy.img"), SIZE);
    await cloneOk(["copy", "disk.img", "copy.img", "--force"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    expect(await allocatedBytes(join(cwd, "copy.img"))).toBeLessThanOrEqual(
      (await allocatedBytes(join(cwd, "disk.img"))) + 8 * 65536,
    );
  });

  test("and zeros written out become holes in a new copy, and with --no-extents too", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await writeFile(join(cwd, "disk.img"), Buffer.alloc(8 * MIB));
    for (const flags of [[], ["--no-extents"]]) {
      const name = `copy${flags.length}.img`;
      await cloneOk(["copy", "disk.img", name, ...flags], { cwd });
      expect(await holds(join(cwd, name), Buffer.alloc(8 * MIB))).toBe(true);
      expect(await allocatedBytes(join(cwd, name))).toBeLessThanOrEqual(65536);
    }
  });

  test("zero what was written to the destination after create, and between two runs", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseFile(join(cwd, "disk.img"), 2 * MIB, [[0, 65536]]);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await writeFile(join(cwd, "copy.img"), contentBytes(2 * MIB), { flag: "r+" });
    await cloneOk(["hydrate", "copy.img", "--limit", "64K"], { cwd });
    const file = await open(join(cwd, "copy.img"), "r+");
    await file.write(contentBytes(65536), 0, 65536, 1.5 * MIB);
    await file.close();
    await cloneOk(["hydrate", "copy.img"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  });
});

test("a source of 1 TiB with little data in it is cloned, and the copy holds the data where it was", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const TIB = 2 ** 40;
  await writeFile(join(cwd, "disk.img"), "");
  await truncate(join(cwd, "disk.img"), TIB);
  const data = await randomFile(join(cwd, "data"), 65536 + 1);
  const offsets = [2 ** 32 - 100, 2 ** 33 + 4096, TIB - data.length];
  const file = await open(join(cwd, "disk.img"), "r+");
  for (const offset of offsets) await file.write(data, 0, data.length, offset);
  await file.close();
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img"], { cwd });
  expect(oneJson(await cloneOk(["status", "copy.img", "--json"], { cwd }))).toMatchObject({
    state: "hydrated",
    regions: 2 ** 24,
    hydratedRegions: 2 ** 24,
  });
  await cloneOk(["finalize", "copy.img"], { cwd });
  for (const offset of offsets) {
    expect(Buffer.compare(await readRange(join(cwd, "copy.img"), offset, data.length), data)).toBe(0);
  }
  expect(await allocatedBytes(join(cwd, "copy.img"))).toBeLessThanOrEqual(2 * MIB);
});

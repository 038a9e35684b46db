// What comes after the end of a clone: finalized once more, copied again, given up.
import { readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { holds, randomFile, snapshot, sparseFile } from "../support/files.ts";
import { readFixtureImage, readFixtureTruth } from "../support/kernel-fixtures.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, scratchDirectory, withReason } from "../support/scratch.ts";
import {
  changeDescriptor,
  clonedTo,
  create,
  finalize,
  hydrate,
  IMAGE_SIZE,
  overwrite,
  REGION_SIZE,
} from "../support/whole-clone.ts";

describe("clone copy onto a finished clone", () => {
  test("is refused where the metadata was kept, and loses neither it nor what was written since", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await clonedTo(place.path, IMAGE_SIZE);
    await finalize(copy, { keepMetadata: true });
    await overwrite(copy, 0, Buffer.alloc(512, "their"));
    const before = await snapshot(place.path);
    expectFailure(await clone(["copy", source, copy]), 2, /that was finished at/, /clone delete/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test.skipIf(noLoopDevices !== undefined)(
    withReason("is refused where the metadata is on a device, which is always kept", noLoopDevices),
    async () => {
      await using place = await scratchDirectory();
      const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
      await randomFile(source, IMAGE_SIZE);
      await sparseFile(join(place.path, "meta.img"), 4 * 1024 * 1024, []);
      await using device = await loopDevice(join(place.path, "meta.img"));
      await create(source, copy, { metadata: device.path });
      await hydrate(device.path);
      await finalize(device.path);
      const before = await readFile(device.path);
      const failed = await clone(["copy", source, copy, "--metadata", device.path]);
      expectFailure(failed, 2, /that was finished at/, /clone delete/);
      expect(await holds(device.path, before)).toBe(true);
    },
  );

  test("goes on where only the removal of the metadata was cut off", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy, source } = await clonedTo(place.path, IMAGE_SIZE);
    const record = { finished: new Date().toISOString(), verified: false, unreadableRegions: 0, metadataKept: false };
    await changeDescriptor(copy, () => ({ finalized: record }));
    expect(await cloneOk(["copy", source, copy])).toMatch(/^Finalized /);
    expect(Object.keys(await snapshot(place.path))).toEqual(["copy.img", "disk.img"]);
    expect(await holds(copy, bytes)).toBe(true);
  });

  test("is refused with another region size than it was begun with", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await clonedTo(place.path, REGION_SIZE);
    const before = await snapshot(place.path);
    const failed = await clone(["copy", source, copy, "--region-size", "4K"]);
    expectFailure(failed, 2, /regions of 4096 bytes: it was created with 65536/);
    expect(await snapshot(place.path)).toEqual(before);
  });
});

test("clone finalize --verify compares also what was finalized before, and keeps the metadata where it differs", async () => {
  await using place = await scratchDirectory();
  const { bytes, copy } = await clonedTo(place.path, IMAGE_SIZE);
  await finalize(copy, { keepMetadata: true });
  await overwrite(copy, 3 * REGION_SIZE, Buffer.alloc(512, "damage"));
  const before = await snapshot(place.path);
  expectFailure(await clone(["finalize", copy, "--verify"]), 1, /1 region differs from the source/);
  expect(await snapshot(place.path)).toEqual(before);
  await overwrite(copy, 3 * REGION_SIZE, bytes.subarray(3 * REGION_SIZE, 3 * REGION_SIZE + 512));
  await cloneOk(["finalize", copy, "--verify"]);
  expect(Object.keys(await snapshot(place.path))).toEqual(["copy.img", "disk.img"]);
});

test("metadata that has no room for a record says so when it is finalized and kept", async () => {
  await using place = await scratchDirectory();
  const [meta, copy] = [join(place.path, "meta"), join(place.path, "copy.img")];
  await writeFile(meta, readFixtureImage("full-64m-4k"));
  await sparseFile(copy, readFixtureTruth("full-64m-4k").target_size * 512, []);
  const done = await clone(["finalize", meta, "--destination", copy, "--keep-metadata"]);
  expect(done.stderr).toMatch(/Warning: "[^"]*meta" has no room for a record: its status will not say .* finalized/);
  expect(done.code).toBe(0);
  expect(oneJson(await cloneOk(["status", meta, "--json"]))).toMatchObject({ state: "hydrated" });
});

test("clone delete removes truncated metadata", async () => {
  await using place = await scratchDirectory();
  const { copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
  await truncate(`${copy}.clone`, 100_000);
  await cloneOk(["delete", copy, "--yes"]);
  expect(Object.keys(await snapshot(place.path))).toEqual(["copy.img", "disk.img"]);
});

// A source must stay what it was when the clone was created, and be a source: not the half of another copy.
import { rename, stat, utimes } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { FileDevice } from "../../src/device/file-device.ts";
import { acquireLock } from "../../src/device/lock.ts";
import { holds, randomFile, snapshot } from "../support/files.ts";
import { clone, cloneOk, eventually, expectFailure, startClone } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, scratchDirectory, withReason } from "../support/scratch.ts";
import { clonedTo, create, descriptorOf, hydrate, IMAGE_SIZE, overwrite } from "../support/whole-clone.ts";

test("an unfinished clone is refused as a source, a fully hydrated one is taken", async () => {
  await using place = await scratchDirectory();
  const { bytes, copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
  const second = join(place.path, "second.img");
  const before = await snapshot(place.path);
  for (const command of ["create", "copy"]) {
    const failed = await clone([command, copy, second]);
    expectFailure(failed, 2, /it is itself an unfinished clone, 8 of its 16 regions are missing/, /clone hydrate/);
    expect(await snapshot(place.path)).toEqual(before);
  }
  await hydrate(copy);
  await cloneOk(["copy", copy, second]);
  expect(await holds(second, bytes)).toBe(true);
});

test("an unfinished clone is refused as another source for a clone that there is, too", async () => {
  await using place = await scratchDirectory();
  const { copy, source } = await clonedTo(place.path, IMAGE_SIZE / 2);
  const second = join(place.path, "second.img");
  await create(source, second);
  await hydrate(second, { limit: IMAGE_SIZE / 4 });
  const before = await snapshot(place.path);
  const other = ["--source", copy, "--accept-changed-source"];
  for (const args of [
    ["hydrate", second, ...other],
    ["serve", second, "--socket", join(place.path, "s"), ...other],
  ]) {
    expectFailure(await clone(args), 2, /it is itself an unfinished clone, 8 of its 16 regions are missing/);
    expect(await snapshot(place.path)).toEqual(before);
  }
  await hydrate(copy);
  await cloneOk(["hydrate", second, ...other]);
});

test.skipIf(noLoopDevices !== undefined)(
  withReason("an unfinished clone is refused as a source behind a loop device, too", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
    const second = join(place.path, "second.img");
    {
      await using device = await loopDevice(copy);
      const failed = await clone(["copy", device.path, second]);
      expectFailure(failed, 2, /copy\.img", which it is read from, is itself an unfinished clone, 8 of its 16 regions/);
    }
    await hydrate(copy);
    await using device = await loopDevice(copy);
    await cloneOk(["copy", device.path, second]);
    expect(await holds(second, bytes)).toBe(true);
  },
);

test("a source that another clone is being hydrated to is in use", async () => {
  await using place = await scratchDirectory();
  const source = join(place.path, "disk.img");
  await randomFile(source, IMAGE_SIZE);
  await using device = await FileDevice.open(source, { access: "read-write" });
  await using _lock = await acquireLock(device);
  const before = await snapshot(place.path);
  const failed = await clone(["create", source, join(place.path, "copy.img")]);
  expectFailure(failed, 4, new RegExp(`process ${process.pid} .* is writing to it`));
  expect(await snapshot(place.path)).toEqual(before);
});

describe("--accept-changed-source", () => {
  test("does not accept what changes while it copies", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy, source } = await clonedTo(place.path, 0);
    await utimes(source, new Date(), new Date()); // changed since create: that is what is accepted
    const args = ["hydrate", copy, "--accept-changed-source", "--rate", "256K", "--progress", "none"];
    const running = startClone(args);
    await eventually("something was copied", async () => (await stat(copy)).blocks > 0);
    await overwrite(source, IMAGE_SIZE / 2, Buffer.alloc(512, "new"));
    const ended = await running.done;
    expectFailure(ended, 1, /disk\.img" as the source: it has changed since/, /--accept-changed-source/);
    expect(await holds(copy, bytes)).toBe(false);
  });

  test("is forgotten where the run could not begin", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await clonedTo(place.path, 0);
    await utimes(source, new Date(1e12), new Date(1e12));
    await rename(copy, `${copy}.away`);
    const before = await snapshot(place.path);
    expectFailure(await clone(["hydrate", `${copy}.clone`, "--accept-changed-source"]), 1, /no such file/);
    expect(await snapshot(place.path)).toEqual(before);
    await rename(`${copy}.away`, copy);
    expectFailure(await clone(["hydrate", copy]), 1, /it has changed since the clone was created/);
    expect(await descriptorOf(copy)).not.toHaveProperty("acceptedChange");
  });
});

test.skipIf(noLoopDevices !== undefined)(
  withReason("a block device that is written to while it is copied is refused as a source", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    const [backing, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
    await randomFile(backing, IMAGE_SIZE);
    await using device = await loopDevice(backing);
    await create(device.path, copy);
    const running = startClone(["hydrate", copy, "--rate", "256K", "--progress", "none"]);
    await eventually("something was copied", async () => (await stat(copy)).blocks > 0);
    await overwrite(device.path, IMAGE_SIZE / 2 + 40_000, Buffer.alloc(4096, "new")); // where no sample is taken
    expectFailure(await running.done, 1, /as the source: it has changed .* it has been written to/);
  },
);

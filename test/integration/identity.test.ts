// A clone believes of its devices only what it can see: one that was replaced, restored, or written to by somebody else is
// noticed before anything is copied over it, and before the copy is said to stand alone.
import {
  copyFile,
  mkdir,
  open,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { FileDevice } from "../../src/device/file-device.ts";
import { acquireLock } from "../../src/device/lock.ts";
import { holds, randomFile, snapshot, sparseFile } from "../support/files.ts";
import { readFixtureImage, readFixtureTruth } from "../support/kernel-fixtures.ts";
import { CLONE, clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { hasProgram, loopDevice, noLoopDevices, run, scratchDirectory, withReason } from "../support/scratch.ts";
import { changeDescriptor, create, descriptorOf, finalize, hydrate, REGION_SIZE } from "../support/whole-clone.ts";

const REGIONS = 16;
const SIZE = REGIONS * REGION_SIZE;
const HALF = SIZE / 2;

/** Makes disk.img and a clone of it to copy.img, `hydrated` bytes of which are copied. */
async function clonedTo(cwd: string, hydrated: number): Promise<{ bytes: Buffer; copy: string; source: string }> {
  const [source, copy] = [join(cwd, "disk.img"), join(cwd, "copy.img")];
  const bytes = await randomFile(source, SIZE);
  await create(source, copy);
  if (hydrated > 0) await hydrate(copy, { limit: hydrated >= SIZE ? null : hydrated });
  return { bytes, copy, source };
}

/** Writes into a file or device without truncating it. */
async function overwrite(path: string, offset: number, bytes: Buffer): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.write(bytes, 0, bytes.length, offset);
    await file.sync();
  } finally {
    await file.close();
  }
}

/**
 * Removes a clone's destination and makes it anew, with the inode number of the old one: ext4 gives that at once, other
 * file systems later, so the clone is told that it was this number all the time.
 */
async function madeAgainWithTheSameInode(copy: string, { birthtime }: { birthtime: boolean }): Promise<void> {
  await rm(copy);
  await writeFile(copy, "");
  await truncate(copy, SIZE);
  const inode = String((await stat(copy, { bigint: true })).ino);
  await changeDescriptor(`${copy}.clone`, ({ destination }) => {
    const { birthtimeNs, ...fingerprint } = { ...destination.fingerprint, inode };
    return {
      destination: {
        ...destination,
        fingerprint: birthtime && birthtimeNs !== undefined ? { ...fingerprint, birthtimeNs } : fingerprint,
      },
    };
  });
}

describe("a destination that was removed and made again with the same inode number", () => {
  test.each([
    ["where the file system knows when a file was made", { birthtime: true }],
    ["where it does not", { birthtime: false }],
  ])("is refused by hydrate, %s", async (_, how) => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, HALF);
    await madeAgainWithTheSameInode(copy, how);
    const before = await snapshot(place.path);
    const failed = await clone(["hydrate", copy]);
    expectFailure(failed, 1, /copy\.img" as the destination: .*(another file|region \d+ .* differs from the source)/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test.each([
    ["where the file system knows when a file was made", { birthtime: true }],
    ["where it does not", { birthtime: false }],
  ])("is not finalized, %s", async (_, how) => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, SIZE);
    await madeAgainWithTheSameInode(copy, how);
    const before = await snapshot(place.path);
    expectFailure(await clone(["finalize", copy]), 1, /another file|somebody else has written/);
    expect(await snapshot(place.path)).toEqual(before);
  });
});

describe("a destination that was truncated and extended again", () => {
  test("is refused by hydrate where hydrated regions are gone", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, HALF);
    await truncate(copy, REGION_SIZE);
    await truncate(copy, SIZE);
    const before = await snapshot(place.path);
    expectFailure(await clone(["hydrate", copy]), 1, /region \d+ is called hydrated, but differs from the source/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("is not finalized, and with --verify neither", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, SIZE);
    await truncate(copy, SIZE - REGION_SIZE);
    await truncate(copy, SIZE);
    const before = await snapshot(place.path);
    expectFailure(await clone(["finalize", copy]), 1, /somebody else has written to .*copy\.img"/, /--verify/);
    expectFailure(await clone(["finalize", copy, "--verify"]), 1, /1 region differs from the source/);
    expect(await snapshot(place.path)).toEqual(before);
  });
});

describe("a destination that somebody else has written to", () => {
  test("is not finalized; --verify decides", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, SIZE);
    await overwrite(copy, 5 * REGION_SIZE, Buffer.alloc(512, "their"));
    const before = await snapshot(place.path);
    expectFailure(await clone(["finalize", copy]), 1, /somebody else has written to .*copy\.img"/, /--verify/);
    expectFailure(await clone(["finalize", copy, "--verify"]), 1, /1 region differs from the source/, /clone verify/);
    expect(await snapshot(place.path)).toEqual(before);

    await overwrite(copy, 5 * REGION_SIZE, bytes.subarray(5 * REGION_SIZE, 5 * REGION_SIZE + 512)); // undone
    expectFailure(await clone(["finalize", copy]), 1, /somebody else has written/);
    await cloneOk(["finalize", copy, "--verify"]);
    expect(Object.keys(await snapshot(place.path))).toEqual(["copy.img", "disk.img"]);
  });

  test("is not finalized after one more hydrate either, which found its samples right and warned", async () => {
    await using place = await scratchDirectory();
    const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
    await randomFile(source, SIZE);
    await create(source, copy, { regionSize: 4096 });
    await hydrate(copy);
    await overwrite(copy, 4096, Buffer.alloc(512, "their")); // region 1 of 256 is no sample
    const more = await clone(["hydrate", copy]);
    expect(more).toMatchObject({ code: 0, stderr: expect.stringMatching(/Warning: Somebody else has written to/) });
    expectFailure(await clone(["finalize", copy]), 1, /somebody else has written/, /--verify/);
    expectFailure(await clone(["finalize", copy, "--verify"]), 1, /1 region differs/);
  });

  test("is refused by hydrate after a run that was cut off, where what is there is not what was copied", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, HALF);
    await changeDescriptor(copy, ({ destination }) => ({ destination: { ...destination, settled: null } }));
    await overwrite(copy, 0, Buffer.alloc(512, "their"));
    const before = await snapshot(place.path);
    expectFailure(await clone(["hydrate", copy]), 1, /region 0 is called hydrated, but differs/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("is gone on with after a run that was cut off, where what was copied is there", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, HALF);
    await changeDescriptor(copy, ({ destination }) => ({ destination: { ...destination, settled: null } }));
    await cloneOk(["hydrate", copy]);
    expect(await holds(copy, bytes)).toBe(true);
  });
});

describe("--destination", () => {
  test("does not overwrite another file once the clone's own is gone and regions were copied to that", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, 4 * REGION_SIZE);
    await rm(copy);
    const precious = join(place.path, "precious.img");
    await randomFile(precious, SIZE);
    const before = await snapshot(place.path);
    const failed = await clone(["hydrate", `${copy}.clone`, "--destination", precious]);
    expectFailure(failed, 1, /precious\.img" as the destination: region 0 is called hydrated, but differs/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("does not overwrite another file's data where nothing was copied yet, but takes an empty one", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, 0);
    await rm(copy);
    const precious = join(place.path, "precious.img");
    await sparseFile(precious, SIZE, [[9 * REGION_SIZE, 1]]);
    const before = await snapshot(place.path);
    const failed = await clone(["hydrate", `${copy}.clone`, "--destination", precious]);
    expectFailure(failed, 1, /precious\.img" as the destination: .* holds data now/);
    expect(await snapshot(place.path)).toEqual(before);

    const empty = join(place.path, "empty.img");
    await sparseFile(empty, SIZE, []);
    const taken = await clone(["hydrate", `${copy}.clone`, "--destination", empty]);
    expect(taken.stderr).toMatch(/Warning: "[^"]*empty\.img" is taken for the destination on your word/);
    expect(taken.code).toBe(0);
    expect(await holds(empty, bytes)).toBe(true);
  });

  test("takes a copy of the clone's own, which holds what was hydrated", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, HALF);
    const restored = join(place.path, "restored.img");
    await copyFile(copy, restored);
    await rm(copy);
    await cloneOk(["hydrate", `${copy}.clone`, "--destination", restored]);
    expect(await holds(restored, bytes)).toBe(true);
    await cloneOk(["finalize", `${copy}.clone`]);
  });
});

test("a clone whose destination and metadata were moved together goes on under the new name", async () => {
  await using place = await scratchDirectory();
  const { bytes, copy } = await clonedTo(place.path, HALF);
  const moved = join(place.path, "elsewhere", "moved.img");
  await mkdir(dirname(moved));
  await rename(copy, moved);
  await rename(`${copy}.clone`, `${moved}.clone`);
  const hydrated = await clone(["hydrate", moved]);
  expect(hydrated).toMatchObject({ code: 0, stderr: expect.not.stringContaining("Warning") });
  expect((await descriptorOf(moved)).destination.uri).toBe(`file://${moved}`);
  await cloneOk(["finalize", moved]);
  expect(await holds(moved, bytes)).toBe(true);
});

describe.skipIf(noLoopDevices !== undefined)(withReason("a block destination without a serial", noLoopDevices), () => {
  test("is refused once another disk has its name", async () => {
    await using place = await scratchDirectory();
    const [source, meta] = [join(place.path, "disk.img"), join(place.path, "meta")];
    const bytes = await randomFile(source, SIZE);
    await sparseFile(join(place.path, "own.img"), SIZE, []);
    const precious = await randomFile(join(place.path, "precious.img"), SIZE);
    await using device = await loopDevice(join(place.path, "own.img"));
    await create(source, device.path, { metadata: meta });
    await hydrate(meta, { limit: HALF });
    await run("losetup", "--detach", device.path);
    await run("losetup", device.path, join(place.path, "precious.img"));
    const before = await readFile(meta);
    expectFailure(await clone(["hydrate", meta]), 1, /region 0 is called hydrated, but differs from the source/);
    expect(await holds(meta, before)).toBe(true);
    expect(await holds(join(place.path, "precious.img"), precious)).toBe(true);

    await run("losetup", "--detach", device.path);
    await run("losetup", device.path, join(place.path, "own.img"));
    await cloneOk(["hydrate", meta]);
    expect(await holds(device.path, bytes)).toBe(true);
    await cloneOk(["finalize", meta]);
  });

  test("is not finalized once another disk has its name", async () => {
    await using place = await scratchDirectory();
    const [source, meta] = [join(place.path, "disk.img"), join(place.path, "meta")];
    await randomFile(source, SIZE);
    await sparseFile(join(place.path, "own.img"), SIZE, []);
    await sparseFile(join(place.path, "other.img"), SIZE, []);
    await using device = await loopDevice(join(place.path, "own.img"));
    await create(source, device.path, { metadata: meta });
    await hydrate(meta);
    await run("losetup", "--detach", device.path);
    await run("losetup", device.path, join(place.path, "other.img"));
    expectFailure(await clone(["finalize", meta]), 1, /region 0 is called hydrated, but differs from the source/);
    expect((await descriptorOf(meta)).finalized).toBeNull();
  });

  test("that holds data before the first hydrate is refused, unless create was told to overwrite data", async () => {
    await using place = await scratchDirectory();
    const source = join(place.path, "disk.img");
    const bytes = await randomFile(source, SIZE);
    await sparseFile(join(place.path, "own.img"), SIZE, []);
    await using device = await loopDevice(join(place.path, "own.img"));
    const [meta, forced] = [join(place.path, "meta"), join(place.path, "forced")];
    await create(source, device.path, { metadata: meta });
    await create(source, device.path, { metadata: forced, force: true });
    await overwrite(device.path, SIZE - 512, Buffer.alloc(512, "precious"));
    const before = await readFile(device.path);
    expectFailure(await clone(["hydrate", meta]), 1, /it was empty .* and holds data now/, /create --force/);
    expect(await holds(device.path, before)).toBe(true);
    await cloneOk(["hydrate", forced]);
    expect(await holds(device.path, bytes)).toBe(true);
  });
});

describe("a second clone of one destination", () => {
  test("is refused where the first one's metadata is beside it, --metadata and --force or not", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, REGION_SIZE);
    const other = join(place.path, "other.img");
    await randomFile(other, SIZE);
    const link = join(place.path, "link.img");
    await symlink("copy.img", link);
    const before = await snapshot(place.path);
    const message = /it belongs to the unfinished clone ".*copy\.img\.clone"/;
    const metadata = join(place.path, "meta");
    expectFailure(await clone(["create", other, copy, "--metadata", metadata, "--force"]), 2, message, /clone delete/);
    expectFailure(await clone(["create", other, link, "--force"]), 2, message, /clone delete/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("is refused while the first has copied nothing yet", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await clonedTo(place.path, 0);
    const before = await snapshot(place.path);
    const failed = await clone(["create", source, copy, "--metadata", join(place.path, "meta")]);
    expectFailure(failed, 2, /it belongs to the unfinished clone/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("is refused under its own name where the first was made through a symbolic link", async () => {
    await using place = await scratchDirectory();
    const [source, copy, link] = ["disk.img", "copy.img", "link.img"].map((name) => join(place.path, name)) as [
      string,
      string,
      string,
    ];
    await randomFile(source, SIZE);
    await sparseFile(copy, SIZE, []);
    await symlink("copy.img", link);
    await create(source, link);
    const before = await snapshot(place.path);
    expectFailure(await clone(["create", source, copy]), 2, /it belongs to the unfinished clone/);
    expect(await snapshot(place.path)).toEqual(before);
  });
});

test("a name that is metadata and the destination of a clone is refused as ambiguous, by every command", async () => {
  await using place = await scratchDirectory();
  const { copy } = await clonedTo(place.path, 0);
  const [image, backup] = [join(place.path, "meta.img"), join(place.path, "backup.img")];
  await copyFile(`${copy}.clone`, image);
  await create(image, backup);
  await hydrate(`${backup}.clone`);
  const before = await snapshot(place.path);
  for (const args of [["hydrate"], ["finalize"], ["delete", "--yes"]]) {
    expectFailure(await clone([...args, backup]), 2, /which clone ".*backup\.img" means/, /metadata/);
  }
  expect(await snapshot(place.path)).toEqual(before);
  await cloneOk(["finalize", `${backup}.clone`]);
  expect(await holds(backup, await readFile(image))).toBe(true);
});

describe("clone copy onto a finished clone", () => {
  test("is refused where the metadata was kept, and loses neither it nor what was written since", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await clonedTo(place.path, SIZE);
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
      await randomFile(source, SIZE);
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
    const { bytes, copy, source } = await clonedTo(place.path, SIZE);
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
  const { bytes, copy } = await clonedTo(place.path, SIZE);
  await finalize(copy, { keepMetadata: true });
  await overwrite(copy, 3 * REGION_SIZE, Buffer.alloc(512, "damage"));
  const before = await snapshot(place.path);
  expectFailure(await clone(["finalize", copy, "--verify"]), 1, /1 region differs from the source/);
  expect(await snapshot(place.path)).toEqual(before);
  await overwrite(copy, 3 * REGION_SIZE, bytes.subarray(3 * REGION_SIZE, 3 * REGION_SIZE + 512));
  await cloneOk(["finalize", copy, "--verify"]);
  expect(Object.keys(await snapshot(place.path))).toEqual(["copy.img", "disk.img"]);
});

test("an unfinished clone is refused as a source, a fully hydrated one is taken", async () => {
  await using place = await scratchDirectory();
  const { bytes, copy } = await clonedTo(place.path, HALF);
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

test("a source that another clone is being hydrated to is in use", async () => {
  await using place = await scratchDirectory();
  const source = join(place.path, "disk.img");
  await randomFile(source, SIZE);
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
    await overwrite(source, HALF, Buffer.alloc(512, "new"));
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
    await randomFile(backing, SIZE);
    await using device = await loopDevice(backing);
    await create(device.path, copy);
    const running = startClone(["hydrate", copy, "--rate", "256K", "--progress", "none"]);
    await eventually("something was copied", async () => (await stat(copy)).blocks > 0);
    await overwrite(device.path, HALF + 40_000, Buffer.alloc(4096, "new")); // where no sample is taken
    expectFailure(await running.done, 1, /as the source: it has changed .* it has been written to/);
  },
);

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

describe("a destination that is in use", () => {
  test("by another clone is neither verified nor put into a table", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, SIZE);
    await using device = await FileDevice.open(copy, { access: "read-write" });
    await using _lock = await acquireLock(device);
    for (const args of [["verify"], ["finalize", "--table"]]) {
      expectFailure(
        await clone([...args, copy]),
        4,
        new RegExp(`copy\\.img": it is in use by process ${process.pid} `),
      );
    }
  });

  test.skipIf(noLoopDevices !== undefined)(
    withReason("by a loop device that can write is not verified", noLoopDevices),
    async () => {
      await using place = await scratchDirectory();
      const { copy } = await clonedTo(place.path, SIZE);
      await using device = await loopDevice(copy);
      expectFailure(await clone(["verify", copy]), 4, new RegExp(`in use by loop device ${device.path}`));
    },
  );
});

describe("standard error", () => {
  test("that is full or not read any more does not end a hydration", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, 0);
    const hydrating = `"${process.execPath}" "${CLONE}" hydrate "${copy}" --progress json --rate 1M`;
    await run("sh", "-c", `${hydrating} --limit 512K 2>/dev/full`);
    const running = startClone(["hydrate", copy, "--progress", "json", "--rate", "1M"]);
    running.child.stderr?.destroy();
    expect(await running.done).toMatchObject({ code: 0, signal: null });
    expect(await holds(copy, bytes)).toBe(true);
  });
});

const noUnshare = noLoopDevices ?? (hasProgram("unshare") ? undefined : "needs unshare");
test.skipIf(noUnshare !== undefined)(withReason("clone create works where there is no /sys", noUnshare), async () => {
  await using place = await scratchDirectory();
  const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
  const bytes = await randomFile(source, SIZE);
  const creating = `umount -l /sys && exec "${process.execPath}" "${CLONE}" copy "${source}" "${copy}"`;
  await run("unshare", "--mount", "sh", "-c", creating);
  expect(await holds(copy, bytes)).toBe(true);
});

test("clone delete removes truncated metadata", async () => {
  await using place = await scratchDirectory();
  const { copy } = await clonedTo(place.path, HALF);
  await truncate(`${copy}.clone`, 100_000);
  await cloneOk(["delete", copy, "--yes"]);
  expect(Object.keys(await snapshot(place.path))).toEqual(["copy.img", "disk.img"]);
});

test("a destination whose metadata is elsewhere is not advised to be cloned to anew", async () => {
  await using place = await scratchDirectory();
  const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
  await randomFile(source, SIZE);
  await create(source, copy, { metadata: join(place.path, "meta") });
  const failed = await clone(["hydrate", copy]);
  expectFailure(failed, 3, /copy\.img/, /There is no ".*copy\.img\.clone" either: .* --metadata/);
  expect(failed.stderr).not.toMatch(/[Cc]reate/);
});

test("SIGUSR1 opens no debugger, whichever command runs", async () => {
  await using place = await scratchDirectory();
  const { copy } = await clonedTo(place.path, HALF);
  const watching = startClone(["status", copy, "--watch", "1"]);
  await eventually("the status is shown", () => watching.output().stdout !== "");
  const before = watching.output().stdout.length;
  watching.child.kill("SIGUSR1");
  await eventually("it is shown again", () => watching.output().stdout.length > before);
  watching.child.kill("SIGTERM");
  const { stderr } = await watching.done;
  expect(stderr).not.toMatch(/Debugger/);
});

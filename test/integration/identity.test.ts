// A clone believes of its destination only what it can see: one that was replaced, restored, or written to by somebody else
// is noticed before anything is copied over it, and before the copy is said to stand alone.
import { copyFile, mkdir, readFile, rename, rm, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { type Descriptor, decodeDescriptor } from "../../src/metadata/descriptor-json.ts";
import { decodeSlot, SLOT_BYTES } from "../../src/metadata/descriptor-slot.ts";
import { holds, randomFile, snapshot, sparseFile } from "../support/files.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, scratchDirectory, withReason } from "../support/scratch.ts";
import { startServe } from "../support/serve.ts";
import {
  changeDescriptor,
  clonedTo,
  create,
  descriptorOf,
  hydrate,
  IMAGE_SIZE,
  overwrite,
  REGION_SIZE,
} from "../support/whole-clone.ts";

/**
 * Removes a clone's destination and makes it anew, with the inode number of the old one: ext4 gives that at once, other
 * file systems later, so the clone is told that it was this number all the time.
 */
async function madeAgainWithTheSameInode(copy: string, { birthtime }: { birthtime: boolean }): Promise<void> {
  await rm(copy);
  await writeFile(copy, "");
  await truncate(copy, IMAGE_SIZE);
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
    ["the metadata knows when it was made", { birthtime: true }, /another file/],
    ["the metadata does not", { birthtime: false }, /the metadata does not say enough to know it again/],
  ] as const)("is refused by hydrate where %s", async (_, how, why) => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
    await madeAgainWithTheSameInode(copy, how);
    const before = await snapshot(place.path);
    const failed = await clone(["hydrate", copy]);
    expectFailure(failed, 1, /copy\.img" as the destination: /);
    expect(failed.stderr).toMatch(why);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test.each([
    ["the metadata knows when it was made", { birthtime: true }, /another file/],
    ["the metadata does not", { birthtime: false }, /the metadata does not say enough to know it again/],
  ] as const)("is not finalized where %s", async (_, how, why) => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, IMAGE_SIZE);
    await madeAgainWithTheSameInode(copy, how);
    const before = await snapshot(place.path);
    expectFailure(await clone(["finalize", copy]), 1, why);
    expect(await snapshot(place.path)).toEqual(before);
  });
});

describe("a destination that was truncated and extended again", () => {
  test("is refused by hydrate where hydrated regions are gone", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
    await truncate(copy, REGION_SIZE);
    await truncate(copy, IMAGE_SIZE);
    const before = await snapshot(place.path);
    expectFailure(await clone(["hydrate", copy]), 1, /region \d+ is called hydrated, but differs from the source/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("is not finalized, and with --verify neither", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, IMAGE_SIZE);
    await truncate(copy, IMAGE_SIZE - REGION_SIZE);
    await truncate(copy, IMAGE_SIZE);
    const before = await snapshot(place.path);
    expectFailure(await clone(["finalize", copy]), 1, /somebody else has written to .*copy\.img"/, /--verify/);
    expectFailure(await clone(["finalize", copy, "--verify"]), 1, /1 region differs from the source/);
    expect(await snapshot(place.path)).toEqual(before);
  });
});

describe("a destination that somebody else has written to", () => {
  test("is not finalized; --verify decides", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, IMAGE_SIZE);
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
    await randomFile(source, IMAGE_SIZE);
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
    const { copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
    await changeDescriptor(copy, ({ destination }) => ({ destination: { ...destination, settled: null } }));
    await overwrite(copy, 0, Buffer.alloc(512, "their"));
    const before = await snapshot(place.path);
    expectFailure(await clone(["hydrate", copy]), 1, /region \d+ is called hydrated, but differs/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("is gone on with after a run that was cut off, where what was copied is there", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
    await changeDescriptor(copy, ({ destination }) => ({ destination: { ...destination, settled: null } }));
    await cloneOk(["hydrate", copy]);
    expect(await holds(copy, bytes)).toBe(true);
  });
});

// Where the newer slot of the descriptor is lost, the older one must not say that nobody wrote since it was left.
test("that a clone is served is recorded after what it was left with is taken back", async () => {
  await using place = await scratchDirectory();
  const { copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
  expect((await slotsOf(`${copy}.clone`))[0]).toMatchObject({ served: false, destination: { settled: {} } });
  await using server = await startServe({ clone: copy, cwd: place.path, args: ["--no-hydrate"] });
  const slots = [
    { served: true, destination: { settled: null } },
    { served: false, destination: { settled: null } },
  ];
  expect(await slotsOf(`${copy}.clone`)).toMatchObject(slots);
  await server.kill9();
  expect(await slotsOf(`${copy}.clone`)).toMatchObject(slots);
});

/** Both slots of a descriptor, the newer one first. */
async function slotsOf(path: string): Promise<Descriptor[]> {
  const bytes = await readFile(path);
  const metadata = await CloneMetadata.open(new MemoryDevice({ size: bytes.length, content: bytes }), {
    readOnly: true,
  });
  const place = { geometry: metadata.geometry, blockCount: metadata.totalBlocks };
  return [0, 1]
    .map((slot) => decodeSlot(place, bytes.subarray(bytes.length - (2 - slot) * SLOT_BYTES).subarray(0, SLOT_BYTES)))
    .filter((slot) => slot.kind === "valid")
    .sort((a, b) => b.sequence - a.sequence)
    .map(({ payload }) => decodeDescriptor(payload, metadata.geometry));
}

describe("--destination", () => {
  test("does not overwrite another file once the clone's own is gone and regions were copied to that", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, 4 * REGION_SIZE);
    await rm(copy);
    const precious = join(place.path, "precious.img");
    await randomFile(precious, IMAGE_SIZE);
    const before = await snapshot(place.path);
    const failed = await clone(["hydrate", `${copy}.clone`, "--destination", precious]);
    expectFailure(failed, 1, /precious\.img" as the destination: region \d+ is called hydrated, but differs/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("does not overwrite another file's data where nothing was copied yet, but takes an empty one", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, 0);
    await rm(copy);
    const precious = join(place.path, "precious.img");
    await sparseFile(precious, IMAGE_SIZE, [[9 * REGION_SIZE, 1]]);
    const before = await snapshot(place.path);
    const failed = await clone(["hydrate", `${copy}.clone`, "--destination", precious]);
    expectFailure(failed, 1, /precious\.img" as the destination: .* holds data now/);
    expect(await snapshot(place.path)).toEqual(before);

    const empty = join(place.path, "empty.img");
    await sparseFile(empty, IMAGE_SIZE, []);
    const taken = await clone(["hydrate", `${copy}.clone`, "--destination", empty]);
    expect(taken.stderr).toMatch(/Warning: "[^"]*empty\.img" is taken for the destination on your word/);
    expect(taken.code).toBe(0);
    expect(await holds(empty, bytes)).toBe(true);
  });

  test("takes a copy of the clone's own, which holds what was hydrated", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
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
  const { bytes, copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
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

/**
 * Has the name of a disk, a link as udev makes them, lead to another one. The number of a loop device is no such name: once it is
 * detached, whoever looks for a free one may get it.
 */
async function pointTo(device: string, name: string): Promise<void> {
  await rm(name);
  await symlink(device, name);
}

describe.skipIf(noLoopDevices !== undefined)(withReason("a block destination without a serial", noLoopDevices), () => {
  test("is refused once another disk has its name", async () => {
    await using place = await scratchDirectory();
    const [source, meta] = [join(place.path, "disk.img"), join(place.path, "meta")];
    const bytes = await randomFile(source, IMAGE_SIZE);
    await sparseFile(join(place.path, "own.img"), IMAGE_SIZE, []);
    const precious = await randomFile(join(place.path, "precious.img"), IMAGE_SIZE);
    await using device = await loopDevice(join(place.path, "own.img"));
    await using other = await loopDevice(join(place.path, "precious.img"));
    const name = join(place.path, "name");
    await symlink(device.path, name);
    await create(source, name, { metadata: meta });
    await hydrate(meta, { limit: IMAGE_SIZE / 2 });
    await pointTo(other.path, name);
    const before = await readFile(meta);
    expectFailure(await clone(["hydrate", meta]), 1, /region \d+ is called hydrated, but differs from the source/);
    expect(await holds(meta, before)).toBe(true);
    expect(await holds(join(place.path, "precious.img"), precious)).toBe(true);

    await pointTo(device.path, name);
    await cloneOk(["hydrate", meta]);
    expect(await holds(device.path, bytes)).toBe(true);
    await cloneOk(["finalize", meta]);
  });

  test("is not finalized once another disk has its name", async () => {
    await using place = await scratchDirectory();
    const [source, meta] = [join(place.path, "disk.img"), join(place.path, "meta")];
    await randomFile(source, IMAGE_SIZE);
    await sparseFile(join(place.path, "own.img"), IMAGE_SIZE, []);
    await sparseFile(join(place.path, "other.img"), IMAGE_SIZE, []);
    await using device = await loopDevice(join(place.path, "own.img"));
    await using other = await loopDevice(join(place.path, "other.img"));
    const name = join(place.path, "name");
    await symlink(device.path, name);
    await create(source, name, { metadata: meta });
    await hydrate(meta);
    await pointTo(other.path, name);
    expectFailure(await clone(["finalize", meta]), 1, /region \d+ is called hydrated, but differs from the source/);
    expect((await descriptorOf(meta)).finalized).toBeNull();
  });

  test("that holds data before the first hydrate is refused, unless create was told to overwrite data", async () => {
    await using place = await scratchDirectory();
    const source = join(place.path, "disk.img");
    const bytes = await randomFile(source, IMAGE_SIZE);
    await sparseFile(join(place.path, "own.img"), IMAGE_SIZE, []);
    await using device = await loopDevice(join(place.path, "own.img"));
    const [meta, forced] = [join(place.path, "meta"), join(place.path, "forced")];
    await create(source, device.path, { metadata: meta });
    await create(source, device.path, { metadata: forced, force: true });
    await overwrite(device.path, IMAGE_SIZE - 512, Buffer.alloc(512, "precious"));
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
    await randomFile(other, IMAGE_SIZE);
    const link = join(place.path, "link.img");
    await symlink("copy.img", link);
    const before = await snapshot(place.path);
    const message = /it belongs to the unfinished clone ".*copy\.img\.clone"/;
    const metadata = join(place.path, "meta");
    expectFailure(await clone(["create", other, copy, "--metadata", metadata, "--force"]), 2, message, /clone delete/);
    expectFailure(await clone(["create", other, link, "--force"]), 2, /metadata stands there already/, /clone delete/);
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
    await randomFile(source, IMAGE_SIZE);
    await sparseFile(copy, IMAGE_SIZE, []);
    await symlink("copy.img", link);
    await create(source, link);
    const before = await snapshot(place.path);
    expectFailure(await clone(["create", source, copy]), 2, /a clone's metadata stands there already/);
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

test("a destination whose metadata is elsewhere is not advised to be cloned to anew", async () => {
  await using place = await scratchDirectory();
  const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
  await randomFile(source, IMAGE_SIZE);
  await create(source, copy, { metadata: join(place.path, "meta") });
  const failed = await clone(["hydrate", copy]);
  expectFailure(failed, 3, /copy\.img/, /There is no ".*copy\.img\.clone" either: .* --metadata/);
  expect(failed.stderr).not.toMatch(/[Cc]reate/);
});

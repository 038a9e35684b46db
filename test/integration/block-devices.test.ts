// Block devices, as loop devices: as source, as destination, as metadata, and all three at once.
import { open, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { randomFile, readRange, snapshot } from "../support/files.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import {
  hasProgram,
  loopDevice,
  mountedFileSystem,
  noFileSystem,
  noLoopDevices,
  run,
  scratchDirectory,
  scratchLoopDevice,
  withReason,
} from "../support/scratch.ts";

const MIB = 1024 * 1024;

describe.skipIf(noLoopDevices !== undefined)(withReason("block devices", noLoopDevices), () => {
  test("are source, destination and metadata of one clone, and its metadata stays when it is finalized", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "backing.img"), 4 * MIB);
    await using source = await loopDevice(join(cwd, "backing.img"), { readOnly: true });
    await using destination = await scratchLoopDevice(5 * MIB);
    await using metadata = await scratchLoopDevice(4 * MIB);
    const made = oneJson(
      await cloneOk(["create", source.path, destination.path, "--metadata", metadata.path, "--json"], { cwd }),
    );
    expect(made).toMatchObject({ metadata: metadata.path, size: 4 * MIB, regions: 64 });
    await cloneOk(["hydrate", metadata.path, "--limit", "1M"], { cwd });
    await cloneOk(["check", metadata.path], { cwd });
    expect(await cloneOk(["status", metadata.path, "--dm"], { cwd })).toMatch(
      /^0 8192 clone 8 \d+\/\d+ 128 \d+\/64 0 /,
    );
    await cloneOk(["hydrate", metadata.path], { cwd });
    await cloneOk(["verify", metadata.path], { cwd });
    expect(await cloneOk(["finalize", metadata.path, "--table"], { cwd })).toBe(
      `0 8192 linear ${destination.path} 0\n`,
    );
    const before = (await readRange(metadata.path, 0, 4096)).toString("hex");
    await cloneOk(["finalize", metadata.path], { cwd });
    expect((await readRange(metadata.path, 0, 4096)).every((byte) => byte === 0)).toBe(false);
    expect(before).not.toBe("");
    expect(oneJson(await cloneOk(["status", metadata.path, "--json"], { cwd })).state).toBe("finalized");
    const copy = await readFile(destination.path);
    expect(Buffer.compare(copy.subarray(0, 4 * MIB), bytes)).toBe(0);
    expect(copy.subarray(4 * MIB).every((byte) => byte === 0)).toBe(true);
    expect(Object.keys(await snapshot(cwd))).toEqual(["backing.img"]);
  });

  test("a dirty device ends byte-equal to a sparse source, and what is behind stays", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = Buffer.alloc(4 * MIB);
    bytes.fill("data", MIB, MIB + 5000);
    await writeFile(join(cwd, "disk.img"), bytes);
    await run("fallocate", "--dig-holes", join(cwd, "disk.img"));
    await using destination = await scratchLoopDevice(5 * MIB);
    const old = await randomFile(join(cwd, "noise"), 5 * MIB);
    await writeFile(destination.path, old, { flag: "r+" });
    expectFailure(await clone(["copy", "disk.img", destination.path, "--metadata", "meta"], { cwd }), 2, /holds data/);
    await cloneOk(["copy", "disk.img", destination.path, "--metadata", "meta", "--force"], { cwd });
    bytes.copy(old);
    expect(Buffer.compare(await readFile(destination.path), old)).toBe(0);
    expect(Object.keys(await snapshot(cwd))).toEqual(["disk.img", "noise"]);
  });

  test("a device of 4096-byte sectors works, in regions of no less", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), MIB);
    await using destination = await scratchLoopDevice(MIB, { sectorSize: 4096 });
    await cloneOk(["copy", "disk.img", destination.path, "--metadata", "meta", "--region-size", "4K"], { cwd });
    expect(Buffer.compare(await readFile(destination.path), bytes)).toBe(0);
  });

  test("a metadata device that holds something, or is too small, is refused and left as it is", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await using full = await scratchLoopDevice(MIB);
    const old = await randomFile(join(cwd, "noise"), MIB);
    await writeFile(full.path, old, { flag: "r+" });
    await using small = await scratchLoopDevice(16384);
    const before = await snapshot(cwd);
    const args = ["create", "disk.img", "copy.img", "--metadata"];
    expectFailure(await clone([...args, full.path], { cwd }), 2, /its first block holds/, /zero/);
    expectFailure(await clone([...args, full.path, "--force"], { cwd }), 2, /its first block holds/);
    expectFailure(await clone([...args, small.path], { cwd }), 2, /bytes are needed/);
    expect(await snapshot(cwd)).toEqual(before);
    expect(Buffer.compare(await readFile(full.path), old)).toBe(0);
  });

  test("delete --yes of a clone whose metadata is on a device frees the device for another", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), MIB);
    await using metadata = await scratchLoopDevice(4 * MIB);
    await cloneOk(["create", "disk.img", "copy.img", "--metadata", metadata.path], { cwd });
    await cloneOk(["hydrate", metadata.path, "--limit", "64K"], { cwd });
    await cloneOk(["delete", metadata.path, "--yes"], { cwd });
    expectFailure(await clone(["status", metadata.path], { cwd }), 3, /first block/);
    await cloneOk(["create", "disk.img", "second.img", "--metadata", metadata.path], { cwd });
    await cloneOk(["hydrate", metadata.path], { cwd });
    await cloneOk(["finalize", metadata.path], { cwd });
    expect(Buffer.compare(await readFile(join(cwd, "second.img")), bytes)).toBe(0);
  });

  test("another device in the place of the source is refused", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "one.img"), MIB);
    await randomFile(join(cwd, "two.img"), MIB);
    await using source = await loopDevice(join(cwd, "one.img"));
    await cloneOk(["create", source.path, "copy.img"], { cwd });
    await using other = await loopDevice(join(cwd, "two.img"));
    const before = await snapshot(cwd);
    expectFailure(
      await clone(["hydrate", "copy.img", "--source", other.path], { cwd }),
      1,
      /has changed since the clone was created/,
      /--accept-changed-source/,
    );
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("a device that was empty at create and holds data now is refused: its name may be another device's", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await using destination = await scratchLoopDevice(MIB);
    await cloneOk(["create", "disk.img", destination.path, "--metadata", "meta"], { cwd });
    const written = await randomFile(join(cwd, "noise"), MIB);
    await writeFile(destination.path, written, { flag: "r+" });
    const before = await snapshot(cwd);
    expectFailure(await clone(["hydrate", "meta"], { cwd }), 1, /was empty .* holds data now/, /--force/);
    expect(Buffer.compare(await readFile(destination.path), written)).toBe(0);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("the destination's own loop device as metadata, or the source's, is refused", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await using destination = await scratchLoopDevice(MIB);
    const args = ["create", "disk.img", destination.path, "--metadata"];
    expectFailure(await clone([...args, destination.path], { cwd }), 2, /source or the destination/);
    expect((await readFile(destination.path)).every((byte) => byte === 0)).toBe(true);
  });
});

test.skipIf(noLoopDevices !== undefined)(
  withReason("finalize --table is told while loop devices have both files, and names the destination's", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    // As they stand when the kernel's clone is to be replaced.
    await using _metadata = await loopDevice(join(cwd, "copy.img.clone"));
    await using destination = await loopDevice(join(cwd, "copy.img"));
    const table = ["finalize", "copy.img.clone", "--table", "--destination"];
    expect(await cloneOk([...table, destination.path], { cwd })).toBe(`0 2048 linear ${destination.path} 0\n`);
    // Another file's is no more the destination than it was.
    await using other = await scratchLoopDevice(MIB);
    expectFailure(await clone([...table, other.path], { cwd }), 1, /belongs to/);
    expectFailure(await clone(["verify", "copy.img"], { cwd }), 4, /in use by loop device/);
  },
);

test.skipIf(noLoopDevices !== undefined)(
  withReason("metadata on a block device is read anew, whatever its page cache holds", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await run("cp", join(cwd, "copy.img.clone"), join(cwd, "backing"));
    await cloneOk(["hydrate", "copy.img"], { cwd });
    await using metadata = await loopDevice(join(cwd, "backing"));
    // As the kernel's clone has it open, and writes to the disk past the page cache.
    const user = await open(metadata.path);
    try {
      expect(await cloneOk(["status", metadata.path, "--dm"], { cwd })).toContain(" 0/16 ");
      await writeFile(join(cwd, "backing"), await readFile(join(cwd, "copy.img.clone")), { flag: "r+" });
      expect(await cloneOk(["status", metadata.path, "--dm"], { cwd })).toContain(" 16/16 ");
    } finally {
      await user.close();
    }
  },
);

const noExt4 = noFileSystem("ext4") ?? (hasProgram("e2fsck") ? undefined : "needs e2fsck");
test.skipIf(noExt4 !== undefined)(
  withReason("a finalized copy of an ext4 file system mounts, whole", noExt4),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const content = await (async () => {
      await using files = await mountedFileSystem("ext4", 32 * MIB);
      const bytes = await randomFile(join(files.path, "file"), 3 * MIB);
      const handle = await open(join(files.path, "file"));
      await handle.sync();
      await handle.close();
      await run("umount", files.path);
      await run("dd", `if=${files.device}`, `of=${join(cwd, "disk.img")}`, "bs=1M", "conv=sparse", "status=none");
      await run("mount", files.device, files.path); // for its disposal
      return bytes;
    })();
    await cloneOk(["copy", "disk.img", "copy.img"], { cwd });
    await run("e2fsck", "-fn", join(cwd, "copy.img"));
    await using copy = await loopDevice(join(cwd, "copy.img"));
    await run("mkdir", join(cwd, "mnt"));
    await run("mount", "-o", "ro", copy.path, join(cwd, "mnt"));
    try {
      expect(Buffer.compare(await readFile(join(cwd, "mnt", "file")), content)).toBe(0);
    } finally {
      await run("umount", join(cwd, "mnt"));
    }
  },
);

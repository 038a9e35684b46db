// A destination that cannot be cloned to is refused in one line, and nothing is made, changed or lost by the attempt.
import { chmod, link, mkdir, readFile, rename, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { holds, randomFile, snapshot, sparseFile } from "../support/files.ts";
import { asOrdinaryUser, noOrdinaryUser } from "../support/other-user.ts";
import { noQemu, qemuIo } from "../support/qemu-io.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import {
  loopDevice,
  mountedFileSystem,
  mountedTmpfs,
  noFileSystem,
  noLoopDevices,
  run,
  scratchDirectory,
  scratchLoopDevice,
  withReason,
} from "../support/scratch.ts";

const SIZE = 4 * 65536;

describe.each(["create", "copy"])("clone %s", (command) => {
  test("refuses a destination smaller than the source, even with --force", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await sparseFile(join(cwd, "copy.img"), SIZE - 512, []);
    const before = await snapshot(cwd);
    for (const force of [[], ["--force"]]) {
      const run = await clone([command, "disk.img", "copy.img", ...force], { cwd });
      expectFailure(run, 2, /destination has 261632 bytes, the source 262144/);
    }
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("refuses the source as its own destination, by whatever name, even with --force", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await mkdir(join(cwd, "folder"));
    await link(join(cwd, "disk.img"), join(cwd, "hard.img"));
    await symlink("disk.img", join(cwd, "symbolic.img"));
    const before = await snapshot(cwd);
    for (const name of ["disk.img", "hard.img", "symbolic.img", "folder/../disk.img", `file://${cwd}/hard.img`]) {
      expectFailure(await clone([command, "disk.img", name, "--force"], { cwd }), 2, /they are the same/);
    }
    expect(await snapshot(cwd)).toEqual(before);
  });

  test.skipIf(noLoopDevices !== undefined)(
    withReason("refuses a loop device over the source, and the other way round", noLoopDevices),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(join(cwd, "disk.img"), SIZE);
      await using loop = await loopDevice(join(cwd, "disk.img"));
      const before = await snapshot(cwd);
      const toLoop = await clone([command, "disk.img", loop.path, "--force", "--metadata", "meta"], { cwd });
      expect([2, 4]).toContain(toLoop.code); // they are the same, or the one is in use by the other: both are true
      expectFailure(toLoop, toLoop.code ?? -1, /they are the same|in use by/);
      const fromLoop = await clone([command, loop.path, "disk.img", "--force"], { cwd });
      expect([2, 4]).toContain(fromLoop.code);
      expectFailure(fromLoop, fromLoop.code ?? -1, /they are the same|in use by loop device/);
      expect(await snapshot(cwd)).toEqual(before);
    },
  );

  test("refuses a destination that holds data without --force", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await sparseFile(join(cwd, "copy.img"), SIZE, [[2 * 65536, 1]]);
    const before = await snapshot(cwd);
    expectFailure(await clone([command, "disk.img", "copy.img"], { cwd }), 2, /it holds data/, /--force/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("refuses to put the metadata where a file stands, and into source or destination", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await randomFile(join(cwd, "other"), SIZE);
    const before = await snapshot(cwd);
    for (const metadata of ["other", "disk.img", "copy.img"]) {
      const run = await clone([command, "disk.img", "copy.img", "--metadata", metadata], { cwd });
      expect(run.code, metadata).not.toBe(0);
      expectFailure(run, run.code === 3 && command === "copy" ? 3 : 2, /Cannot/);
      expect(await snapshot(cwd), metadata).toEqual(before);
    }
  });

  test.skipIf(noLoopDevices !== undefined)(
    withReason("fails on a full file system, and leaves nothing there", noLoopDevices),
    async () => {
      await using place = await scratchDirectory();
      await using full = await mountedTmpfs(1024 * 1024);
      await randomFile(join(place.path, "disk.img"), SIZE);
      await randomFile(join(full.path, "ballast"), 1024 * 1024);
      const before = await snapshot(full.path);
      const run = await clone([command, "disk.img", join(full.path, "copy.img")], { cwd: place.path });
      expectFailure(run, 1, /no space left|ENOSPC/);
      expect(await snapshot(full.path)).toEqual(before);
    },
  );
});

// What `create` and `copy` check in one and the same way, tried by `create` alone.
describe("clone create", () => {
  const command = "create";

  test("refuses a destination that holds only zeros, which are data too", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await writeFile(join(cwd, "copy.img"), Buffer.alloc(SIZE));
    const before = await snapshot(cwd);
    expectFailure(await clone([command, "disk.img", "copy.img"], { cwd }), 2, /it holds data/, /--force/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test.each([
    ["a directory", (path: string) => mkdir(path), 2, /it is a directory/],
    ["a FIFO", (path: string) => run("mkfifo", path), 2, /it is a pipe/],
  ])("refuses %s as the destination", async (_, make, code, message) => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await make(join(cwd, "copy.img"));
    const before = await snapshot(cwd);
    expectFailure(await clone([command, "disk.img", "copy.img"], { cwd }), code, message);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("refuses /dev/null as the destination", async () => {
    await using place = await scratchDirectory();
    await randomFile(join(place.path, "disk.img"), SIZE);
    expectFailure(await clone([command, "disk.img", "/dev/null"], { cwd: place.path }), 2, /character device/);
  });

  test("fails where the destination's directory is missing", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    const before = await snapshot(cwd);
    expectFailure(await clone([command, "disk.img", "none/copy.img"], { cwd }), 1, /no such (directory|file)/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test.skipIf(noOrdinaryUser !== undefined)(
    withReason("fails where the destination or its directory is not writable", noOrdinaryUser),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(join(cwd, "disk.img"), SIZE);
      await sparseFile(join(cwd, "copy.img"), SIZE, []);
      await chmod(join(cwd, "disk.img"), 0o644);
      await chmod(join(cwd, "copy.img"), 0o444);
      await chmod(cwd, 0o555);
      try {
        const before = await snapshot(cwd);
        const options = { cwd, ...asOrdinaryUser };
        expectFailure(await clone([command, "disk.img", "copy.img"], options), 1, /copy\.img": permission denied/);
        expectFailure(await clone([command, "disk.img", "new.img"], options), 1, /new\.img": permission denied/);
        await chmod(join(cwd, "copy.img"), 0o666); // but beside it nothing can be made
        const run = await clone([command, "disk.img", "copy.img"], options);
        expectFailure(run, 1, /copy\.img\.clone[^"]*": permission denied/);
        await chmod(join(cwd, "copy.img"), 0o444);
        const after = await snapshot(cwd);
        expect(Object.keys(after)).toEqual(Object.keys(before));
        expect(after).toEqual(before);
      } finally {
        await chmod(cwd, 0o755);
      }
    },
  );

  test.skipIf(noFileSystem("ext4") !== undefined)(
    withReason("refuses a mounted device, even with --force", noFileSystem("ext4")),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await using mounted = await mountedFileSystem("ext4", 16 * 1024 * 1024);
      await writeFile(join(mounted.path, "file"), "precious");
      await randomFile(join(cwd, "disk.img"), SIZE);
      const before = await snapshot(cwd);
      const run = await clone([command, "disk.img", mounted.device, "--metadata", "meta", "--force"], { cwd });
      expectFailure(run, 4, /in use.*mounted/);
      expect(await snapshot(cwd)).toEqual(before);
      expect(await readFile(join(mounted.path, "file"), "utf8")).toBe("precious");
    },
  );

  test.skipIf(noLoopDevices !== undefined)(
    withReason("refuses a file behind a loop device", noLoopDevices),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(join(cwd, "disk.img"), SIZE);
      await sparseFile(join(cwd, "copy.img"), SIZE, []);
      await using loop = await loopDevice(join(cwd, "copy.img"));
      const before = await snapshot(cwd);
      const failed = await clone([command, "disk.img", "copy.img", "--force"], { cwd });
      expectFailure(failed, 4, new RegExp(`in use by loop device ${loop.path}`));
      expect(await snapshot(cwd)).toEqual(before);
    },
  );

  test.skipIf(noQemu !== undefined)(withReason("refuses a file that qemu has open for writing", noQemu), async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await sparseFile(join(cwd, "copy.img"), SIZE, []);
    const before = await snapshot(cwd);
    {
      await using qemu = await qemuIo(join(cwd, "copy.img"));
      const failed = await clone([command, "disk.img", "copy.img", "--force"], { cwd });
      expectFailure(failed, 4, new RegExp(`in use by process ${qemu.pid} \\(qemu-io\\)`));
    }
    expect(await snapshot(cwd)).toEqual(before);
  });
});

test("clone create refuses a clone's own metadata as the destination, even with --force", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "small.img"), 65536);
  await randomFile(join(cwd, "disk.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const before = await snapshot(cwd);
  const run = await clone(["create", "small.img", "copy.img.clone", "--force"], { cwd });
  expectFailure(run, 2, /metadata/);
  expect(await snapshot(cwd)).toEqual(before);
});

test("clone create refuses the destination of an unfinished clone, even with --force", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), SIZE);
  await randomFile(join(cwd, "other.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img", "--limit", "64K"], { cwd });
  const before = await snapshot(cwd);
  const run = await clone(["create", "other.img", "copy.img", "--force"], { cwd });
  expectFailure(run, 2, /copy\.img\.clone": a clone's metadata stands there already/, /clone hydrate.*clone delete/);
  expect(await snapshot(cwd)).toEqual(before);
});

test.skipIf(noLoopDevices !== undefined)(
  withReason("clone create to a block device needs --metadata", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await using device = await scratchLoopDevice(1024 * 1024);
    await randomFile(join(cwd, "disk.img"), SIZE);
    const before = await snapshot(cwd);
    expectFailure(await clone(["create", "disk.img", device.path], { cwd }), 2, /--metadata/);
    expectFailure(await clone(["copy", "disk.img", device.path], { cwd }), 2, /--metadata/);
    expect(await snapshot(cwd)).toEqual(before);
    expect(await holds(device.path, Buffer.alloc(1024 * 1024))).toBe(true);
  },
);

test.skipIf(noLoopDevices !== undefined)(
  withReason("clone create refuses a device with data in its first or last MiB without --force", noLoopDevices),
  async () => {
    const MIB = 1024 * 1024;
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    for (const offset of [0, MIB - 512, 7 * MIB, 8 * MIB - 512]) {
      await using device = await scratchLoopDevice(8 * MIB);
      const bytes = Buffer.alloc(8 * MIB);
      bytes[offset + 511] = 1;
      await writeFile(device.path, bytes, { flag: "r+" });
      const before = await snapshot(cwd);
      const run = await clone(["create", "disk.img", device.path, "--metadata", "meta"], { cwd });
      expectFailure(run, 2, /it holds data/, /--force/);
      expect(await snapshot(cwd)).toEqual(before);
      expect(await holds(device.path, bytes)).toBe(true);
    }
  },
);

describe("a clone whose destination is not its own any more", () => {
  async function created(cwd: string): Promise<void> {
    await randomFile(join(cwd, "disk.img"), SIZE);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  }

  test("clone hydrate fails where it is missing, and makes none", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await created(cwd);
    await rename(join(cwd, "copy.img"), join(cwd, "moved.img"));
    const before = await snapshot(cwd);
    expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /Cannot open "[^"]*copy\.img": no such file/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("clone hydrate refuses another file in its place", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await created(cwd);
    await rename(join(cwd, "copy.img"), join(cwd, "moved.img"));
    await randomFile(join(cwd, "copy.img"), SIZE);
    const before = await snapshot(cwd);
    expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /belongs to .*another file/, /--destination/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("clone hydrate refuses one that was truncated", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await created(cwd);
    await truncate(join(cwd, "copy.img"), SIZE - 1);
    const before = await snapshot(cwd);
    expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /262143 bytes, fewer than/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("clone hydrate --destination of something else is refused", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await created(cwd);
    const other = await randomFile(join(cwd, "other.img"), SIZE);
    const before = await snapshot(cwd);
    const run = await clone(["hydrate", "copy.img", "--destination", "other.img"], { cwd });
    expectFailure(run, 1, /other\.img" as the destination: the clone belongs to/);
    const self = await clone(["hydrate", "copy.img", "--destination", "copy.img.clone"], { cwd });
    expectFailure(self, 2, /it is the clone's metadata/);
    const source = await clone(["hydrate", "copy.img", "--destination", "disk.img"], { cwd });
    expect([1, 2]).toContain(source.code);
    expect(await snapshot(cwd)).toEqual(before);
    expect(await holds(join(cwd, "other.img"), other)).toBe(true);
  });

  test("clone hydrate --source of something else is refused, and so is the destination as the source", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await created(cwd);
    await randomFile(join(cwd, "other.img"), SIZE);
    const before = await snapshot(cwd);
    const run = await clone(["hydrate", "copy.img", "--source", "other.img"], { cwd });
    expectFailure(run, 1, /other\.img" as the source: .*another file/, /--accept-changed-source/);
    const args = ["hydrate", "copy.img", "--source", "copy.img", "--accept-changed-source"];
    expectFailure(await clone(args, { cwd }), 2, /same/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("clone hydrate --destination goes on where it was moved to", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await rename(join(cwd, "copy.img"), join(cwd, "moved.img"));
    await cloneOk(["hydrate", "copy.img.clone", "--destination", "moved.img"], { cwd });
    expect(await holds(join(cwd, "moved.img"), bytes)).toBe(true);
    await cloneOk(["finalize", "copy.img.clone"], { cwd }); // remembers where it is now
  });
});

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, truncate, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { BusyError } from "../../../src/base/errors.ts";
import { parseMounts } from "../../../src/device/block-users.ts";
import { FileDevice } from "../../../src/device/file-device.ts";
import { findUser, refuseInUse } from "../../../src/device/in-use.ts";
import { acquireLock } from "../../../src/device/lock.ts";
import { noQemu, qemuIo } from "../../support/qemu-io.ts";
import {
  hasProgram,
  loopDevice,
  noLoopDevices,
  run,
  scratchDirectory,
  scratchLoopDevice,
  withReason,
} from "../../support/scratch.ts";

const RW = { access: "read-write" } as const;
const RO = { access: "read-only" } as const;

async function scratchFile(size = 2 ** 20) {
  const directory = await scratchDirectory();
  const path = join(directory.path, "disk");
  await writeFile(path, "");
  await truncate(path, size);
  return { path, directory: directory.path, [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose]() };
}

test("findUser() finds nobody where nobody is, our own lock included", async () => {
  await using file = await scratchFile();
  await using device = await FileDevice.open(file.path, RW);
  using _ = await acquireLock(device);
  await using other = await FileDevice.open(file.path, RW);
  for (const purpose of ["read", "write"] as const) {
    expect(await findUser(device, purpose)).toBeUndefined();
    expect(await findUser(other, purpose)).toBeUndefined();
    await refuseInUse(other, purpose);
  }
});

describe.skipIf(noQemu !== undefined)(withReason("a file open in qemu", noQemu), () => {
  test("is in use for readers and writers while qemu writes, by the pid of qemu", async () => {
    await using file = await scratchFile();
    await using device = await FileDevice.open(file.path, RW);
    {
      await using qemu = await qemuIo(file.path);
      const description = `process ${qemu.pid} (qemu-io), which writes to it`;
      expect(await findUser(device, "write")).toEqual({ description, pid: qemu.pid });
      expect(await findUser(device, "read")).toEqual({ description, pid: qemu.pid });
      const error = await refuseInUse(device, "write").catch((caught) => caught);
      expect(error).toBeInstanceOf(BusyError);
      expect(error.message).toBe(`Cannot write to "${file.path}": it is in use by ${description}`);
      await expect(refuseInUse(device, "read")).rejects.toThrow(`Cannot read "${file.path}": it is in use by process`);
    }
    expect(await findUser(device, "write")).toBeUndefined();
  });

  test("is in use for writers only while qemu copies from it", async () => {
    await using file = await scratchFile(64 * 2 ** 20);
    await using device = await FileDevice.open(file.path, RW);
    // -S 0 copies the hole too, and -r slows that down: it would take a minute
    const options = ["-f", "raw", "-O", "raw", "-S", "0", "-r", "1M"];
    const convert = spawn("qemu-img", ["convert", ...options, file.path, join(file.directory, "copy")]);
    try {
      const description = `process ${convert.pid} (qemu-img), which has locked it`;
      await expect
        .poll(() => findUser(device, "write"), { timeout: 10_000 })
        .toEqual({ description, pid: convert.pid });
      expect(await findUser(device, "read")).toBeUndefined();
    } finally {
      convert.kill("SIGKILL");
      await once(convert, "exit");
    }
  });

  test("is nobody's while qemu reads it and lets others write", async () => {
    await using file = await scratchFile();
    await using device = await FileDevice.open(file.path, RW);
    await using _qemu = await qemuIo(file.path, "-r");
    expect(await findUser(device, "write")).toBeUndefined();
  });

  test("can be opened by qemu although we hold our lock: the two do not collide", async () => {
    await using file = await scratchFile();
    await using device = await FileDevice.open(file.path, RW);
    using _ = await acquireLock(device);
    await using _qemu = await qemuIo(file.path); // would have said "Failed to get write lock" on its standard error
    expect(await findUser(device, "write")).toBeDefined();
  });
});

describe.skipIf(noLoopDevices !== undefined)(withReason("a file behind a loop device", noLoopDevices), () => {
  test("is in use, by the loop device's name, until that is detached", async () => {
    await using file = await scratchFile();
    await using device = await FileDevice.open(file.path, RW);
    await using bystander = await FileDevice.open(join(file.directory, "other"), { ...RW, create: { size: 4096 } });
    {
      await using loop = await loopDevice(file.path);
      const user = { description: `loop device ${loop.path}`, pid: undefined };
      expect(await findUser(device, "write")).toEqual(user);
      expect(await findUser(device, "read")).toEqual(user);
      expect(await findUser(bystander, "write")).toBeUndefined();
    }
    expect(await findUser(device, "write")).toBeUndefined();
  });

  test("may be read while the loop device is read-only", async () => {
    await using file = await scratchFile();
    await using device = await FileDevice.open(file.path, RO);
    await using _loop = await loopDevice(file.path, { readOnly: true });
    expect(await findUser(device, "read")).toBeUndefined();
    expect(await findUser(device, "write")).toBeDefined();
  });

  test("is found by its inode where its path has another meaning by now", async () => {
    await using file = await scratchFile();
    await using device = await FileDevice.open(file.path, RW);
    await using loop = await loopDevice(file.path);
    await unlink(file.path);
    await writeFile(file.path, "another file");
    await using other = await FileDevice.open(file.path, RW);
    expect((await findUser(device, "write"))?.description).toBe(`loop device ${loop.path}`);
    expect(await findUser(other, "write")).toBeUndefined();
  });

  test("may be a block device itself", async () => {
    await using below = await scratchLoopDevice(2 ** 20);
    await using above = await loopDevice(below.path);
    await using device = await FileDevice.open(below.path, RO);
    expect((await findUser(device, "write"))?.description).toBe(`loop device ${above.path}`);
  });

  test("is found from another mount of its file system", async () => {
    await using file = await scratchFile();
    const elsewhere = join(file.directory, "bind");
    await mkdir(elsewhere);
    await using _loop = await loopDevice(file.path);
    await run("mount", "--bind", file.directory, elsewhere);
    try {
      await using device = await FileDevice.open(join(elsewhere, "disk"), RW);
      expect(await findUser(device, "write")).toBeDefined();
    } finally {
      await run("umount", elsewhere);
    }
  });
});

const noSwap = noLoopDevices ?? (hasProgram("swapon") ? undefined : "needs swapon");
test.skipIf(noSwap !== undefined)(withReason("a file or block device that is swap is in use", noSwap), async () => {
  await using file = await scratchFile(2 ** 22);
  await using device = await FileDevice.open(file.path, RW);
  await using loop = await loopDevice(file.path);
  await run("mkswap", loop.path);
  await run("swapon", loop.path);
  try {
    await using swap = await FileDevice.open(loop.path, RO);
    expect((await findUser(swap, "read"))?.description).toBe("the kernel, as swap");
    await expect(FileDevice.open(loop.path, RW)).rejects.toThrow("is in use (active swap)");
    expect((await findUser(device, "write"))?.description).toBe(`loop device ${loop.path}`);
  } finally {
    await run("swapoff", loop.path);
  }
});

test("parseMounts() reads device, mount point and source, with white space and optional fields in them", () => {
  const text = [
    "22 1 254:0 / / rw,relatime - ext4 /dev/root rw",
    "36 22 8:17 / /mnt/a\\040b rw,noatime master:1 shared:7 - xfs /dev/sdb1 rw",
    "40 22 0:45 /sub /srv rw - btrfs /dev/sdc rw,subvol=/sub",
    "",
  ].join("\n");
  expect(parseMounts(text)).toEqual([
    { device: "254:0", mountPoint: "/", source: "/dev/root" },
    { device: "8:17", mountPoint: "/mnt/a b", source: "/dev/sdb1" },
    { device: "0:45", mountPoint: "/srv", source: "/dev/sdc" },
  ]);
});

// Where an immediate request is served, where it is not, and what it must not run into.
import { spawn } from "node:child_process";
import { once } from "node:events";
import fs, { existsSync, writeSync } from "node:fs";
import { readFile, stat, truncate, writeFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { alignedBuffer } from "../../../src/device/aligned-buffer.ts";
import { FileDevice } from "../../../src/device/file-device.ts";
import { fileSystemKind } from "../../../src/device/file-system.ts";
import { MAX_IMMEDIATE } from "../../../src/device/immediate-file-io.ts";
import { fadvise } from "../../../src/device/libc.ts";
import {
  hasProgram,
  loopDevice,
  mountedFileSystem,
  mountedTmpfs,
  noFileSystem,
  noLoopDevices,
  scratchDirectory,
  withReason,
} from "../../support/scratch.ts";

const RW = { access: "read-write" } as const;
const MIB = 2 ** 20;
const FADV_DONTNEED = 4;
const SHM = "/dev/shm";
const noShm = existsSync(SHM) ? undefined : `needs ${SHM}`;

describe.skipIf(noShm !== undefined)(withReason("On tmpfs", noShm), () => {
  test("FileDevice reads and writes at once, up to a length, and what it wrote is there", async () => {
    await using scratch = await scratchDirectory(SHM);
    const path = join(scratch.path, "disk");
    await using device = await FileDevice.open(path, { ...RW, create: { size: 4 * MIB + 3 } });
    expect(device.direct).toBe(false); // nothing to bypass
    const data = new Uint8Array(MAX_IMMEDIATE + 1).map((_, index) => index % 251);
    expect(device.tryWrite(5, data)).toBe(false);
    expect(device.tryWrite(5, data.subarray(1))).toBe(true);
    const content = await readFile(path);
    expect(Buffer.compare(content.subarray(5, 5 + MAX_IMMEDIATE), data.subarray(1))).toBe(0);
    const buffer = new Uint8Array(MAX_IMMEDIATE + 1);
    expect(device.tryRead(5, buffer)).toBe(false);
    expect(device.tryRead(5, buffer.subarray(1))).toBe(true);
    expect(Buffer.compare(buffer.subarray(1), data.subarray(1))).toBe(0);
    expect(device.tryRead(4 * MIB, buffer.subarray(0, 3))).toBe(true); // a hole, up to the end
    expect([...buffer.subarray(0, 3)]).toEqual([0, 0, 0]);
    await device.flush();
  });

  test("FileDevice does not write at once while a long change holds the file", async () => {
    await using scratch = await scratchDirectory(SHM);
    await using device = await FileDevice.open(join(scratch.path, "disk"), { ...RW, create: { size: 64 * MIB } });
    for (const change of [
      () => device.write(0, new Uint8Array(8 * MIB)),
      () => device.zero(0, 64 * MIB),
      () => device.discard(0, 64 * MIB),
      () => device.allocate(0, MIB),
    ]) {
      const changed = change();
      for (let turn = 0; turn < 20; turn += 1) await undefined; // begun by now; its end needs the event loop
      expect(device.tryWrite(0, new Uint8Array(512))).toBe(false);
      expect(device.tryRead(0, new Uint8Array(512))).toBe(true);
      await changed;
      expect(device.tryWrite(0, new Uint8Array(512))).toBe(true);
    }
  });

  test("FileDevice leaves it to read() to say that the file shrank", async () => {
    await using scratch = await scratchDirectory(SHM);
    const path = join(scratch.path, "disk");
    await using device = await FileDevice.open(path, { ...RW, create: { size: 10_000 } });
    await truncate(path, 5000);
    expect(device.tryRead(4000, new Uint8Array(1000))).toBe(true);
    expect(device.tryRead(4000, new Uint8Array(1001))).toBe(false);
    await expect(device.read(4000, new Uint8Array(1001))).rejects.toThrow("the file shrank");
  });

  test("FileDevice refuses immediate requests once it is closed, and writes where it is read-only", async () => {
    await using scratch = await scratchDirectory(SHM);
    const path = join(scratch.path, "disk");
    const device = await FileDevice.open(path, { ...RW, create: { size: 10_000 } });
    await using reader = await FileDevice.open(path, { access: "read-only" });
    expect(reader.tryRead(0, new Uint8Array(10))).toBe(true);
    expect(() => reader.tryWrite(0, new Uint8Array(10))).toThrow(TypeError);
    await device[Symbol.asyncDispose]();
    expect(() => device.tryRead(0, new Uint8Array(10))).toThrow(TypeError);
    expect(() => device.tryWrite(0, new Uint8Array(10))).toThrow(TypeError);
  });
});

test.skipIf(noLoopDevices !== undefined)(
  withReason("FileDevice leaves it to write() to say that a tmpfs is full", noLoopDevices),
  async () => {
    await using mounted = await mountedTmpfs(MIB);
    await using device = await FileDevice.open(join(mounted.path, "disk"), { ...RW, create: { size: 4 * MIB } });
    const data = new Uint8Array(MAX_IMMEDIATE);
    let at = 0;
    while (at < device.size && device.tryWrite(at, data)) at += data.length;
    expect(at).toBeLessThanOrEqual(MIB);
    await expect(device.write(at, data)).rejects.toMatchObject({ errno: "ENOSPC", offset: at });
  },
);

test.skipIf(noLoopDevices !== undefined)(
  withReason("FileDevice refuses immediate writes after a failed flush", noLoopDevices),
  async () => {
    await using mounted = await mountedTmpfs(MIB);
    const backing = join(mounted.path, "backing"); // a disk of 8 MiB on a file system of one
    await writeFile(backing, "");
    await truncate(backing, 8 * MIB);
    await using loop = await loopDevice(backing);
    await using device = await FileDevice.open(loop.path, { ...RW, direct: "off" });
    await device.write(0, new Uint8Array(4 * MIB).fill(1));
    await expect(device.flush()).rejects.toThrow("Cannot flush");
    expect(() => device.tryWrite(0, new Uint8Array(512))).toThrow("Cannot flush");
  },
);

const noExt4 = noFileSystem("ext4");
test.skipIf(noExt4 !== undefined)(
  withReason("On ext4 FileDevice reads at once what is in the page cache, and never writes", noExt4),
  async () => {
    await using mounted = await mountedFileSystem("ext4", 32 * MIB);
    const path = join(mounted.path, "disk");
    await writeFile(path, Buffer.alloc(MIB, 7));
    await using device = await FileDevice.open(path, RW);
    await device.flush();
    await fadvise(device.fd, 0, 0, FADV_DONTNEED);
    const buffer = new Uint8Array(4096);
    expect(device.tryRead(MIB / 2, buffer)).toBe(false);
    await device.read(MIB / 2, buffer);
    buffer.fill(0);
    expect(device.tryRead(MIB / 2, buffer)).toBe(true);
    expect(buffer.every((byte) => byte === 7)).toBe(true);
    const before = (await stat(path)).mtimeMs;
    expect(device.tryWrite(0, buffer)).toBe(false);
    expect((await stat(path)).mtimeMs).toBe(before);
  },
);

const noXfs = noFileSystem("xfs");
test.skipIf(noXfs !== undefined)(
  withReason("On XFS FileDevice writes at once, but neither during a direct write nor before one that waits", noXfs),
  async ({ skip }) => {
    await using mounted = await mountedFileSystem("xfs", 512 * MIB);
    const path = join(mounted.path, "disk");
    await using device = await FileDevice.open(path, { ...RW, create: { size: 8 * MIB } });
    const data = new Uint8Array(1000).fill(9);
    // At each new time of change, every few milliseconds, one write has to wait for the journal.
    const writesAtOnce = async () => {
      for (let attempt = 0; attempt < 200; attempt += 1) {
        if (device.tryWrite(100, data)) return true;
        await device.write(100, data);
      }
      return false;
    };
    if (!(await writesAtOnce())) skip("needs a kernel whose XFS writes with RWF_NOWAIT");
    for (let round = 0; round < 5; round += 1) {
      const buffered = device.write(100, data);
      const direct = device.write(MIB, alignedBuffer(65536, device.directAlignment).fill(round)); // waits for that
      for (let attempt = 0; attempt < 20; attempt += 1) {
        writeSync(device.fd, "x", 3 * MIB); // sees to the time of change, so that XFS itself would not say no
        expect(device.tryWrite(2 * MIB, data)).toBe(false);
      }
      await buffered;
      expect(device.tryWrite(2 * MIB, data)).toBe(false);
      await direct;
    }
    expect(await writesAtOnce()).toBe(true);
    const content = await readFile(path);
    expect(Buffer.compare(content.subarray(100, 1100), data)).toBe(0);
    expect(content.subarray(MIB, MIB + 65536).every((byte) => byte === 4)).toBe(true);
  },
);

test.skipIf(noXfs !== undefined)(
  withReason("FileDevice.flush() syncs the descriptor that was written through at once", noXfs),
  async ({ skip }) => {
    const { fdatasync } = fs;
    const synced: number[] = [];
    fs.fdatasync = Object.assign((fd: number, done: fs.NoParamCallback) => {
      synced.push(fd);
      fdatasync(fd, done);
    }, fdatasync);
    syncBuiltinESMExports();
    vi.resetModules();
    try {
      const watched = await import("../../../src/device/file-device.ts");
      await using mounted = await mountedFileSystem("xfs", 512 * MIB);
      await using device = await watched.FileDevice.open(join(mounted.path, "disk"), { ...RW, create: { size: MIB } });
      await device.write(0, alignedBuffer(65536, device.directAlignment));
      await device.flush();
      expect(synced.splice(0)).not.toContain(device.fd); // nothing but a direct write so far
      const writesAtOnce = () => {
        writeSync(device.fd, "x", 0);
        return device.tryWrite(100, new Uint8Array(100));
      };
      if (!Array.from({ length: 200 }).some(writesAtOnce)) skip("needs a kernel whose XFS writes with RWF_NOWAIT");
      await device.flush();
      expect(synced).toContain(device.fd);
    } finally {
      fs.fdatasync = fdatasync;
      syncBuiltinESMExports();
      vi.resetModules();
    }
  },
);

const noFuse =
  noLoopDevices ??
  (["nbdfuse", "nbdkit", "fusermount3"].every(hasProgram) && existsSync("/dev/fuse") ? undefined : "needs nbdfuse");
test.skipIf(noFuse !== undefined)(withReason("On FUSE FileDevice does nothing at once", noFuse), async () => {
  await using scratch = await scratchDirectory();
  const path = join(scratch.path, "disk");
  await writeFile(path, ""); // nbdfuse mounts one file upon another
  const fuse = spawn("nbdfuse", [path, "--command", "nbdkit", "-s", "memory", "1M"], { stdio: "ignore" });
  const ended = once(fuse, "exit");
  try {
    while ((await stat(path)).size !== MIB) await new Promise((resolve) => setTimeout(resolve, 20));
    await using device = await FileDevice.open(path, RW);
    expect(await fileSystemKind(device.fd)).toBe("remote");
    const buffer = new Uint8Array(512);
    await device.read(0, buffer); // now it is in the page cache
    expect(device.tryRead(0, buffer)).toBe(false);
    expect(device.tryWrite(0, buffer)).toBe(false);
  } finally {
    fuse.kill();
    await ended;
  }
});

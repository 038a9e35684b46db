import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import fs, { readdirSync, readlinkSync } from "node:fs";
import { chmod, mkdir, readFile, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { BusyError, DeviceError, UsageError } from "../../../src/base/errors.ts";
import { alignedBuffer } from "../../../src/device/aligned-buffer.ts";
import { FileDevice } from "../../../src/device/file-device.ts";
import {
  hasProgram,
  loopDevice,
  mountedFileSystem,
  mountedTmpfs,
  noFileSystem,
  noLoopDevices,
  run,
  scratchDirectory,
  scratchLoopDevice,
  withReason,
} from "../../support/scratch.ts";

const RW = { access: "read-write" } as const;
const RO = { access: "read-only" } as const;
const isRoot = process.getuid?.() === 0;

describe("FileDevice.open()", () => {
  test("says that there is no such file", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "none");
    const error = await FileDevice.open(path, RO).catch((caught) => caught);
    expect(error).toBeInstanceOf(DeviceError);
    expect(error).toMatchObject({ errno: "ENOENT", message: `Cannot open "${path}": no such file (ENOENT)` });
  });

  test("refuses what is neither a file nor a block device, without opening it", async () => {
    await using scratch = await scratchDirectory();
    const pipe = join(scratch.path, "pipe");
    execFileSync("mkfifo", [pipe]);
    const socket = join(scratch.path, "socket");
    const server = createServer().listen(socket);
    await once(server, "listening");
    for (const [path, what] of [
      [scratch.path, "a directory"],
      [pipe, "a pipe"], // to open it would wait for a writer for ever
      [socket, "a socket"],
      ["/dev/null", "a character device"],
    ]) {
      const error = await FileDevice.open(path ?? "", RO).catch((caught) => caught);
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toBe(`Cannot open "${path}": it is ${what}, not a file or block device`);
    }
    server.close();
  });

  test.skipIf(isRoot)(
    withReason("says that permission is missing", isRoot ? "root may do all" : undefined),
    async () => {
      await using scratch = await scratchDirectory();
      const path = join(scratch.path, "secret");
      await writeFile(path, "x");
      await chmod(path, 0o400);
      await expect(FileDevice.open(path, RW)).rejects.toThrow("permission denied (EACCES)");
    },
  );

  test("makes a sparse file of the size asked for, and refuses one that exists", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "new");
    {
      await using device = await FileDevice.open(path, { ...RW, create: { size: 1e9 + 1, mode: 0o600 } });
      expect(device.size).toBe(1e9 + 1);
    }
    const { size, blocks, mode } = await stat(path);
    expect([size, blocks, mode % 0o1000]).toEqual([1e9 + 1, 0, 0o600]);
    await writeFile(path, "precious");
    await expect(FileDevice.open(path, { ...RW, create: { size: 4096 } })).rejects.toThrow(
      "it exists already (EEXIST)",
    );
    expect(await readFile(path, "utf8")).toBe("precious");
    const nowhere = join(scratch.path, "none", "new");
    await expect(FileDevice.open(nowhere, { ...RW, create: { size: 1 } })).rejects.toThrow(
      `Cannot create "${nowhere}": no such directory (ENOENT)`,
    );
  });

  test("opens a source read-only: the descriptor itself cannot write, and every change is a TypeError", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "source");
    await writeFile(path, "content");
    await using device = await FileDevice.open(path, { ...RO, directReads: true });
    const flags = await readFile(`/proc/self/fdinfo/${device.fd}`, "utf8");
    expect(Number.parseInt(/flags:\s*([0-7]+)/.exec(flags)?.[1] ?? "", 8) % 4).toBe(0); // O_RDONLY
    await expect(device.write(0, new Uint8Array(1))).rejects.toThrow(TypeError);
    await expect(device.zero(0, 1)).rejects.toThrow(TypeError);
    await expect(device.discard(0, 1)).rejects.toThrow(TypeError);
    await expect(device.resize(0)).rejects.toThrow(TypeError);
    await expect(device.allocate(0, 1)).rejects.toThrow(TypeError);
    await expect(device.reflinkFrom(device, 0, 0, 1)).rejects.toThrow(TypeError);
    await device.flush();
    expect(await readFile(path, "utf8")).toBe("content");
  });

  // Nothing can be flushed in /proc, which says EINVAL: so the system was asked.
  test("flushes what others have written also where it is open for reading only", async () => {
    await using device = await FileDevice.open("/proc/version", RO);
    await expect(device.flush()).rejects.toThrow('Cannot flush "/proc/version": EINVAL');
  });

  test("keeps no descriptor open where it fails", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    await writeFile(path, "x");
    const create = { size: 4096 };
    for (const at of [join(scratch.path, "none"), scratch.path]) await FileDevice.open(at, RW).catch(() => undefined);
    await FileDevice.open(path, { ...RW, create }).catch(() => undefined);
    await using device = await FileDevice.open(path, { ...RW, directReads: true });
    const open = () => readdirSync("/proc/self/fd").filter((fd) => linkOf(fd).startsWith(scratch.path)).length;
    expect(open()).toBe(device.direct ? 2 : 1);
    await device[Symbol.asyncDispose]();
    expect(open()).toBe(0);
  });

  test("identity is the file's, by whatever path, and changes with its content", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    const link = join(scratch.path, "link");
    await writeFile(path, "x");
    await symlink(path, link);
    const identityOf = async (at: string) => {
      await using device = await FileDevice.open(at, RO);
      return device.identity;
    };
    const identity = await identityOf(path);
    const stats = await stat(path, { bigint: true });
    expect(identity).toMatchObject({ kind: "file", size: 1, ino: `${stats.ino}`, mtimeNs: `${stats.mtimeNs}` });
    expect(await identityOf(link)).toEqual(identity);
    expect(JSON.parse(JSON.stringify(identity))).toEqual(identity);
    await writeFile(path, "xy");
    expect(await identityOf(path)).not.toEqual(identity);
  });
});

describe("FileDevice", () => {
  test("read() says that the file shrank", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    await writeFile(path, Buffer.alloc(10_000, 1));
    await using device = await FileDevice.open(path, RO);
    await truncate(path, 5000);
    await device.read(0, new Uint8Array(5000));
    const error = await device.read(4000, new Uint8Array(2000)).catch((caught) => caught);
    expect(error).toBeInstanceOf(DeviceError);
    expect(error.message).toBe(`Cannot read 2000 bytes at 4000 from "${path}": the file shrank to 5000 bytes`);
    expect(error).toMatchObject({ offset: 4000, length: 2000 });
  });

  const fincore = hasProgram("fincore") ? undefined : "needs fincore";
  test.skipIf(fincore !== undefined)(
    withReason("write() goes past the page cache where everything is aligned, and through it otherwise", fincore),
    async () => {
      await using scratch = await scratchDirectory();
      const path = join(scratch.path, "disk");
      await using device = await FileDevice.open(path, { ...RW, create: { size: 2 ** 20 } });
      if (!device.direct) return; // the file system has no O_DIRECT
      const cached = async () => Number(await run("fincore", "--bytes", "--noheadings", "--output", "RES", path));
      await device.write(0, alignedBuffer(65536, device.directAlignment).fill(1));
      expect(await cached()).toBe(0);
      await device.write(
        65536,
        alignedBuffer(65536 + 1, device.directAlignment)
          .fill(2)
          .subarray(1),
      );
      await device.write(131072 + 512, alignedBuffer(4096, device.directAlignment).fill(3));
      await device.write(262144, alignedBuffer(4096 + 1000, device.directAlignment).fill(4));
      expect(await cached()).toBeGreaterThanOrEqual(65536 + 2 * 4096);
      expect(device.direct).toBe(true); // nothing was tried the direct way and refused
      const expected = Buffer.alloc(2 ** 20);
      expected.fill(1, 0, 65536).fill(2, 65536, 131072).fill(3, 131584, 135680).fill(4, 262144, 267240);
      expect(Buffer.compare(await readFile(path), expected)).toBe(0);
    },
  );

  test("write() falls back to the page cache where direct I/O turns out to be refused", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    await using device = await FileDevice.open(path, { ...RW, create: { size: 2 ** 20 } });
    const write = fs.write;
    const directCalls: number[] = [];
    // A kernel that wants more alignment than we know of answers this; no device here does.
    const refusing = (fd: number, ...rest: [Uint8Array, number, number, number, (error: unknown) => void]) => {
      if (fd === device.fd) return (write as (...all: unknown[]) => void)(fd, ...rest);
      directCalls.push(fd);
      rest[4](Object.assign(new Error("EINVAL"), { code: "EINVAL" }));
    };
    fs.write = refusing as unknown as typeof fs.write;
    syncBuiltinESMExports();
    try {
      const direct = device.direct;
      for (const page of [0, 1, 2]) await device.write(page * 65536, alignedBuffer(65536, 65536).fill(page + 1));
      expect(directCalls.length).toBe(direct ? 1 : 0); // it is not asked again
    } finally {
      fs.write = write;
      syncBuiltinESMExports();
    }
    expect(device.direct).toBe(false);
    const content = await readFile(path);
    expect([content[0], content[65536], content[131072], content[196608]]).toEqual([1, 2, 3, 0]);
  });

  test("write() never runs direct and buffered writes at the same time", async () => {
    await using scratch = await scratchDirectory();
    await using device = await FileDevice.open(join(scratch.path, "disk"), { ...RW, create: { size: 2 ** 22 } });
    const write = fs.write;
    const running = { direct: 0, buffered: 0 };
    let mixed = 0;
    const watching = (fd: number, ...rest: [Uint8Array, number, number, number, (...result: unknown[]) => void]) => {
      const kind = fd === device.fd ? "buffered" : "direct";
      running[kind] += 1;
      if (running.direct > 0 && running.buffered > 0) mixed += 1;
      const done = rest[4];
      rest[4] = (...result) => {
        running[kind] -= 1;
        done(...result);
      };
      return (write as (...all: unknown[]) => void)(fd, ...rest);
    };
    fs.write = watching as unknown as typeof fs.write;
    syncBuiltinESMExports();
    try {
      const data = alignedBuffer(65536, 4096);
      const lengths = [65536, 65536, 1000, 65536, 1000, 1000]; // of whole pages and not
      await Promise.all(
        Array.from({ length: 60 }, (_, i) => device.write(i * 65536, data.subarray(0, lengths[i % lengths.length]))),
      );
    } finally {
      fs.write = write;
      syncBuiltinESMExports();
    }
    expect(mixed).toBe(0);
    expect(running).toEqual({ direct: 0, buffered: 0 });
  });

  test.each(["zero", "discard"] as const)("%s() reaches every part of a range of many GiB", async (change) => {
    await using scratch = await scratchDirectory();
    const size = 5 * 2 ** 30 + 3;
    await using device = await FileDevice.open(join(scratch.path, "disk"), { ...RW, create: { size } });
    const places = [5000, 1.5 * 2 ** 30, 2 ** 31 - 100, 3.25 * 2 ** 30, 2 ** 32 + 2 ** 29, size - 200];
    for (const offset of places) await device.write(offset, Buffer.alloc(200, 1));
    await device[change](4096, size - 4096);
    const blocks = 5 * 2 ** 30; // what the last, broken block becomes is up to the file system
    expect(await device.extents(0, blocks)).toEqual([{ offset: 0, length: blocks, hole: true, zero: true }]);
    const tail = Buffer.alloc(200, 9);
    await device.read(size - 200, tail);
    expect(Buffer.compare(tail, Buffer.alloc(200))).toBe(0);
  });

  test("zero() punches a hole, or keeps the space where that is asked for", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    await writeFile(path, Buffer.alloc(2 ** 20, 1));
    await using device = await FileDevice.open(path, RW);
    await device.flush(); // blocks are assigned late
    const full = (await stat(path)).blocks;
    await device.zero(0, 2 ** 19, { mayPunch: false, fua: true });
    expect((await stat(path)).blocks).toBe(full);
    await device.zero(2 ** 19, 2 ** 19, { fua: true });
    expect((await stat(path)).blocks).toBeLessThanOrEqual(full - 1000);
    expect(Buffer.compare(await readFile(path), Buffer.alloc(2 ** 20))).toBe(0);
  });

  test("extents() tells data from holes", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    await using device = await FileDevice.open(path, { ...RW, create: { size: 10 * 2 ** 20 + 3 } });
    expect(await device.extents(0, device.size)).toEqual([{ offset: 0, length: device.size, hole: true, zero: true }]);
    await device.write(2 ** 20, Buffer.alloc(2 ** 20, 1));
    await device.write(3 * 2 ** 20, Buffer.alloc(2 ** 20, 1));
    expect(await device.extents(2 ** 20 + 5, 2 ** 21)).toEqual([
      { offset: 2 ** 20 + 5, length: 2 ** 20 - 5, hole: false, zero: false },
      { offset: 2 ** 21, length: 2 ** 20, hole: true, zero: true },
      { offset: 3 * 2 ** 20, length: 5, hole: false, zero: false },
    ]);
    expect(await device.extents(5 * 2 ** 20, 100)).toEqual([
      { offset: 5 * 2 ** 20, length: 100, hole: true, zero: true },
    ]);
  });

  test("allocate() reserves the space and changes no byte", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    await using device = await FileDevice.open(path, { ...RW, create: { size: 2 ** 20 } });
    await device.write(4096, Buffer.alloc(100, 7));
    await device.allocate(0, 2 ** 20);
    await device.flush();
    expect((await stat(path)).blocks * 512).toBeGreaterThanOrEqual(2 ** 20);
    const expected = Buffer.alloc(2 ** 20);
    expected.fill(7, 4096, 4196);
    expect(Buffer.compare(await readFile(path), expected)).toBe(0);
  });

  test("resize() cuts and extends, and later requests know", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    await using device = await FileDevice.open(path, { ...RW, create: { size: 8192 } });
    await device.resize(5001);
    expect([device.size, (await stat(path)).size]).toEqual([5001, 5001]);
    await expect(device.read(5000, new Uint8Array(2))).rejects.toThrow(RangeError);
    await device.resize(10_000);
    await device.write(9999, new Uint8Array(1));
  });

  test("disposal waits for what is in flight, and refuses what comes later", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "disk");
    const device = await FileDevice.open(path, { ...RW, create: { size: 64 * 2 ** 20 } });
    const settled: string[] = [];
    const writes = Array.from({ length: 16 }, (_, index) =>
      device.write(index * 2 ** 22, Buffer.alloc(2 ** 22, index + 1)).then(() => settled.push("write")),
    );
    await device[Symbol.asyncDispose]().then(() => settled.push("disposed"));
    expect(settled).toEqual([...Array(16).fill("write"), "disposed"]);
    await Promise.all(writes);
    await expect(device.read(0, new Uint8Array(1))).rejects.toThrow(`"${path}" is closed`);
    await expect(device.flush()).rejects.toThrow(TypeError);
    const content = await readFile(path);
    expect(content[15 * 2 ** 22]).toBe(16);
  });

  test("write() to a program that runs is refused as in use", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "program");
    await writeFile(path, await readFile("/bin/sleep"));
    await chmod(path, 0o700);
    const program = spawn(path, ["60"]);
    await once(program, "spawn");
    const opened = await FileDevice.open(path, RW).catch((error) => error);
    program.kill("SIGKILL");
    await once(program, "exit");
    expect(opened).toBeInstanceOf(BusyError);
  });
});

describe.skipIf(noLoopDevices !== undefined)(
  withReason("FileDevice on a small or failing device", noLoopDevices),
  () => {
    test.each(["auto", "off"] as const)(
      "write() on a full file system is ENOSPC, and works again once there is space (direct %s)",
      async (direct) => {
        await using small = await mountedFileSystem("ext4", 16 * 2 ** 20);
        const path = join(small.path, "disk");
        await using device = await FileDevice.open(path, { ...RW, direct, create: { size: 64 * 2 ** 20 } });
        const data = alignedBuffer(2 ** 20, 4096).fill(1);
        const fill = async () => {
          for (let offset = 0; offset < device.size; offset += data.length)
            await device.write(offset, data, { fua: true });
        };
        const error = await fill().catch((caught) => caught);
        expect(error).toBeInstanceOf(DeviceError);
        expect(error.errno).toBe("ENOSPC");
        expect(error.message).toMatch(/^Cannot write 1048576 bytes at [0-9]+ to ".*disk": ENOSPC$/);
        await device.zero(0, 8 * 2 ** 20);
        await device.flush(); // a write that failed at once is no reason to distrust the flush
        await device.write(0, data, { fua: true });
      },
    );

    const noExt4 = noFileSystem("ext4");
    test.skipIf(noExt4 !== undefined)(
      withReason("open() removes the file again that it could not make as large as asked for", noExt4),
      async () => {
        await using mounted = await mountedFileSystem("ext4", 16 * 2 ** 20);
        const path = join(mounted.path, "huge"); // ext4: 16 TiB at most
        const opening = FileDevice.open(path, { ...RW, create: { size: 2 ** 50 } });
        await expect(opening).rejects.toThrow(`Cannot create "${path}": too large for the file system (EFBIG)`);
        await expect(stat(path)).rejects.toThrow("ENOENT");
      },
    );

    test.skipIf(noExt4 !== undefined)(
      withReason("allocate() reserves space where the file system has no fallocate, and changes no byte", noExt4),
      async () => {
        await using mounted = await mountedFileSystem("ext4", 16 * 2 ** 20, "-O", "^extent,^64bit");
        const path = join(mounted.path, "disk");
        await using device = await FileDevice.open(path, { ...RW, create: { size: 3 * 2 ** 20 + 5 } });
        await device.write(2 ** 20 + 7, Buffer.from("kept"));
        await device.allocate(4096, device.size - 4096);
        await device.flush();
        expect((await stat(path)).blocks * 512).toBeGreaterThanOrEqual(3 * 2 ** 20 - 4096);
        const expected = Buffer.alloc(3 * 2 ** 20 + 5);
        expected.write("kept", 2 ** 20 + 7);
        expect(Buffer.compare(await readFile(path), expected)).toBe(0);
        await expect(run("fallocate", "--length", "4096", path)).rejects.toThrow(); // it has none, indeed
      },
    );

    test("allocate() on a full file system is ENOSPC", async () => {
      await using small = await mountedTmpfs(2 ** 20);
      await using device = await FileDevice.open(join(small.path, "disk"), { ...RW, create: { size: 2 ** 22 } });
      await expect(device.allocate(0, 2 ** 22)).rejects.toMatchObject({ errno: "ENOSPC" });
    });

    // The loop device's file lies on a full tmpfs: the page cache takes the write, the flush finds that it cannot land.
    test("flush() that failed is final: every later flush, write and zero fails with the same error", async () => {
      await using small = await mountedTmpfs(2 ** 20);
      const backing = join(small.path, "backing");
      await writeFile(backing, "");
      await truncate(backing, 2 ** 24);
      await using loop = await loopDevice(backing);
      await using device = await FileDevice.open(loop.path, { ...RW, direct: "off" });
      await device.write(0, Buffer.alloc(2 ** 23, 1));
      const results = await Promise.allSettled([device.flush(), device.flush(), device.flush()]);
      const errors = results.map((result) => (result.status === "rejected" ? result.reason : "succeeded"));
      expect(errors[0]).toBeInstanceOf(DeviceError);
      expect(errors[0].message).toMatch(/^Cannot flush "\/dev\/loop[0-9]+": (EIO|ENOSPC)$/);
      expect(errors).toEqual([errors[0], errors[0], errors[0]]);
      await expect(device.flush()).rejects.toBe(errors[0]);
      await expect(device.write(0, new Uint8Array(512))).rejects.toBe(errors[0]);
      await expect(device.zero(0, 512)).rejects.toBe(errors[0]);
      await expect(device.discard(0, 512)).rejects.toBe(errors[0]);
      await device.read(0, new Uint8Array(512)); // reading harms nothing
    });

    test("a block device says its size and sectors, and refuses to be resized", async () => {
      await using loop = await scratchLoopDevice(2 ** 20 + 8192, { sectorSize: 4096 });
      await using device = await FileDevice.open(loop.path, RW);
      expect(device).toMatchObject({ kind: "block", size: 2 ** 20 + 8192, blockSize: 4096 });
      expect(device.identity.rdev).toMatch(/^7:[0-9]+$/);
      await expect(device.resize(4096)).rejects.toThrow(UsageError);
      expect(await device.extents(5, 100)).toEqual([{ offset: 5, length: 100, hole: false, zero: false }]);
    });

    test("open() for writing claims a block device: a second opener is told, a reader is let in", async () => {
      await using loop = await scratchLoopDevice(2 ** 20);
      await using _first = await FileDevice.open(loop.path, RW);
      const error = await FileDevice.open(loop.path, RW).catch((caught) => caught);
      expect(error).toBeInstanceOf(BusyError);
      await using _reader = await FileDevice.open(loop.path, RO);
    });

    test.skipIf(noExt4 !== undefined)(
      withReason("open() for writing says where a block device is mounted", noExt4),
      async () => {
        await using mounted = await mountedFileSystem("ext4", 8 * 2 ** 20);
        await expect(FileDevice.open(mounted.device, RW)).rejects.toThrow(
          `Cannot open "${mounted.device}" for writing: it is in use (mounted at ${mounted.path})`,
        );
      },
    );

    const noBtrfs = noFileSystem("btrfs");
    test.skipIf(noBtrfs !== undefined)(
      withReason("open() for writing says where btrfs is mounted", noBtrfs),
      async () => {
        await using mounted = await mountedFileSystem("btrfs", 256 * 2 ** 20);
        await expect(FileDevice.open(mounted.device, RW)).rejects.toThrow(`(mounted at ${mounted.path})`);
      },
    );

    test("open() for writing of a disk says which of its partitions is mounted", async () => {
      await using directory = await scratchDirectory();
      const image = join(directory.path, "disk");
      await writeFile(image, "");
      await truncate(image, 32 * 2 ** 20);
      await using loop = await loopDevice(image);
      await run("sh", "-c", `printf 'label: dos\\nstart=2048\\n' | sfdisk --quiet ${loop.path}`);
      await run("partx", "--add", loop.path);
      const partition = `${loop.path}p1`;
      expect((await stat(partition)).isBlockDevice()).toBe(true);
      await run("mkfs.ext4", "-q", partition);
      const mountPoint = join(directory.path, "mnt with space");
      await mkdir(mountPoint);
      await run("mount", partition, mountPoint);
      try {
        const name = partition.slice("/dev/".length);
        await expect(FileDevice.open(loop.path, RW)).rejects.toThrow(`(${name} is mounted at ${mountPoint})`);
      } finally {
        await run("umount", mountPoint);
        await run("partx", "--delete", loop.path);
      }
    });
  },
);

/** What a descriptor of this process is open on; nothing where it was closed since it was listed. */
function linkOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return "";
  }
}

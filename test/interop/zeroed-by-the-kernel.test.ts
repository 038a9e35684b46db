// nbdfuse makes NBD_CMD_TRIM of a hole that is punched, and the kernel's loop driver punches holes not only to discard but also
// where a file system wants zeros (blkdev_issue_zeroout). So what is trimmed has to read as zeros, in parts of regions too.
import { open, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { randomFile, readRange } from "../support/files.ts";
import { mountedDevice, nbdLoopDevice, noNbdLoop } from "../support/nbd-loop.ts";
import { testWith } from "../support/needs.ts";
import { cloneOk } from "../support/run-clone.ts";
import { loopDevice, run, scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const programs = ["nbdfuse", "fusermount3", "losetup", "mkfs.ext4"] as const;

testWith(
  { programs, machine: noNbdLoop },
  "a hole that is punched into a clone's loop device reads as zeros",
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), 4 * MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await using server = await startServe({ clone: "copy.img", cwd, args: ["--no-hydrate"] });
    {
      await using device = await nbdLoopDevice(server.uri);
      for (const [offset, length] of [
        [MIB, 4 * KIB],
        [2 * MIB - 8 * KIB, 256 * KIB],
      ] as const) {
        await run("fallocate", "--punch-hole", "-o", String(offset), "-l", String(length), device.path);
        bytes.fill(0, offset, offset + length);
      }
    }
    await using device = await nbdLoopDevice(server.uri);
    expect(Buffer.compare(await readRange(device.path, 0, bytes.length), bytes)).toBe(0);
  },
);

testWith(
  { programs, machine: noNbdLoop },
  "ext4 on a clone never shows old bytes where a file was preallocated",
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const image = join(cwd, "disk.img");
    await writeFile(image, "");
    await truncate(image, 32 * MIB);
    await run("mkfs.ext4", "-q", image);
    {
      // What is free has held something.
      await using device = await loopDevice(image);
      await using mounted = await mountedDevice(device.path, "ext4");
      await randomFile(join(mounted.path, "old"), 20 * MIB);
      await run("sync", "-f", mounted.path);
      await rm(join(mounted.path, "old"));
    }
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await using server = await startServe({ clone: "copy.img", cwd, args: ["--no-hydrate"] });
    const length = 28 * KIB;
    const written = Buffer.alloc(length);
    written.fill(1, 8 * KIB, 12 * KIB);
    const names = Array.from({ length: 30 }, (_, index) => `f${index}`);
    {
      await using device = await nbdLoopDevice(server.uri);
      // So mounted, ext4 zeroes the rest of a short extent rather than split it.
      await using mounted = await mountedDevice(device.path, "ext4", "dioread_lock");
      for (const name of names) {
        const path = join(mounted.path, name);
        await run("fallocate", "-l", String(length), path);
        const file = await open(path, "r+");
        await file.write(written, 8 * KIB, 4 * KIB, 8 * KIB);
        await file.sync();
        await file.close();
      }
    }
    {
      await using device = await nbdLoopDevice(server.uri);
      await using mounted = await mountedDevice(device.path, "ext4");
      for (const name of names) expect((await readFile(join(mounted.path, name))).equals(written), name).toBe(true);
    }
    await stopServe(server);
  },
);

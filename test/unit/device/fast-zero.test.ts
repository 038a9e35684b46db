// What canZeroFast() answers on every kind of file and device, and that zeroing without punching really allocates.
import { existsSync } from "node:fs";
import { readFile, stat, truncate, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { expect, test } from "vitest";
import { FileDevice } from "../../../src/device/file-device.ts";
import {
  loopDevice,
  mountedFileSystem,
  mountedRamfs,
  noFileSystem,
  noLoopDevices,
  run,
  type Scratch,
  scratchDirectory,
  scratchLoopDevice,
  withReason,
} from "../../support/scratch.ts";

const RW = { access: "read-write" } as const;
const MIB = 2 ** 20;

interface Place {
  name: string;
  skip: string | undefined;
  open(): Promise<Scratch>;
  punches: boolean;
  zeroes: boolean;
}

const places: Place[] = [
  {
    name: "tmpfs",
    skip: existsSync("/dev/shm") ? undefined : "needs /dev/shm",
    open: () => scratchDirectory("/dev/shm"),
    punches: true,
    zeroes: false,
  },
  { name: "ramfs", skip: noLoopDevices, open: mountedRamfs, punches: false, zeroes: false },
  ...["ext4", "xfs", "btrfs"].map((type) => ({
    name: type,
    skip: noFileSystem(type),
    open: () => mountedFileSystem(type, 512 * MIB),
    punches: true,
    zeroes: true,
  })),
  {
    name: "ext4 without extents, as it was before",
    skip: noFileSystem("ext4"),
    open: () => mountedFileSystem("ext4", 32 * MIB, "-O", "^extent,^64bit"),
    punches: true,
    zeroes: false,
  },
];

for (const { name, skip, open, punches, zeroes } of places) {
  test.skipIf(skip !== undefined)(
    withReason(
      `On ${name} canZeroFast() is ${punches} if it may punch, else ${zeroes}, and leaves nothing behind`,
      skip,
    ),
    async () => {
      await using place = await open();
      const path = join(place.path, "disk");
      await using device = await FileDevice.open(path, { ...RW, create: { size: 3 * MIB + 5 } });
      await device.write(3 * MIB, Buffer.from("tail!"));
      await device.flush();
      const { size, blocks } = await stat(path);
      for (let time = 0; time < 2; time += 1) {
        expect(await device.canZeroFast({ mayPunch: false })).toBe(zeroes);
        expect(await device.canZeroFast({ mayPunch: true })).toBe(punches);
      }
      await device.flush();
      expect(await stat(path)).toMatchObject({ size, blocks });
      expect((await readFile(path)).subarray(3 * MIB).toString()).toBe("tail!");
    },
  );

  test.skipIf(skip !== undefined)(
    withReason(`On ${name} zero() that may not punch allocates what was a hole, to the last byte`, skip),
    async () => {
      await using place = await open();
      const path = join(place.path, "disk");
      await using device = await FileDevice.open(path, { ...RW, create: { size: 3 * MIB + 5 } });
      await device.zero(MIB, 2 * MIB + 5, { mayPunch: false, fua: true });
      const { size, blocks } = await stat(path);
      expect(size).toBe(3 * MIB + 5);
      expect(blocks * 512).toBeGreaterThanOrEqual(2 * MIB + 5);
      expect((await readFile(path)).every((byte) => byte === 0)).toBe(true);
    },
  );
}

test("canZeroFast() of what is open for reading only is false", async () => {
  await using scratch = await scratchDirectory();
  const path = join(scratch.path, "disk");
  await writeFile(path, "content");
  await using device = await FileDevice.open(path, { access: "read-only" });
  expect(await device.canZeroFast({ mayPunch: true })).toBe(false);
});

test.skipIf(noLoopDevices !== undefined)(
  withReason(
    "canZeroFast() of a block device is what its request queue says, for a partition that of the disk",
    noLoopDevices,
  ),
  async () => {
    await using loop = await scratchLoopDevice(32 * MIB);
    await run("sh", "-c", `printf 'label: dos\\nstart=2048\\n' | sfdisk --quiet ${loop.path}`);
    await run("partx", "--add", loop.path);
    try {
      const attribute = `/sys/block/${basename(loop.path)}/queue/write_zeroes_max_bytes`;
      const can = Number(await readFile(attribute, "utf8")) > 0;
      for (const path of [`${loop.path}p1`, loop.path]) {
        await using device = await FileDevice.open(path, RW);
        expect(await device.canZeroFast({ mayPunch: true })).toBe(can);
        expect(await device.canZeroFast({ mayPunch: false })).toBe(can);
      }
    } finally {
      await run("partx", "--delete", loop.path);
    }
  },
);

test.skipIf(noLoopDevices !== undefined)(
  withReason("canZeroFast() of a block device that would be sent the zeros is false", noLoopDevices),
  async () => {
    await using mounted = await mountedRamfs(); // whose files cannot punch, so that no loop device over them can
    const backing = join(mounted.path, "backing");
    await writeFile(backing, "");
    await truncate(backing, MIB);
    await using loop = await loopDevice(backing);
    await using device = await FileDevice.open(loop.path, RW);
    expect(await device.canZeroFast({ mayPunch: true })).toBe(false);
    await device.zero(0, MIB);
  },
);

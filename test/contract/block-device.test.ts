/** Every device and filter of this layer, under the one contract. */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BlockDevice } from "../../src/device/block-device.ts";
import { FileDevice, type FileDeviceOptions } from "../../src/device/file-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { PaddedDevice } from "../../src/device/filters/padded.ts";
import { SliceDevice } from "../../src/device/filters/slice.ts";
import { StatsDevice } from "../../src/device/filters/stats.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { FaultyDevice } from "../support/faulty-device.ts";
import {
  mountedFileSystem,
  mountedRamfs,
  noFileSystem,
  noLoopDevices,
  scratchDirectory,
  scratchLoopDevice,
} from "../support/scratch.ts";
import { blockDeviceContract } from "./block-device.contract.ts";

blockDeviceContract({ name: "MemoryDevice", open: async (size) => new MemoryDevice({ size }) });

blockDeviceContract({ name: "FileDevice, buffered", open: (size) => newFile(size, { direct: "off" }) });
blockDeviceContract({ name: "FileDevice, direct writes", open: (size) => newFile(size, { direct: "auto" }) });
blockDeviceContract({
  name: "FileDevice, direct reads and writes",
  open: (size) => newFile(size, { direct: "auto", directReads: true }),
});
blockDeviceContract({
  name: "FileDevice on tmpfs",
  skip: existsSync("/dev/shm") ? undefined : "needs /dev/shm",
  open: (size) => newFile(size, { directReads: true }, "/dev/shm"),
});

for (const type of ["xfs", "btrfs"]) {
  blockDeviceContract({
    name: `FileDevice on ${type}`,
    skip: noFileSystem(type),
    open: async (size) => {
      const mounted = await mountedFileSystem(type, 512 * 2 ** 20);
      return new Disposing(await newFile(size, {}, mounted.path), mounted);
    },
  });
}

blockDeviceContract({
  name: "FileDevice on ramfs, which can neither punch nor tell holes",
  skip: noLoopDevices,
  open: async (size) => {
    const mounted = await mountedRamfs();
    return new Disposing(await newFile(size, {}, mounted.path), mounted);
  },
});

for (const sectorSize of [512, 4096]) {
  for (const direct of ["auto", "off"] as const) {
    blockDeviceContract({
      name: `FileDevice on a block device with sectors of ${sectorSize}, direct ${direct}`,
      skip: noLoopDevices,
      sizeUnit: sectorSize,
      open: async (size) => {
        const loop = await scratchLoopDevice(size, { sectorSize });
        return new Disposing(await FileDevice.open(loop.path, { access: "read-write", direct }), loop);
      },
    });
  }
}

blockDeviceContract({
  name: "SliceDevice, unaligned, of a FileDevice",
  open: async (size) => new SliceDevice(await newFile(size + 5000, {}), { start: 1234, size }),
});
blockDeviceContract({
  name: "SliceDevice of a MemoryDevice",
  open: async (size) => new SliceDevice(new MemoryDevice({ size: size + PAGE }), { start: PAGE, size }),
});
blockDeviceContract({
  name: "PaddedDevice of whole sectors",
  sizeUnit: 512,
  open: async (size) => new PaddedDevice(new MemoryDevice({ size })),
});
blockDeviceContract({ name: "StatsDevice", open: async (size) => new StatsDevice(new MemoryDevice({ size })) });
blockDeviceContract({
  name: "FaultyDevice without faults",
  open: async (size) => new FaultyDevice(new MemoryDevice({ size }), {}),
});

const PAGE = 4096;

async function newFile(size: number, options: Partial<FileDeviceOptions>, parent = tmpdir()): Promise<BlockDevice> {
  const directory = await scratchDirectory(parent);
  const path = join(directory.path, "disk.img");
  const device = await FileDevice.open(path, { access: "read-write", ...options, create: { size } });
  return new Disposing(device, directory);
}

/** Disposes of something else together with a device. */
class Disposing extends FilterDevice {
  #other: AsyncDisposable | undefined;

  constructor(inner: BlockDevice, other: AsyncDisposable) {
    super(inner);
    this.#other = other;
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    const other = this.#other;
    this.#other = undefined;
    await other?.[Symbol.asyncDispose]();
  }
}

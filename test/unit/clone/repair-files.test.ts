// A device that is to be overwritten, one of whose blocks cannot be read, or whose writes fail at one place: a real file behind
// the face of a device. What could be read is in the backup, and whatever happens says where that is.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import { overwriteDevice } from "../../../src/clone/repair-files.ts";
import { FileDevice } from "../../../src/device/file-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { DESCRIPTOR_BYTES } from "../../../src/metadata/descriptor.ts";
import { planRepair } from "../../../src/metadata/repair.ts";
import { twoLevelImage } from "../../support/metadata-image.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const BLOCK = 4096;

interface Bad {
  /** Blocks that cannot be read until they were written. */
  read?: number[];
  /** A block that cannot be written. */
  write?: number;
  /** What stands behind the metadata. */
  behind?: Buffer;
}

/** Metadata whose space map's first bitmap is unreadable, and the plan of its repair. */
async function damagedDevice({ read = [], write, behind = Buffer.alloc(0) }: Bad) {
  const directory = await scratchDirectory();
  const path = join(directory.path, "device");
  const bytes = Buffer.concat([twoLevelImage().bytes, behind]);
  bytes.fill(0xff, 3 * BLOCK, 4 * BLOCK);
  await writeFile(path, bytes);
  const file = await FileDevice.open(path, { access: "read-write", direct: "off" });
  const unreadable = new Set(read);
  const meets = (block: number, offset: number, length: number) =>
    offset < (block + 1) * BLOCK && offset + length > block * BLOCK;
  const faults = {
    kind: "block" as const,
    read: async (offset: number, buffer: Uint8Array) => {
      if ([...unreadable].some((block) => meets(block, offset, buffer.length))) {
        throw new DeviceError(`Cannot read ${buffer.length} bytes at ${offset} from "device": EIO`, { errno: "EIO" });
      }
      await file.read(offset, buffer);
    },
    write: async (offset: number, data: Uint8Array) => {
      if (write !== undefined && meets(write, offset, data.length)) {
        throw new DeviceError(`Cannot write ${data.length} bytes at ${offset} to "device": EIO`, { errno: "EIO" });
      }
      await file.write(offset, data);
      for (const block of unreadable) if (meets(block, offset, data.length)) unreadable.delete(block);
    },
  };
  const device = new Proxy(file, {
    get: (target, name) => {
      if (Object.hasOwn(faults, name)) return faults[name as keyof typeof faults];
      const value = Reflect.get(target, name, target) as unknown;
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const plan = await planRepair(device, {});
  if (!plan.ok) throw new Error(plan.reason);
  const dispose = async (): Promise<void> => {
    await file[Symbol.asyncDispose]();
    await directory[Symbol.asyncDispose]();
  };
  return { bytes, path, device, plan, backup: join(directory.path, "backup"), [Symbol.asyncDispose]: dispose };
}

describe("overwriteDevice()", () => {
  test("backs up what can be read of a device with bad blocks, says which they are, and mends it", async () => {
    await using made = await damagedDevice({ read: [3, 20, 21] });
    const { device, plan, backup, bytes } = made;
    expect(await overwriteDevice(device, plan, { backup })).toEqual([
      { start: 3, end: 4 },
      { start: 20, end: 22 },
    ]);
    const kept = await readFile(backup);
    for (const block of [3, 20, 21]) bytes.fill(0, block * BLOCK, (block + 1) * BLOCK);
    expect(Buffer.compare(kept, bytes.subarray(0, kept.length))).toBe(0);
    expect(await checkMetadata(device)).toMatchObject({ verdict: "clean" });
  });

  test("leaves nothing of a descriptor that cannot be read where the repaired metadata has none", async () => {
    const slots = [64, 65, 80, 95]; // of both: the image has 64 blocks
    await using made = await damagedDevice({ read: slots, behind: Buffer.alloc(DESCRIPTOR_BYTES, 0x77) });
    const { device, plan, backup, path } = made;
    expect(plan).toMatchObject({ descriptor: null });
    await overwriteDevice(device, plan, { backup });
    expect(await checkMetadata(device)).toMatchObject({ verdict: "clean" });
    const behind = (await readFile(path)).subarray(64 * BLOCK);
    expect([behind.length, behind.every((byte) => byte === 0)]).toEqual([DESCRIPTOR_BYTES, true]);
  });

  test("whose writes fail says that the device holds no clone, and where the backup is", async () => {
    await using made = await damagedDevice({ write: 5 });
    const { device, plan, backup, bytes } = made;
    const failure = await overwriteDevice(device, plan, { backup }).catch((error: unknown) => error);
    expect(failure).toMatchObject({
      message: expect.stringMatching(/^Cannot repair ".*device" in place: Cannot write .* EIO$/),
      errno: "EIO",
      hint: expect.stringContaining(`may hold no clone now; what it held is kept as "${backup}"`),
    });
    const kept = await readFile(backup);
    expect(Buffer.compare(kept, bytes.subarray(0, kept.length))).toBe(0);
  });
});

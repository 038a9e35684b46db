// A destination that remembers some of what was flushed to it, to know it by.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import { SampledDevice } from "../../../src/clone/sampled-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";

const SIZE = 1024 * 1024;
const BLOCK = 4096;
const ANOTHER = "it is another disk, or has lost what was flushed to it";

/** A disk whose flushes fail when they are told to. */
class Disk extends MemoryDevice {
  failing = false;

  override async flush(): Promise<void> {
    if (this.failing) throw new DeviceError("Cannot flush: ECONNRESET", { errno: "ECONNRESET" });
    await super.flush();
  }
}

function made(content = 0) {
  const disk = new Disk({ size: SIZE, content: Buffer.alloc(SIZE, content) });
  const device = new SampledDevice(disk, () => 0.5);
  const emptied = new MemoryDevice({ size: SIZE });
  return {
    disk,
    device,
    /** What is told where an emptied disk is there. */
    inEmptied: () => device.difference((offset, buffer) => emptied.read(offset, buffer)),
    inItself: () => device.difference((offset, buffer) => disk.read(offset, buffer)),
  };
}

describe("SampledDevice", () => {
  test("tells another disk by what was flushed, and by nothing else", async () => {
    const { device, inEmptied, inItself } = made();
    await device.write(0, Buffer.alloc(BLOCK, 1));
    expect(await inEmptied()).toBeUndefined(); // it may have been lost by right
    await device.flush();
    expect(await inEmptied()).toBe(ANOTHER);
    expect(await inItself()).toBeUndefined();
  });

  test("remembers what was there before anything was written", async () => {
    const { device, inEmptied, inItself } = made(5);
    await device.remember([
      { offset: 0, length: BLOCK },
      { offset: SIZE - 512, length: 512 },
    ]);
    expect(await inEmptied()).toBe(ANOTHER);
    await device.write(BLOCK, Buffer.alloc(BLOCK, 6)); // beside it
    expect(await inItself()).toBeUndefined();
  });

  test.for(["write", "zero", "discard"] as const)("forgets what a %s changes, before it is made", async (kind) => {
    const { disk, device, inEmptied } = made();
    await device.write(BLOCK, Buffer.alloc(BLOCK, 1));
    await device.flush();
    expect(await inEmptied()).toBe(ANOTHER);
    disk.write =
      disk.zero =
      disk.discard =
        () => Promise.reject(new DeviceError("Cannot write: EIO", { errno: "EIO" }));
    const change = kind === "write" ? device.write(2 * BLOCK - 1, Buffer.alloc(2)) : device[kind](2 * BLOCK - 1, 2);
    await expect(change).rejects.toThrow("EIO");
    expect(await inEmptied()).toBeUndefined();
  });

  test("forgets what a flush that fails may have lost, and keeps what was durable before", async () => {
    const { disk, device, inEmptied } = made();
    await device.write(0, Buffer.alloc(BLOCK, 1));
    disk.failing = true;
    await expect(device.flush()).rejects.toThrow("ECONNRESET");
    disk.failing = false;
    await device.flush();
    expect(await inEmptied()).toBeUndefined();
    await device.write(0, Buffer.alloc(BLOCK, 1));
    await device.flush();
    disk.failing = true;
    await device.write(BLOCK, Buffer.alloc(BLOCK, 2));
    await expect(device.flush()).rejects.toThrow("ECONNRESET");
    expect(await inEmptied()).toBe(ANOTHER);
  });

  test("a flush does not cover what is written while it runs", async () => {
    const { disk, device, inEmptied } = made();
    let end = (): void => {};
    disk.flush = () =>
      new Promise((resolve) => {
        end = resolve;
      });
    const flushing = device.flush();
    await device.write(0, Buffer.alloc(BLOCK, 1));
    end();
    await flushing;
    expect(await inEmptied()).toBeUndefined();
  });

  test("does not remember what was written at the same time as something else in its place", async () => {
    const { device, inEmptied } = made();
    await Promise.all([device.write(0, Buffer.alloc(BLOCK, 1)), device.write(512, Buffer.alloc(BLOCK, 2))]);
    await device.flush();
    expect(await inEmptied()).toBeUndefined();
  });

  test("a disk is not known again where more than half of what was flushed cannot be read", async () => {
    const { disk, device, inItself } = made();
    for (let i = 0; i < 8; i++) await device.write(2 * i * BLOCK, Buffer.alloc(BLOCK, 1));
    await device.flush();
    const dying = (bad: number, content: MemoryDevice) => async (offset: number, buffer: Uint8Array) => {
      if (offset < 2 * bad * BLOCK) throw new DeviceError("Cannot read: EIO", { errno: "EIO" });
      await content.read(offset, buffer);
    };
    for (const bad of [0, 1, 4]) expect(await device.difference(dying(bad, disk))).toBeUndefined();
    for (const bad of [5, 8]) {
      await expect(device.difference(dying(bad, disk))).rejects.toMatchObject({ errno: "EIO", away: true });
    }
    expect(await device.difference(dying(7, new MemoryDevice({ size: SIZE })))).toBe(ANOTHER);
    expect(await inItself()).toBeUndefined();
  });

  test("what is changed through other connections while it is looked at counts neither way", async () => {
    const { disk, device } = made();
    for (let i = 0; i < 3; i++) await device.write(2 * i * BLOCK, Buffer.alloc(BLOCK, 1));
    await device.flush();
    const changing = async (offset: number, buffer: Uint8Array) => {
      if (offset === 0) return await disk.read(offset, buffer);
      await device.write(offset, Buffer.alloc(BLOCK, 2));
      if (offset === 2 * BLOCK) throw new DeviceError("Cannot read: EIO", { errno: "EIO" });
      await disk.read(offset, buffer);
    };
    expect(await device.difference(changing)).toBeUndefined();
  });

  test.for(["ECONNRESET", "EACCES", "ENXIO"])("a disk that cannot be reached is asked again: %s", async (errno) => {
    const { device } = made();
    for (let i = 0; i < 8; i++) await device.write(2 * i * BLOCK, Buffer.alloc(BLOCK, 1));
    await device.flush();
    const probe = async (offset: number, buffer: Uint8Array) => {
      if (offset === 0) throw new DeviceError(`Cannot read: ${errno}`, { errno });
      buffer.fill(1);
    };
    await expect(device.difference(probe)).rejects.toThrow(errno);
  });

  test("never takes a disk for another one that holds all that was flushed, whatever was done to it", async () => {
    const range = fc.tuple(fc.nat(63), fc.integer({ min: 1, max: 8 }));
    const action = fc.oneof(
      fc.record({ kind: fc.constant("write" as const), range, byte: fc.integer({ min: 1, max: 255 }) }),
      fc.record({ kind: fc.constantFrom("zero" as const, "discard" as const), range }),
      fc.record({ kind: fc.constant("flush" as const), fails: fc.boolean() }),
      fc.record({ kind: fc.constant("wait" as const) }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(action, { maxLength: 80 }), async (actions) => {
        const { disk, device, inItself } = made();
        let durable = Buffer.alloc(SIZE);
        let underWay: Promise<unknown>[] = [];
        for (const each of actions) {
          if (each.kind === "wait") {
            await Promise.all(underWay);
            underWay = [];
          } else if (each.kind === "flush") {
            await Promise.all(underWay);
            underWay = [];
            disk.failing = each.fails;
            await device.flush().catch(() => {});
            if (each.fails) await disk.write(0, durable); // all that was not flushed is lost
            durable = Buffer.alloc(SIZE);
            await disk.read(0, durable);
          } else {
            const offset = each.range[0] * BLOCK;
            const length = Math.min(each.range[1] * BLOCK, SIZE - offset);
            underWay.push(
              each.kind === "write"
                ? device.write(offset, Buffer.alloc(length, each.byte))
                : device[each.kind](offset, length),
            );
          }
        }
        await Promise.all(underWay);
        expect(await inItself()).toBeUndefined();
      }),
      { numRuns: 150 },
    );
  });

  test("keeps no more samples than it may, of old and new alike", async () => {
    const { device } = made();
    const asked: number[] = [];
    for (let round = 0; round < 4; round++) {
      for (let i = 0; i < 60; i++) await device.write((round * 60 + i) * BLOCK, Buffer.alloc(BLOCK, 1 + round));
      await device.flush();
    }
    await device.difference(async (offset) => void asked.push(offset));
    expect(asked.length).toBe(32);
    expect(asked.some((offset) => offset < 120 * BLOCK)).toBe(true);
    expect(asked.some((offset) => offset >= 180 * BLOCK)).toBe(true);
  });
});

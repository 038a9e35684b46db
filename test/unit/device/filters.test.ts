import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { PaddedDevice } from "../../../src/device/filters/padded.ts";
import { ReadOnlyDevice } from "../../../src/device/filters/read-only.ts";
import { SliceDevice } from "../../../src/device/filters/slice.ts";
import { StatsDevice } from "../../../src/device/filters/stats.ts";
import { locateRange } from "../../../src/device/mapped-range.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";

async function content(device: BlockDevice, offset = 0, length = device.size - offset): Promise<string> {
  const buffer = Buffer.alloc(length, "?");
  await device.read(offset, buffer);
  return buffer.toString("latin1");
}

describe("PaddedDevice", () => {
  test("rounds an odd size up, reads zeros behind the end, and drops what is written there", async () => {
    const inner = new MemoryDevice({ size: 515, content: Buffer.alloc(515, "a") });
    const device = new PaddedDevice(inner);
    expect(device.size).toBe(1024);
    expect(await content(device, 512)).toBe("aaa".padEnd(512, "\0"));
    await device.write(510, Buffer.alloc(514, "b"));
    expect(await content(inner, 508)).toBe("aabbbbb");
    expect(await content(device, 508)).toBe("aabbbbb".padEnd(516, "\0"));
    await device.write(600, Buffer.alloc(10, "c"), { fua: true });
    await device.discard(700, 100);
    await device.zero(514, 510);
    expect(await content(device, 508)).toBe("aabbbb\0".padEnd(516, "\0"));
    await expect(device.write(1020, Buffer.alloc(5))).rejects.toThrow(RangeError);
  });

  test("reads and writes at once as it does otherwise, the padding too, as far as the device beneath does", async () => {
    const inner = new MemoryDevice({ size: 515, content: Buffer.alloc(515, "a") });
    const device = new PaddedDevice(inner);
    const attempt = (offset: number, length: number) => {
      const buffer = Buffer.alloc(length, "?");
      return device.tryRead(offset, buffer) ? buffer.toString("latin1") : undefined;
    };
    expect(attempt(512, 512)).toBe("aaa".padEnd(512, "\0"));
    expect(attempt(600, 2)).toBe("\0\0");
    expect(device.tryWrite(510, Buffer.alloc(514, "b"))).toBe(true);
    expect(device.tryWrite(600, Buffer.alloc(10, "c"))).toBe(true);
    expect(await content(device, 508)).toBe("aabbbbb".padEnd(516, "\0"));
    expect(() => device.tryRead(1020, Buffer.alloc(5))).toThrow(RangeError);

    const late = new PaddedDevice(new FaultyDevice(inner, {}));
    expect(late.tryRead(512, Buffer.alloc(512))).toBe(false);
    expect(late.tryWrite(512, Buffer.alloc(512))).toBe(false);
    expect(late.tryRead(515, Buffer.alloc(509))).toBe(true); // nothing of it is beneath
    expect(await late.canZeroFast({ mayPunch: true })).toBe(true);
  });

  test("extents() shows the padding as a hole, of one piece with a hole before it", async () => {
    const data = new PaddedDevice(new MemoryDevice({ size: 4097, content: Buffer.alloc(4097, 1) }));
    expect(await data.extents(100, 4508)).toEqual([
      { offset: 100, length: 3997, hole: false, zero: false },
      { offset: 4097, length: 511, hole: true, zero: true },
    ]);
    const hole = new PaddedDevice(new MemoryDevice({ size: 4097 }));
    expect(await hole.extents(0, 4608)).toEqual([{ offset: 0, length: 4608, hole: true, zero: true }]);
    expect(await data.extents(4200, 10)).toEqual([{ offset: 4200, length: 10, hole: true, zero: true }]);
  });

  test("of a read-only device refuses writes into the padding too", async () => {
    const device = new PaddedDevice(new MemoryDevice({ size: 1, readOnly: true }));
    await expect(device.write(100, new Uint8Array(1))).rejects.toThrow(TypeError);
    await expect(device.zero(100, 1)).rejects.toThrow(TypeError);
    await expect(device.discard(100, 1)).rejects.toThrow(TypeError);
  });
});

test("SliceDevice sees and changes only its bytes, counted from its start", async () => {
  const inner = new MemoryDevice({ size: 16_384, content: Buffer.alloc(16_384, "a") });
  const device = new SliceDevice(inner, { start: 4096, size: 8192 });
  await device.write(0, Buffer.from("b"));
  await device.zero(8191, 1);
  await device.discard(4096, 100);
  expect(await content(inner, 4095, 3)).toBe("aba");
  expect(await content(inner, 12_287, 2)).toBe("\0a");
  await expect(device.write(8190, Buffer.alloc(3))).rejects.toThrow(RangeError);
  await device.discard(0, 4096);
  expect(await device.extents(0, 8192)).toEqual([
    { offset: 0, length: 4096, hole: true, zero: true },
    { offset: 4096, length: 4096, hole: false, zero: false },
  ]);
  expect(() => new SliceDevice(inner, { start: 16_000, size: 385 })).toThrow(RangeError);
  expect(await device.canZeroFast({ mayPunch: true })).toBe(true);
  expect(await new SliceDevice(inner, { start: 100, size: 1000 }).canZeroFast({ mayPunch: true })).toBe(false);
});

test("ReadOnlyDevice reads, and refuses every change before it reaches the device", async () => {
  const stats = new StatsDevice(new MemoryDevice({ size: 4096, content: Buffer.from("abc") }));
  const device = new ReadOnlyDevice(stats);
  expect(device.readOnly).toBe(true);
  expect(await content(device, 0, 3)).toBe("abc");
  await expect(device.write(0, new Uint8Array(1))).rejects.toThrow(TypeError);
  expect(() => device.tryWrite(0, new Uint8Array(1))).toThrow(TypeError);
  expect(await device.canZeroFast()).toBe(false);
  await expect(device.zero(0, 1)).rejects.toThrow(TypeError);
  await expect(device.discard(0, 1)).rejects.toThrow(TypeError);
  await expect(device.reflinkFrom(stats, 0, 0, 1)).rejects.toThrow(TypeError);
  await expect(device.write(4096, new Uint8Array(1))).rejects.toThrow(RangeError);
  await device.flush();
  expect(stats.stats).toMatchObject({ read: { operations: 1, bytes: 3 }, write: { operations: 0 } });
  expect(stats.stats.flush.operations).toBe(0);
});

test("StatsDevice counts what succeeded", async () => {
  const device = new StatsDevice(new FaultyDevice(new MemoryDevice({ size: 65536 }), { failWrite: [1] }));
  await device.write(0, Buffer.alloc(100));
  await expect(device.write(0, Buffer.alloc(100))).rejects.toThrow(DeviceError);
  await device.zero(0, 300);
  await device.discard(0, 400);
  await content(device, 0, 10);
  await content(device, 0, 20);
  await device.flush();
  expect(await device.reflinkFrom(new MemoryDevice({ size: 4096 }), 0, 0, 4096)).toBe(false);
  expect(device.stats).toEqual({
    read: { operations: 2, bytes: 30 },
    write: { operations: 1, bytes: 100 },
    zero: { operations: 1, bytes: 300 },
    discard: { operations: 1, bytes: 400 },
    reflink: { operations: 0, bytes: 0 },
    flush: { operations: 1, bytes: 0 },
  });
});

test("StatsDevice counts what was done at once, and not what was not", () => {
  const device = new StatsDevice(new MemoryDevice({ size: 4096 }));
  expect(device.tryRead(0, Buffer.alloc(10))).toBe(true);
  expect(device.tryWrite(0, Buffer.alloc(20))).toBe(true);
  expect(device.stats).toMatchObject({ read: { operations: 1, bytes: 10 }, write: { operations: 1, bytes: 20 } });
  const late = new StatsDevice(new FaultyDevice(device, {}));
  expect([late.tryRead(0, Buffer.alloc(10)), late.tryWrite(0, Buffer.alloc(20))]).toEqual([false, false]);
  expect(late.stats).toMatchObject({ read: { operations: 0 }, write: { operations: 0 } });
});

test("FaultyDevice fails the operations it is told to, with the errno it is told, and no others", async () => {
  const device = new FaultyDevice(new MemoryDevice({ size: 65536, name: "disk" }), {
    failRead: [1],
    failWrite: ({ offset }) => offset >= 4096,
    failFlush: [0],
    errno: "ENOSPC",
  });
  await content(device, 0, 5);
  const error = await device.read(7, Buffer.alloc(5)).catch((caught) => caught);
  expect(error).toBeInstanceOf(DeviceError);
  expect(error).toMatchObject({
    message: 'Cannot read 5 bytes at 7 from "disk": ENOSPC',
    errno: "ENOSPC",
    offset: 7,
    length: 5,
  });
  await content(device, 0, 5);
  await device.write(0, Buffer.alloc(1));
  for (const change of ["zero", "discard"] as const) {
    await expect(device[change](4096, 1)).rejects.toThrow(`Cannot ${change} 1 bytes at 4096 of "disk": ENOSPC`);
  }
  await expect(device.write(4096, Buffer.alloc(1))).rejects.toThrow('Cannot write 1 bytes at 4096 to "disk": ENOSPC');
  await expect(device.flush()).rejects.toThrow('Cannot flush "disk": ENOSPC');
  await device.flush();
});

test("locateRange() follows views as far as the range is held in one piece", () => {
  const memory = new MemoryDevice({ size: 10_000 });
  const slice = new SliceDevice(memory, { start: 1000, size: 5001 });
  const padded = new PaddedDevice(new ReadOnlyDevice(new StatsDevice(slice)));
  expect(locateRange(padded, 10, 20)).toEqual({ device: memory, offset: 1010 });
  expect(locateRange(padded, 5000, 1)).toEqual({ device: memory, offset: 6000 });
  expect(locateRange(padded, 5000, 2).device).toBe(padded);
  const faulty = new FaultyDevice(memory, {});
  expect(locateRange(faulty, 5, 1).device).toBe(faulty);
  expect(locateRange(memory, 5, 1)).toEqual({ device: memory, offset: 5 });
});

import { expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";

test("MemoryDevice.extents() reports pages never written, zeroed or discarded as holes", async () => {
  const device = new MemoryDevice({ size: 2 ** 40 + 100 });
  await device.write(2 ** 40 - 4096, Buffer.alloc(4097, 1));
  await device.write(4095, Buffer.alloc(2, 1));
  expect(await device.extents(0, device.size)).toEqual([
    { offset: 0, length: 8192, hole: false, zero: false },
    { offset: 8192, length: 2 ** 40 - 4096 - 8192, hole: true, zero: true },
    { offset: 2 ** 40 - 4096, length: 4096 + 100, hole: false, zero: false },
  ]);
  await device.zero(0, 4096);
  await device.discard(4096, 4096);
  expect(await device.extents(0, 10_000)).toEqual([{ offset: 0, length: 10_000, hole: true, zero: true }]);
});

test("MemoryDevice.zero() keeps the pages where it may not punch, and makes them", async () => {
  const device = new MemoryDevice({ size: 16_384, content: Buffer.alloc(4096, 1) });
  await device.zero(0, 8192, { mayPunch: false });
  expect(await device.extents(0, 16_384)).toEqual([
    { offset: 0, length: 8192, hole: false, zero: false },
    { offset: 8192, length: 8192, hole: true, zero: true },
  ]);
  const buffer = Buffer.alloc(8192, 9);
  await device.read(0, buffer);
  expect(Buffer.compare(buffer, Buffer.alloc(8192))).toBe(0);
});

test("MemoryDevice copies the content that it is made with, and what is written", async () => {
  const content = Buffer.from("abcd");
  const device = new MemoryDevice({ size: 8, content });
  content.fill(0);
  const data = Buffer.from("ef");
  await device.write(4, data);
  data.fill(0);
  const buffer = Buffer.alloc(8);
  await device.read(0, buffer);
  expect(buffer.toString()).toBe("abcdef\0\0");
  expect(() => new MemoryDevice({ size: 3, content })).toThrow(RangeError);
  expect(() => new MemoryDevice({ size: -1 })).toThrow(RangeError);
});

test("MemoryDevice made read-only refuses every change", async () => {
  const device = new MemoryDevice({ size: 4096, readOnly: true, content: Buffer.from("abc") });
  await expect(device.write(0, new Uint8Array(1))).rejects.toThrow(TypeError);
  await expect(device.zero(0, 1)).rejects.toThrow(TypeError);
  await expect(device.discard(0, 1)).rejects.toThrow(TypeError);
});

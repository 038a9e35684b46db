// What a clone device tells as touched: the bytes that clients need of the source, or would need in a clone of which nothing
// is hydrated yet.
import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { makeClone, type TestCloneOptions } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { noise } from "../../support/layout.ts";

const REGION = 4096;
const SIZE = 16 * REGION;

/** A clone, and what it told as touched. */
async function makeTouched(options: TestCloneOptions = {}) {
  const touched: [number, number][] = [];
  const clone = await makeClone({ onTouch: (offset, length) => void touched.push([offset, length]), ...options });
  const { device } = clone;
  const bytes = (regions: number) => noise(regions * REGION, 3);
  return { ...clone, touched, device, bytes };
}

describe("CloneDevice tells as touched", () => {
  test("what clients read, from wherever it comes", async () => {
    const { device, touched } = await makeTouched({ hydrated: [{ start: 4, end: 8 }] });
    await device.read(100, new Uint8Array(200)); // of the source
    await device.read(5 * REGION, new Uint8Array(REGION)); // of the destination
    expect(device.tryRead(7 * REGION, new Uint8Array(2 * REGION))).toBe(false); // of both
    await device.read(7 * REGION, new Uint8Array(2 * REGION));
    expect(device.tryRead(6 * REGION, new Uint8Array(512))).toBe(true);
    expect(touched).toEqual([
      [100, 200],
      [5 * REGION, REGION],
      [7 * REGION, 2 * REGION],
      [7 * REGION, 2 * REGION],
      [6 * REGION, 512],
    ]);
  });

  test("what clients fail to read, which a later start will need too", async () => {
    const memory = new MemoryDevice({ name: "source", size: SIZE, content: noise(SIZE, 1) });
    const { device, touched } = await makeTouched({ source: new FaultyDevice(memory, { failRead: () => true }) });
    await expect(device.read(0, new Uint8Array(512))).rejects.toThrow("EIO");
    expect(touched).toEqual([[0, 512]]);
  });

  test("what is written, zeroed or discarded of regions that have to be copied for it, and no more of it", async () => {
    const { device, touched, bytes } = await makeTouched();
    await device.write(REGION + 512, bytes(1)); // parts of two regions
    await device.write(4 * REGION - 512, bytes(2)); // parts of two, and one whole
    await device.zero(8 * REGION + 512, 512);
    await device.discard(9 * REGION, 512);
    expect(touched.toSorted(([a], [b]) => a - b)).toEqual([
      [REGION + 512, REGION - 512],
      [2 * REGION, 512],
      [4 * REGION - 512, 512],
      [5 * REGION, REGION - 512],
      [8 * REGION + 512, 512],
      [9 * REGION, 512],
    ]);
  });

  test("nothing of what is written, zeroed or discarded whole, or is hydrated already", async () => {
    const { device, touched, bytes } = await makeTouched({ hydrated: [{ start: 10, end: 12 }] });
    await device.write(0, bytes(2));
    await device.zero(2 * REGION, 2 * REGION);
    await device.discard(4 * REGION, 2 * REGION);
    await device.write(10 * REGION + 512, bytes(1));
    expect(device.tryWrite(10 * REGION + 512, bytes(1))).toBe(true);
    await device.zero(11 * REGION, 512);
    await device.write(100, bytes(1)); // of regions that were written before
    expect(touched).toEqual([]);
  });

  test("a part of a region whose copy is under way for another", async () => {
    const { device, touched, bytes } = await makeTouched();
    await Promise.all([device.write(512, bytes(1).subarray(0, 512)), device.write(1024, bytes(1).subarray(0, 512))]);
    expect(touched.toSorted(([a], [b]) => a - b)).toEqual([
      [512, 512],
      [1024, 512],
    ]);
  });

  test("nothing of what is written whole over a copy that is under way", async () => {
    const { device, touched, bytes } = await makeTouched();
    await Promise.all([device.write(512, bytes(1).subarray(0, 512)), device.write(0, bytes(1))]);
    expect(touched).toEqual([[512, 512]]);
  });

  test("nothing of hints, flushes and questions, nor of what lies outside", async () => {
    const { device, touched } = await makeTouched();
    device.hint(0, SIZE);
    await device.extents(0, SIZE);
    await device.flush();
    await expect(device.read(SIZE - 1, new Uint8Array(2))).rejects.toThrow(RangeError);
    expect(touched).toEqual([]);
  });

  test("what is read once the destination stands alone", async () => {
    const { device, touched, commits } = await makeTouched({ hydrated: [{ start: 0, end: 16 }] });
    await commits.commit();
    expect(device.becomeLinear()).toBe(true);
    await device.read(3 * REGION, new Uint8Array(512));
    expect(touched).toEqual([[3 * REGION, 512]]);
  });
});

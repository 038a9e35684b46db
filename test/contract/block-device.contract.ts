/**
 * What every BlockDevice does, whatever it is made of: `blockDeviceContract` is called once per kind of device.
 *
 * The random test runs operations on the device and on a plain Buffer, and compares. The size is odd where the device
 * can be; offsets gather around sectors, pages and the end. Where a range was discarded, the device's word for its
 * content is taken, but it must stick to it, and nothing around may have changed. Reads and writes are offered to
 * `tryRead` and `tryWrite` at times, which may say no to any.
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { alignedBuffer } from "../../src/device/aligned-buffer.ts";
import type { BlockDevice, Extent } from "../../src/device/block-device.ts";
import { withReason } from "../support/scratch.ts";

/** A kind of device that is to pass. */
export interface ContractSubject {
  name: string;
  /** Why it cannot be tried here, or undefined. */
  skip?: string | undefined;
  /** Sizes are multiples of this. Default 1. */
  sizeUnit?: number;
  /** A device of `size` bytes that reads as zeros. Disposing of it removes whatever was made for it. */
  open(size: number): Promise<BlockDevice>;
}

type Operation =
  | { kind: "read" | "try read" | "discard" | "extents"; offset: number; length: number }
  | { kind: "write"; offset: number; length: number; seed: number; fua: boolean; aligned: boolean; atOnce: boolean }
  | { kind: "zero"; offset: number; length: number; mayPunch: boolean; fua: boolean }
  | { kind: "flush" };

const RUNS = 40;
const PAGE = 4096;

/** Declares the tests that a kind of device is to pass. */
export function blockDeviceContract({ name, skip, sizeUnit = 1, open }: ContractSubject): void {
  const sizeOf = (wanted: number) => Math.ceil(wanted / sizeUnit) * sizeUnit;

  describe.skipIf(skip !== undefined)(withReason(name, skip), () => {
    test("a new device reads as zeros, to its last byte", async () => {
      await using device = await open(sizeOf(70_001));
      expect(device.size).toBe(sizeOf(70_001));
      expect(device.readOnly).toBe(false);
      expect(Number.isInteger(Math.log2(device.blockSize))).toBe(true);
      expectBytes(await readRange(device, 0, device.size), Buffer.alloc(device.size));
    });

    test("random operations do what they do to a plain buffer", { timeout: 120_000 }, async () => {
      const size = sizeOf(300_123);
      await using device = await open(size);
      await fc.assert(
        fc.asyncProperty(fc.array(operation(size), { minLength: 1, maxLength: 25 }), async (operations) => {
          await device.zero(0, size); // every run begins anew
          const model = Buffer.alloc(size);
          for (const each of operations) await apply(each, device, model);
          expectBytes(await readRange(device, 0, size), model);
        }),
        { numRuns: RUNS },
      );
    });

    test("writes to neighbouring ranges at the same time, of any alignment, all arrive", async () => {
      const size = sizeOf(2_000_003);
      await using device = await open(size);
      const model = Buffer.alloc(size);
      const writes: Promise<void>[] = [];
      for (let offset = 0, step = 0; offset < size; step += 1) {
        // 3 pages, 1 sector, 5 pages less that sector, 1000 bytes, …: direct and buffered writes alternate and touch
        const length = Math.min(
          [3 * PAGE, 512, 5 * PAGE - 512, 1000, 4 * PAGE - 1000][step % 5] ?? PAGE,
          size - offset,
        );
        const data = alignedBuffer(length, PAGE).fill((step % 255) + 1);
        model.set(data, offset);
        writes.push(device.write(offset, data));
        offset += length;
      }
      await Promise.all(writes);
      expectBytes(await readRange(device, 0, size), model);
      await device.flush();
      expectBytes(await readRange(device, 0, size), model);
    });

    test("offsets around and beyond 4 GiB are not truncated", async () => {
      const size = sizeOf(2 ** 32 + 2 ** 20 + 7);
      await using device = await open(size);
      const places = [0, 2 ** 31 - 100, 2 ** 32 - PAGE, 2 ** 32 - 100, 2 ** 32 + PAGE, size - 300];
      for (const [index, offset] of places.entries()) await device.write(offset, Buffer.alloc(300, index + 1));
      const aligned = alignedBuffer(2 * PAGE, PAGE).fill(99);
      await device.write(2 ** 32 + 65536, aligned);
      for (const [index, offset] of places.entries()) {
        // The third overlaps nothing; the fourth begins inside the page before 4 GiB.
        expectBytes(await readRange(device, offset, 300), Buffer.alloc(300, index + 1));
      }
      expectBytes(await readRange(device, 2 ** 32 + 65536, 2 * PAGE), Buffer.from(aligned));
      await device.zero(2 ** 32 - 100, 300);
      expectBytes(await readRange(device, 2 ** 32 - 101, 302), Buffer.concat([Buffer.alloc(301), Buffer.alloc(1)]));
      expectExtents(await device.extents(2 ** 32 - 5, 65536), 2 ** 32 - 5, 65536);
    });

    test("tryRead() and tryWrite() beyond 4 GiB reach the bytes that read() and write() do", async () => {
      const size = sizeOf(2 ** 32 + 2 ** 20);
      await using device = await open(size);
      for (const [index, offset] of [2 ** 31 + 5, 2 ** 32 - 100, 2 ** 32 + PAGE].entries()) {
        const data = Buffer.alloc(300, index + 1);
        if (!device.tryWrite?.(offset, data)) await device.write(offset, data);
        const buffer = Buffer.alloc(302, 0xee);
        expectBytes(await readRange(device, offset - 1, 302), Buffer.concat([Buffer.alloc(1), data, Buffer.alloc(1)]));
        if (device.tryRead?.(offset, buffer.subarray(1, 301))) {
          expectBytes(buffer, Buffer.concat([Buffer.alloc(1, 0xee), data, Buffer.alloc(1, 0xee)]));
        }
      }
    });

    test("immediate writes among writes under way, of any alignment, all arrive", async () => {
      const size = sizeOf(3_000_000);
      await using device = await open(size);
      const model = Buffer.alloc(size);
      const writes: Promise<void>[] = [];
      for (let offset = 0, step = 0; offset < size; step += 1) {
        const length = Math.min([3 * PAGE, 512, 75 * PAGE, 5 * PAGE - 512, 4096][step % 5] ?? PAGE, size - offset);
        const data = alignedBuffer(length, PAGE).fill((step % 255) + 1);
        model.set(data, offset);
        const atOnce = step % 2 === 1 && (device.tryWrite?.(offset, data) ?? false);
        if (!atOnce) writes.push(device.write(offset, data));
        if (step % 7 === 0) await Promise.all(writes.splice(0));
        offset += length;
      }
      await Promise.all(writes);
      await device.flush();
      expectBytes(await readRange(device, 0, size), model);
    });

    test("canZeroFast() says the same again, and changes nothing", async () => {
      const size = sizeOf(100_000);
      await using device = await open(size);
      const content = Buffer.alloc(size, 7);
      await device.write(0, content);
      for (const mayPunch of [true, false]) {
        const can = await device.canZeroFast?.({ mayPunch });
        expect(can).toBe(await device.canZeroFast?.({ mayPunch }));
        expectBytes(await readRange(device, 0, size), content);
        await device.zero(0, size, { mayPunch });
        expectBytes(await readRange(device, 0, size), Buffer.alloc(size));
        await device.write(0, content);
      }
    });

    test("empty requests succeed anywhere up to the end, and change nothing", async () => {
      await using device = await open(sizeOf(5000));
      for (const offset of [0, 1, device.size]) {
        await device.read(offset, new Uint8Array(0));
        await device.write(offset, new Uint8Array(0), { fua: true });
        device.tryRead?.(offset, new Uint8Array(0));
        device.tryWrite?.(offset, new Uint8Array(0));
        await device.zero(offset, 0);
        await device.discard(offset, 0);
        expect(await device.extents(offset, 0)).toEqual([]);
      }
    });

    test.each([
      ["begins before 0", -1, 10],
      ["ends behind the end", 4096, 1_000_000],
      ["begins behind the end", 1_000_000, 0],
      ["begins between two bytes", 0.5, 10],
      ["begins nowhere", Number.NaN, 10],
      ["is beyond 2^53", 2 ** 53, 10],
    ])("a request that %s is refused with a RangeError", async (_, offset, length) => {
      await using device = await open(sizeOf(10_000));
      await expect(device.read(offset, new Uint8Array(length))).rejects.toThrow(RangeError);
      await expect(device.write(offset, new Uint8Array(length))).rejects.toThrow(RangeError);
      await expect(device.zero(offset, length)).rejects.toThrow(RangeError);
      await expect(device.discard(offset, length)).rejects.toThrow(RangeError);
      await expect(device.extents(offset, length)).rejects.toThrow(RangeError);
      expectRefused(() => device.tryRead?.(offset, new Uint8Array(length)));
      expectRefused(() => device.tryWrite?.(offset, new Uint8Array(length)));
      expectBytes(await readRange(device, 0, device.size), Buffer.alloc(device.size));
    });

    test("it may be disposed of more than once", async () => {
      const device = await open(sizeOf(4096));
      await device[Symbol.asyncDispose]();
      await device[Symbol.asyncDispose]();
    });
  });
}

async function apply(operation: Operation, device: BlockDevice, model: Buffer): Promise<void> {
  if (operation.kind === "flush") return await device.flush();
  const { kind, offset, length } = operation;
  const end = offset + length;
  if (kind === "read") expectBytes(await readRange(device, offset, length), model.subarray(offset, end));
  else if (kind === "try read") {
    const buffer = Buffer.alloc(length, 0xee);
    if (device.tryRead?.(offset, buffer)) expectBytes(buffer, model.subarray(offset, end));
  } else if (kind === "zero") {
    await device.zero(offset, length, { mayPunch: operation.mayPunch, fua: operation.fua });
    model.fill(0, offset, end);
  } else if (kind === "write") {
    const data = operation.aligned ? alignedBuffer(length, PAGE) : new Uint8Array(length);
    for (let i = 0; i < length; i += 1) data[i] = (operation.seed + i * 7) % 256;
    model.set(data, offset);
    const done = operation.atOnce && (device.tryWrite?.(offset, data) ?? false);
    if (!done) await device.write(offset, data, { fua: operation.fua });
    data.fill(0xdd); // the caller's again
  } else if (kind === "discard") {
    await device.discard(offset, length);
    model.set(await readRange(device, offset, length), offset);
  } else {
    const extents = await device.extents(offset, length);
    expectExtents(extents, offset, length);
    for (const extent of extents.filter((each) => each.zero)) {
      expectBytes(model.subarray(extent.offset, extent.offset + extent.length), Buffer.alloc(extent.length));
    }
  }
}

/** A RangeError, or no as an answer: then the request is made again in the usual way, and refused there. */
function expectRefused(attempt: () => boolean | undefined): void {
  try {
    expect(attempt()).not.toBe(true);
  } catch (error) {
    expect(error).toBeInstanceOf(RangeError);
  }
}

/** Ascending, without gaps, clipped, none empty. */
function expectExtents(extents: Extent[], offset: number, length: number): void {
  let at = offset;
  for (const extent of extents) {
    expect(extent.offset).toBe(at);
    expect(extent.length).toBeGreaterThan(0);
    at += extent.length;
  }
  expect(at).toBe(offset + length);
}

function expectBytes(actual: Uint8Array, expected: Uint8Array): void {
  if (Buffer.compare(actual, expected) === 0) return;
  const first = actual.findIndex((byte, index) => byte !== expected[index]);
  expect.fail(`byte ${first} of ${expected.length} is ${actual[first]}, not ${expected[first]}`);
}

async function readRange(device: BlockDevice, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xee);
  await device.read(offset, buffer);
  return buffer;
}

function operation(size: number): fc.Arbitrary<Operation> {
  const edge = fc
    .tuple(fc.integer({ min: 0, max: Math.floor(size / 512) }), fc.constantFrom(0, 0, 0, -1, 1))
    .map(([sector, shift]) => sector * 512 + shift);
  const page = fc.integer({ min: 0, max: Math.floor(size / PAGE) }).map((index) => index * PAGE);
  const position = fc
    .oneof(page, edge, fc.integer({ min: 0, max: size }), fc.constant(size))
    .map((at) => Math.min(Math.max(at, 0), size));
  const range = fc
    .tuple(position, position)
    .map(([a, b]) => ({ offset: Math.min(a, b), length: Math.min(Math.abs(a - b), 150_000) }));
  const bool = fc.boolean();
  const seldom = fc.integer({ min: 0, max: 9 }).map((n) => n === 0);
  return fc.oneof(
    { arbitrary: write(range, bool, seldom), weight: 4 },
    {
      arbitrary: fc
        .tuple(range, fc.constantFrom("read" as const, "try read" as const, "discard" as const, "extents" as const))
        .map(([where, kind]) => ({ kind, ...where })),
      weight: 5,
    },
    {
      arbitrary: fc
        .tuple(range, bool, seldom)
        .map(([where, mayPunch, fua]) => ({ kind: "zero" as const, ...where, mayPunch, fua })),
      weight: 2,
    },
    { arbitrary: fc.constant({ kind: "flush" as const }), weight: 1 },
  );
}

function write(
  range: fc.Arbitrary<{ offset: number; length: number }>,
  bool: fc.Arbitrary<boolean>,
  seldom: fc.Arbitrary<boolean>,
): fc.Arbitrary<Operation> {
  return fc
    .tuple(range, fc.integer({ min: 0, max: 255 }), bool, bool, seldom)
    .map(([where, seed, aligned, atOnce, fua]) => ({ kind: "write" as const, ...where, seed, aligned, atOnce, fua }));
}

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { Salvage } from "../../../src/engine/salvage.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

const SIZE = 4 * 65536;
const CONTENT = noise(SIZE, 1);
const DIRT = noise(SIZE, 2);
const NEVER = new AbortController().signal;

/** A source of which some sectors of 512 bytes cannot be read, onto a destination full of old data. */
function setUp(bad: number[], { errno = "EIO", timeoutMs = Infinity, wrap = (device: BlockDevice) => device } = {}) {
  const clock = new VirtualClock();
  const errors: number[] = [];
  const source = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT }), {
    failRead: ({ offset, length }) => {
      const fails = bad.some((sector) => offset < (sector + 1) * 512 && offset + length > sector * 512);
      if (fails) errors.push(offset);
      return fails;
    },
    errno,
  });
  const destination = new MemoryDevice({ name: "destination", size: SIZE, content: DIRT });
  const gone: string[] = [];
  const parts = { source: wrap(source), destination, clock, timeoutMs, onGone: (why: string) => void gone.push(why) };
  return { clock, source, destination, errors, gone, salvage: new Salvage(parts) };
}

/** What the destination should hold: the source's bytes, and zeros in these sectors. */
function withZeros(bad: number[], { unit = 512 } = {}): Buffer {
  const expected = Buffer.from(CONTENT);
  for (const sector of bad) {
    const start = Math.floor((sector * 512) / unit) * unit;
    expected.fill(0, start, start + unit);
  }
  return expected;
}

describe("Salvage", () => {
  test("copies everything but the bad sectors of a range, which are zeros, whatever was there before", () =>
    fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.nat(SIZE / 512 - 1), { maxLength: 12 }),
        fc.constantFrom(SIZE, SIZE - 512, 65536, 4096, 70_144),
        async (bad, length) => {
          const { destination, salvage, errors, source } = setUp(bad);
          const inside = bad.filter((sector) => sector * 512 < length);
          expect(await salvage.fill({ offset: 0, length }, NEVER)).toBe(inside.length === 0);
          const unit = Math.max(512, source.blockSize);
          const expected = withZeros(inside, { unit });
          expect(Buffer.compare((await imageOf(destination)).subarray(0, length), expected.subarray(0, length))).toBe(
            0,
          );
          const pieces = new Set(inside.map((sector) => Math.floor(sector / 128)));
          const units = new Set(inside.map((sector) => Math.floor((sector * 512) / unit)));
          expect(errors).toHaveLength(pieces.size + units.size); // one for each, and no more
        },
      ),
    ));

  test("puts up with so many errors in a region that is dead, and no more: the rest are zeros", async () => {
    const all = Array.from({ length: SIZE / 512 }, (_, sector) => sector);
    const { destination, salvage, errors } = setUp(all);
    expect(await salvage.fill({ offset: 0, length: SIZE }, NEVER)).toBe(false);
    expect((await imageOf(destination)).every((byte) => byte === 0)).toBe(true);
    expect(errors.length).toBeLessThan(50);
  });

  test("makes zeros where there is no source", async () => {
    const destination = new MemoryDevice({ size: SIZE, content: DIRT });
    const parts = { source: undefined, destination, clock: new VirtualClock(), timeoutMs: Infinity, onGone: () => {} };
    expect(await new Salvage(parts).fill({ offset: 0, length: SIZE }, NEVER)).toBe(false);
    expect((await imageOf(destination)).every((byte) => byte === 0)).toBe(true);
  });

  test.for(["ENODEV", "ENOENT", "ENXIO"])(
    "asks a source no more that says %s, tells of it once, and makes zeros of all that is left",
    async (errno) => {
      const { destination, salvage, errors, gone } = setUp([200], { errno });
      await salvage.fill({ offset: 0, length: SIZE / 2 }, NEVER);
      await salvage.fill({ offset: SIZE / 2, length: SIZE / 2 }, NEVER);
      expect(errors).toEqual([65536]);
      expect(gone).toEqual([expect.stringContaining(errno)]);
      const expected = Buffer.alloc(SIZE);
      CONTENT.copy(expected, 0, 0, 65536);
      expect(Buffer.compare(await imageOf(destination), expected)).toBe(0);
    },
  );

  test.for(["ETIMEDOUT", "ECONNREFUSED", "EPIPE", "ESTALE", "ENOMEDIUM", "EACCES", "EPROTO", "ESHUTDOWN"])(
    "ends where a source says %s, which may pass, and says how to do without it",
    async (errno) => {
      const { salvage, errors, gone } = setUp([200], { errno });
      const refused = salvage.fill({ offset: 0, length: SIZE }, NEVER);
      await expect(refused).rejects.toMatchObject({ errno, hint: expect.stringContaining("--without-source") });
      expect([errors, gone]).toEqual([[65536], []]);
    },
  );

  test("ends where a source that was closed under it says that it is away, with the reason of its signal", async () => {
    const stop = new AbortController();
    const reason = new Error("enough");
    const { salvage, gone } = setUp([], {
      wrap: (device) =>
        new (class extends FilterDevice {
          override read(): Promise<void> {
            stop.abort(reason);
            return Promise.reject(new DeviceError("it was closed", { errno: "ENODEV", away: true }));
          }
        })(device),
    });
    await expect(salvage.fill({ offset: 0, length: SIZE }, stop.signal)).rejects.toBe(reason);
    expect(gone).toEqual([]);
  });

  test("changes nothing once its signal has aborted, though there is no source to be asked", async () => {
    const destination = new MemoryDevice({ size: SIZE, content: DIRT });
    const parts = { source: undefined, destination, clock: new VirtualClock(), timeoutMs: Infinity, onGone: () => {} };
    const reason = new Error("enough");
    const filled = new Salvage(parts).fill({ offset: 0, length: SIZE }, AbortSignal.abort(reason));
    await expect(filled).rejects.toBe(reason);
    expect(Buffer.compare(await imageOf(destination), DIRT)).toBe(0);
  });

  test("does not wait longer than told for a source that hangs, and what it answers late reaches nothing", async () => {
    let answer: () => void = () => {};
    const { clock, destination, salvage, gone } = setUp([], {
      timeoutMs: 30_000,
      wrap: (device) =>
        new (class extends FilterDevice {
          override async read(offset: number, buffer: Uint8Array): Promise<void> {
            if (offset >= 65536) {
              await new Promise<void>((resolve) => {
                answer = resolve;
              });
            }
            await super.read(offset, buffer);
          }
        })(device),
    });
    await expect(salvage.fill({ offset: 0, length: SIZE }, NEVER)).rejects.toMatchObject({
      message: 'Cannot read 65536 bytes at 65536 from "source": it has not answered for 30 s',
      errno: "ETIMEDOUT",
      away: true,
      hint: expect.stringContaining("--without-source"),
    });
    expect(clock.now()).toBe(30_000);
    answer();
    await clock.sleep(1);
    expect(gone).toEqual([]);
    const expected = Buffer.alloc(SIZE);
    CONTENT.copy(expected, 0, 0, 65536);
    expect(Buffer.compare(await imageOf(destination), expected)).toBe(0);
    expect(clock.sleeping).toBe(0);
  });

  test("ends with the reason of its signal", async () => {
    const { salvage } = setUp([3]);
    const reason = new Error("enough");
    await expect(salvage.fill({ offset: 0, length: SIZE }, AbortSignal.abort(reason))).rejects.toBe(reason);
  });
});

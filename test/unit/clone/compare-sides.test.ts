// Two disks in memory whose differing regions, and unreadable sectors, are known. Regions are smaller and larger than what is read at once.
import fc from "fast-check";
import { expect, test } from "vitest";
import { ChangedError, DeviceError } from "../../../src/base/errors.ts";
import { Geometry, type RegionRange } from "../../../src/base/geometry.ts";
import { differingRegions } from "../../../src/clone/compare-sides.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";

const MIB = 2 ** 20;
const { signal } = new AbortController();

/** Whether a read meets one of these bytes. */
const meets =
  (bytes: readonly number[]) =>
  ({ offset, length }: { offset: number; length: number }): boolean =>
    bytes.some((byte) => byte >= offset && byte < offset + length);

function members(ranges: readonly RegionRange[]): number[] {
  return ranges.flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i));
}

test("differingRegions() finds the regions in which any byte differs, and those that cannot be read", () =>
  fc.assert(
    fc.asyncProperty(
      fc.constantFrom(4096, 256 * 1024, 2 * MIB),
      fc.uniqueArray(fc.nat({ max: 3 * MIB + 511 }), { maxLength: 4 }),
      fc.uniqueArray(fc.nat({ max: 3 * MIB + 511 }), { maxLength: 2 }),
      fc.constantFrom("source", "destination"),
      async (regionSize, different, broken, side) => {
        const geometry = new Geometry({ size: 3 * MIB + 512, regionSize });
        const [source, destination] = [
          new MemoryDevice({ size: geometry.size }),
          new MemoryDevice({ size: geometry.size }),
        ];
        for (const byte of different) {
          const sector = byte - (byte % 512);
          const content = Buffer.alloc(512);
          content[byte - sector] = 1;
          await destination.write(sector, content);
        }
        const sides = { geometry, source, destination, alignment: 4096 };
        const faulty = { ...sides, [side]: new FaultyDevice(sides[side as "source"], { failRead: meets(broken) }) };
        const all = [{ start: 0, end: geometry.regionCount }];
        const found = await differingRegions(faulty, () => all, { signal, unreadable: "differs" });
        const expected = [...different, ...broken].map((byte) => Math.floor(byte / regionSize));
        expect(members(found)).toEqual([...new Set(expected)].sort((a, b) => a - b));
        const strict = differingRegions(faulty, () => all, { signal, unreadable: "fails" });
        if (broken.length > 0) await expect(strict).rejects.toThrow(DeviceError);
        else expect(await strict).toEqual(found);
      },
    ),
    { numRuns: 15 },
  ));

test("differingRegions() looks at no other region, and tells how far it is", async () => {
  const geometry = new Geometry({ size: 16 * 4096, regionSize: 4096 });
  const [source, destination] = [new MemoryDevice({ size: geometry.size }), new MemoryDevice({ size: geometry.size })];
  await destination.write(0, Buffer.alloc(geometry.size, 1));
  const unread = new FaultyDevice(source, { failRead: ({ offset }) => offset < 4096 * 3 });
  let progress: { comparedBytes: number; totalBytes: number } | undefined;
  const ranges = [
    { start: 3, end: 5 },
    { start: 9, end: 10 },
  ];
  const found = await differingRegions({ geometry, source: unread, destination, alignment: 4096 }, () => ranges, {
    signal,
    unreadable: "fails",
    onStart: (running) => {
      progress = running;
      expect(running).toEqual({ comparedBytes: 0, totalBytes: 3 * 4096 });
    },
  });
  expect(found).toEqual(ranges);
  expect(progress).toEqual({ comparedBytes: 3 * 4096, totalBytes: 3 * 4096 });
});

test("differingRegions() fails with a device that is gone, whatever is said of what cannot be read", async () => {
  const geometry = new Geometry({ size: 16 * 4096, regionSize: 4096 });
  const [source, destination] = [new MemoryDevice({ size: geometry.size }), new MemoryDevice({ size: geometry.size })];
  destination.read = async () => {
    throw new DeviceError('Cannot read "nbd": the connection was lost', { away: true });
  };
  const all = [{ start: 0, end: 16 }];
  await expect(
    differingRegions({ geometry, source, destination, alignment: 4096 }, () => all, { signal, unreadable: "differs" }),
  ).rejects.toThrow(/connection was lost/);
});

test("differingRegions() ends where the source changes on the way, whatever is said of what cannot be read", async () => {
  const geometry = new Geometry({ size: 16 * MIB, regionSize: MIB });
  const [disk, destination] = [new MemoryDevice({ size: geometry.size }), new MemoryDevice({ size: geometry.size })];
  const source = new MemoryDevice({ size: geometry.size });
  source.read = async (offset, buffer) => {
    if (offset >= 7 * MIB) throw new ChangedError('Cannot read "http"', { difference: "its entity tag is another" });
    await disk.read(offset, buffer);
  };
  const all = [{ start: 0, end: 16 }];
  for (const unreadable of ["differs", "fails"] as const) {
    await expect(
      differingRegions({ geometry, source, destination, alignment: 4096 }, () => all, { signal, unreadable }),
    ).rejects.toBeInstanceOf(ChangedError);
  }
});

test("differingRegions() ends with the signal's reason", async () => {
  const geometry = new Geometry({ size: 16 * 4096, regionSize: 4096 });
  const disk = new MemoryDevice({ size: geometry.size });
  const over = AbortSignal.abort(new Error("over"));
  await expect(
    differingRegions({ geometry, source: disk, destination: disk, alignment: 4096 }, () => [{ start: 0, end: 16 }], {
      signal: over,
      unreadable: "differs",
    }),
  ).rejects.toThrow("over");
});

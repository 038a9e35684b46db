// Images formatted with bits are compared with those of a second hand (test/support/metadata-image.ts, which lays them out
// as the format's description says), read back by the checker, and cut off after every device operation.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UsageError } from "../../../src/base/errors.ts";
import { Geometry } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES, type Descriptor, DescriptorStore } from "../../../src/metadata/descriptor.ts";
import { writeFormatted } from "../../../src/metadata/format-image.ts";
import { minimumBlockCount } from "../../../src/metadata/metadata-size.ts";
import { RegionBitmap } from "../../../src/metadata/region-bitmap.ts";
import { imageOf } from "../../support/image.ts";
import { kernelFixtures, readFixtureTruth } from "../../support/kernel-fixtures.ts";
import { buildMetadata, type MetadataImage } from "../../support/metadata-image.ts";
import { plainDescriptor } from "../../support/plain-descriptor.ts";
import { Power, PowerLossDevice, PowerLost, seededRandom } from "../../support/power-loss-device.ts";

const geometryOf = (regions: number) => new Geometry({ size: regions * 4096, regionSize: 4096 });

function bitmapOf(size: number, ranges: readonly (readonly [number, number])[]): RegionBitmap {
  const bitmap = new RegionBitmap(size);
  for (const [start, end] of ranges) bitmap.setRange({ start, end });
  return bitmap;
}

const descriptor = plainDescriptor(65536);

describe("writeFormatted()", () => {
  test("makes the image that the format's description lays out, byte for byte, whatever the bits", () =>
    fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 70_000 }),
        fc.array(fc.tuple(fc.nat(70_000), fc.integer({ min: 1, max: 40_000 })), { maxLength: 6 }),
        fc.nat(30),
        async (regions, draws, slack) => {
          const hydrated = draws.map(([a, length]): [number, number] => [
            a % regions,
            Math.min((a % regions) + length, regions),
          ]);
          const blockCount = minimumBlockCount(regions) + slack;
          const device = new MemoryDevice({ size: blockCount * 4096 });
          const bits = bitmapOf(regions, hydrated);
          await writeFormatted(device, { geometry: geometryOf(regions), blockCount, bits, descriptor: null });
          const expected = buildMetadata({ regionSectors: 8, targetSectors: regions * 8, blockCount, hydrated });
          expect(Buffer.compare(await imageOf(device), expected.bytes)).toBe(0);
        },
      ),
      { numRuns: 40 },
    ));

  test("grows the tree of a large clone as the kernel does, with bits as without", async () => {
    const regions = 260 * 32576 + 17;
    const blockCount = minimumBlockCount(regions);
    const [plain, filled] = [0, 1].map(() => new MemoryDevice({ size: blockCount * 4096 })) as [
      MemoryDevice,
      MemoryDevice,
    ];
    const geometry = geometryOf(regions);
    await CloneMetadata.create(plain, { geometry, blockCount });
    const ranges: [number, number][] = [
      [0, 1],
      [5_000_000, 6_000_000],
      [regions - 1, regions],
    ];
    await writeFormatted(filled, { geometry, blockCount, bits: bitmapOf(regions, ranges), descriptor: null });

    const metadata = await CloneMetadata.open(filled);
    expect([...metadata.hydratedRanges()].map(({ start, end }) => [start, end])).toEqual(ranges);
    expect((await checkMetadata(filled)).verdict).toBe("clean");
    // All but the array blocks are the same.
    const [a, b] = [await imageOf(plain), await imageOf(filled)];
    for (let block = 0; block < blockCount; block++) {
      const at = block * 4096;
      if (a.readUInt32LE(at + 4) === 509) continue;
      expect(Buffer.compare(a.subarray(at, at + 4096), b.subarray(at, at + 4096)), `block ${block}`).toBe(0);
    }
  });

  test.for(kernelFixtures)("makes of the regions that %s has hydrated what the kernel would open", async (name) => {
    const { target_size, region_size, hydrated, nr_hydrated } = readFixtureTruth(name);
    const geometry = new Geometry({ size: target_size * 512, regionSize: region_size * 512 });
    const blockCount = minimumBlockCount(geometry.regionCount);
    const device = new MemoryDevice({ size: blockCount * 4096 });
    const ranges = hydrated.map(([first, last]): [number, number] => [first, last + 1]);
    const bits = bitmapOf(geometry.regionCount, ranges);
    await writeFormatted(device, { geometry, blockCount, bits, descriptor: null });
    const { verdict, facts } = await checkMetadata(device);
    expect(verdict).toBe("clean");
    expect(facts?.hydratedRegions).toBe(nr_hydrated);
    if (geometry.regionCount > 200 * 32576) return; // the other hand builds no trees as the kernel's
    const expected = buildMetadata({
      regionSectors: region_size,
      targetSectors: target_size,
      blockCount,
      hydrated: ranges,
    });
    expect(Buffer.compare(await imageOf(device), expected.bytes)).toBe(0);
  });

  test("writes the descriptor, and wipes that of an earlier clone where there is none", async () => {
    const geometry = geometryOf(16);
    const device = new MemoryDevice({ size: 32 * 4096 + DESCRIPTOR_BYTES });
    const place = { geometry, blockCount: 32 };
    await writeFormatted(device, { ...place, bits: null, descriptor });
    expect((await DescriptorStore.open(device, place)).read()).toEqual(descriptor);
    await writeFormatted(device, { ...place, bits: null, descriptor: null });
    const store = await DescriptorStore.open(device, place);
    expect(store.read()).toBeNull();
    expect(store.warnings).toEqual([]);
  });

  test("refuses what does not fit before it touches anything", async () => {
    const device = new MemoryDevice({ size: 32 * 4096, content: new Uint8Array(4096).fill(7) });
    const before = await imageOf(device);
    const format = (blockCount: number, given: Descriptor | null = null) =>
      writeFormatted(device, { geometry: geometryOf(16), blockCount, bits: null, descriptor: given });
    await expect(format(9)).rejects.toThrow(UsageError);
    await expect(format(33)).rejects.toThrow(UsageError);
    await expect(format(32, descriptor)).rejects.toThrow(/no room for a descriptor/);
    expect(Buffer.compare(await imageOf(device), before)).toBe(0);
  });

  test("cut off anywhere over an old clone leaves no clone or the new one, never a mixture", async () => {
    const geometry = geometryOf(40);
    const own = { ...descriptor, exactSize: geometry.size };
    const size = 32 * 4096 + DESCRIPTOR_BYTES;
    const old: MetadataImage = buildMetadata({
      regionSectors: 8,
      targetSectors: 320,
      blockCount: 32,
      hydrated: [[0, 40]],
      trailer: DESCRIPTOR_BYTES,
    });
    for (let left = 0, done = false; !done; left++) {
      const power = new Power();
      const store = new PowerLossDevice(old.bytes, { name: "store", power });
      power.left = left;
      const content = { geometry, blockCount: 32, bits: bitmapOf(40, [[3, 4]]), descriptor: own };
      done = await writeFormatted(store, content).then(
        () => true,
        (error: unknown) => {
          if (error instanceof PowerLost) return false;
          throw error;
        },
      );
      for (let seed = 0; seed < 20; seed++) {
        const after = store.afterPowerLoss(seededRandom(seed));
        expect(after.size).toBe(size);
        const report = await checkMetadata(after);
        // No superblock, or not yet all that it points to.
        if (!report.ok) continue;
        const ranges = [...(await CloneMetadata.open(after)).hydratedRanges()];
        if (ranges[0]?.end === 40)
          expect(left).toBeLessThan(3); // the old clone, whole
        else expect(ranges).toEqual([{ start: 3, end: 4 }]);
      }
      if (done) expect(left).toBeGreaterThan(5);
    }
  });
});

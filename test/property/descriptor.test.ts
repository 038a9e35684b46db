// The descriptor against its two promises: whatever sectors of a write reach the disk, the old or the new descriptor is
// there; and however many unreadable regions there are, none is lost when they are merged to fit.
import fc from "fast-check";
import { expect, test, vi } from "vitest";
import { Geometry, type RegionRange } from "../../src/base/geometry.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { DESCRIPTOR_BYTES, type Descriptor, DescriptorStore } from "../../src/metadata/descriptor.ts";
import { coarsenRanges, encodedLength, normalizeRanges } from "../../src/metadata/unreadable-ranges.ts";

vi.setConfig({ testTimeout: 120_000 }); // for slow and busy machines; nothing here measures time

const geometry = new Geometry({ size: 2 ** 43, regionSize: 4096 });
const place = { geometry, blockCount: 8 };
const OFFSET = 8 * 4096;

function descriptor(change: Partial<Descriptor>): Descriptor {
  return {
    uuid: "u",
    created: "2026-01-02T03:04:05Z",
    source: { uri: "/source", size: 1, format: "raw", fingerprint: {} },
    destination: { uri: "/destination", size: 1, fingerprint: {} },
    exactSize: geometry.size,
    options: {},
    unreadable: { ranges: [], inexact: false },
    served: false,
    finalized: null,
    ...change,
  };
}

const range = (max: number): fc.Arbitrary<RegionRange> =>
  fc.record({ start: fc.nat(max - 1), length: fc.integer({ min: 0, max: 50 }) }).map(({ start, length }) => ({
    start,
    end: Math.min(start + length, max),
  }));

test("a descriptor of which any sectors were written leaves the one before it, or is whole", () =>
  fc.assert(
    fc.asyncProperty(
      fc.array(fc.string({ maxLength: 4000, unit: "grapheme-ascii" }), { minLength: 1, maxLength: 5 }),
      fc.array(fc.boolean(), { minLength: 256, maxLength: 256 }),
      async (uris, landed) => {
        const device = new MemoryDevice({ size: OFFSET + DESCRIPTOR_BYTES });
        const store = await DescriptorStore.open(device, place);
        const at = (i: number) =>
          descriptor({
            exactSize: geometry.size - i,
            source: { uri: `/${uris[i]}`, size: 1, format: "raw", fingerprint: {} },
          });
        const before = Buffer.alloc(DESCRIPTOR_BYTES);
        for (let i = 0; i < uris.length; i++) {
          await device.read(OFFSET, before);
          await store.write(at(i));
        }
        const after = Buffer.alloc(DESCRIPTOR_BYTES);
        await device.read(OFFSET, after);
        landed.forEach((lands, sector) => {
          if (!lands) before.copy(after, 512 * sector, 512 * sector, 512 * (sector + 1));
        });
        await device.write(OFFSET, after);

        const found = (await DescriptorStore.open(device, place)).read();
        const last = uris.length - 1;
        expect([last > 0 ? at(last - 1) : null, at(last)]).toContainEqual(found);
      },
    ),
    { numRuns: 200 },
  ));

test("normalizeRanges() names exactly the regions given, ascending and apart", () =>
  fc.assert(
    fc.property(fc.array(range(300), { maxLength: 40 }), (ranges) => {
      const result = normalizeRanges(ranges);
      const regionsOf = (list: RegionRange[]) =>
        new Set(list.flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i)));
      expect(regionsOf(result)).toEqual(regionsOf(ranges));
      result.forEach(({ start, end }, i) => {
        expect(start).toBeLessThan(end);
        if (i > 0) expect(start).toBeGreaterThan((result[i - 1] as RegionRange).end);
      });
    }),
  ));

test("coarsenRanges() loses no region, fits where one range does, and joins no gap wider than one it left", () =>
  fc.assert(
    fc.property(
      fc.array(range(2 ** 31), { minLength: 1, maxLength: 200 }),
      fc.integer({ min: 0, max: 110 }),
      (unsorted, percent) => {
        const ranges = normalizeRanges(unsorted);
        const maxLength = Math.floor((percent * encodedLength(ranges)) / 100);
        const result = coarsenRanges(ranges, maxLength);
        if (encodedLength(ranges) <= maxLength) expect(result).toEqual(ranges);
        if (result.length > 1) expect(encodedLength(result)).toBeLessThanOrEqual(maxLength);
        const holder = ({ start, end }: RegionRange) =>
          result.findIndex((wide) => wide.start <= start && end <= wide.end);
        expect(ranges.map(holder)).not.toContain(-1);

        const gaps = ranges.slice(1).map((after, i) => {
          const prior = ranges[i] as RegionRange;
          return { gap: after.start - prior.end, joined: holder(prior) === holder(after) };
        });
        const widestJoined = Math.max(0, ...gaps.filter(({ joined }) => joined).map(({ gap }) => gap));
        const narrowestLeft = Math.min(2 ** 32, ...gaps.filter(({ joined }) => !joined).map(({ gap }) => gap));
        expect(widestJoined).toBeLessThanOrEqual(narrowestLeft);
      },
    ),
  ));

test("DescriptorStore.write() keeps every unreadable region, and marks the list inexact only where it had to merge", () =>
  fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 12000 }), fc.integer({ min: 2, max: 170000 }), async (count, step) => {
      const ranges = Array.from({ length: count }, (_, i) => ({
        start: i * step,
        end: i * step + 1 + (i % (step - 1)),
      }));
      const device = new MemoryDevice({ size: OFFSET + DESCRIPTOR_BYTES });
      await (await DescriptorStore.open(device, place)).write(descriptor({ unreadable: { ranges, inexact: false } }));
      const found = (await DescriptorStore.open(device, place)).read()?.unreadable;
      let at = 0;
      for (const { start, end } of ranges) {
        while ((found?.ranges[at]?.end ?? Number.POSITIVE_INFINITY) < end) at++;
        expect(found?.ranges[at]?.start).toBeLessThanOrEqual(start);
      }
      expect(found?.inexact).toBe(found?.ranges.length !== ranges.length);
    }),
    { numRuns: 30 },
  ));

test("DescriptorStore.open() survives whatever stands at its place", () =>
  fc.assert(
    fc.asyncProperty(fc.nat(255), fc.uint8Array({ minLength: 1, maxLength: 600 }), async (sector, noise) => {
      const device = new MemoryDevice({ size: OFFSET + DESCRIPTOR_BYTES + 1024 });
      await (await DescriptorStore.open(device, place)).write(descriptor({}));
      await device.write(OFFSET + 512 * sector, noise);
      const store = await DescriptorStore.open(device, place);
      if (sector > 1) expect(store.read()).toEqual(descriptor({}));
      await store.write(descriptor({ exactSize: geometry.size - 9 }));
      expect((await DescriptorStore.open(device, place)).read()?.exactSize).toBe(geometry.size - 9);
    }),
  ));

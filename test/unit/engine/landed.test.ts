// What a copy has brought to the destination before its bits are set, and copies that are tried again.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Geometry } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { ReadsInFlight } from "../../../src/engine/reads-in-flight.ts";
import { RegionMap } from "../../../src/engine/region-map.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { bytesAt, drawing, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { formattedStore } from "../../support/hydration.ts";
import { noise } from "../../support/layout.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 16_384;
const PIECE = 4096;
const SIZE = 4 * REGION;
const OLD = noise(SIZE, 1);
const never = new AbortController().signal;

async function setUp(options: Parameters<typeof makeClone>[0] = {}) {
  const badSource = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: OLD }), {});
  const source = new HeldDevice(badSource);
  const destination = new HeldDevice(new MemoryDevice({ name: "destination", size: SIZE, content: noise(SIZE, 2) }));
  const clone = await makeClone({
    size: SIZE,
    regionSize: REGION,
    pieceLength: PIECE,
    source,
    destination,
    reads: new ReadsInFlight(),
    ...options,
  });
  /** Begins to copy regions in the background, and takes their pieces as they come. */
  const begin = (start: number, end: number) => {
    const { regions, geometry, copier } = clone;
    const hydration = regions.begin({ start, end });
    const onLanded = (part: { offset: number; length: number }): void => regions.noteLanded(hydration, part);
    const done = copier
      .copy(geometry.bytesOf(hydration), never, { onLanded })
      .then(() => regions.complete(hydration))
      .catch(() => regions.fail(hydration));
    return { hydration, done };
  };
  const read = async (offset: number, length: number): Promise<boolean> =>
    (await bytesAt(clone.device, offset, length)).equals(OLD.subarray(offset, offset + length));
  return { ...clone, badSource, source, destination, begin, read };
}

describe("RegionMap.noteLanded()", () => {
  test("remembers what the destination has of a running hydration, until it ends or may have lost it", () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(63), fc.integer({ min: 1, max: 9 })), { maxLength: 20 }),
        fc.constantFrom("complete", "fail", "taint"),
        async (parts, end) => {
          const geometry = new Geometry({ size: 96 * 512, regionSize: 4096 });
          const map = new RegionMap(await CloneMetadata.open(await formattedStore(geometry.size, 4096)));
          const hydration = map.begin({ start: 1, end: 11 });
          const model = new Set<number>();
          const whole = { offset: 0, length: geometry.size };
          const touched = { start: 0, end: geometry.regionCount };
          const found = (): number[] => {
            const sectors: number[] = [];
            for (let at = 0; at < 96; ) {
              const range = map.landedIn({ offset: at * 512, length: geometry.size - at * 512 }, touched);
              if (range === undefined) break;
              for (at = range.offset / 512; at < (range.offset + range.length) / 512; at++) sectors.push(at);
            }
            return sectors;
          };
          for (const [at, length] of parts) {
            const free = Array.from({ length }, (_, index) => 8 + at + index).filter((sector) => !model.has(sector));
            if (free.length < length) continue; // a piece is brought once
            map.noteLanded(hydration, { offset: (8 + at) * 512, length: length * 512 });
            for (const sector of free) model.add(sector);
            expect(found()).toEqual([...model].sort((a, b) => a - b));
          }
          if (end === "taint") map.taint();
          else map[end](hydration);
          expect(map.landedIn(whole, touched)).toBeUndefined();
          if (end === "taint") map.noteLanded(hydration, { offset: 4096, length: 4096 });
          expect(map.landedIn(whole, touched)).toBeUndefined();
        },
      ),
    ));
});

describe("A read beside a copy of several pieces", () => {
  test("takes from the destination what is there, from the copy what is on its way, and asks for the rest", async () => {
    const { begin, read, source, destination } = await setUp();
    destination.hold("write");
    const copy = begin(0, 2); // 4 pieces at a time
    await whenIdle();
    expect(destination.waiting.map(({ offset }) => offset / PIECE)).toEqual([0, 1, 2, 3]);
    destination.waiting.shift()?.letGo();
    await whenIdle();
    expect(source.log).toEqual([0, 1, 2, 3, 4].map((piece) => `read ${piece * PIECE}+${PIECE}`));
    source.log.length = 0;
    destination.log.length = 0;
    expect(await read(0, 2 * REGION)).toBe(true);
    expect(source.log).toEqual([`read ${5 * PIECE}+${3 * PIECE}`]);
    expect(destination.log).toEqual([`read 0+${PIECE}`]);
    destination.release("write");
    await copy.done;
    expect(source.log).toHaveLength(1); // the copy takes what the reader has got
    expect(await read(0, 2 * REGION)).toBe(true);
  });

  test("asks the source for what the destination may have lost", async () => {
    const { begin, read, regions, source, destination } = await setUp();
    destination.hold("write");
    const copy = begin(0, 1);
    await whenIdle();
    destination.waiting.shift()?.letGo();
    await whenIdle();
    regions.taint();
    source.log.length = 0;
    expect(await read(0, PIECE)).toBe(true);
    expect(source.log).toEqual([`read 0+${PIECE}`]);
    destination.release("write");
    await copy.done;
    expect(drawing({ regions })).toBe("....");
  });
});

describe("A copy that a client waits for", () => {
  test("is tried again after a passing error", async () => {
    const { device, clock, badSource, read } = await setUp({ retry: 3 });
    badSource.faults = { failRead: [0, 5] };
    await device.write(100, OLD.subarray(100, 200));
    expect([device.stats.demandCopies, device.stats.demandCopyFailures, clock.now()]).toEqual([1, 0, 37.5 + 75]);
    expect(await read(0, REGION)).toBe(true);
  });

  test("fails at once where the region is known to be unreadable, or the source is gone", async () => {
    for (const [errno, known] of [
      ["EIO", true],
      ["ENODEV", false],
    ] as const) {
      const { device, clock, badSource } = await setUp({ retry: 3, isUnreadable: () => known });
      badSource.faults = { failRead: () => true, errno };
      await expect(device.write(100, Buffer.alloc(100))).rejects.toMatchObject({ errno });
      expect([device.stats.demandCopyFailures, clock.now()]).toEqual([1, 0]);
    }
  });

  test("gives up after as many tries as it has", async () => {
    const { device, badSource } = await setUp({ retry: 2 });
    badSource.faults = { failRead: ({ offset }) => offset === 0 };
    await expect(device.write(100, Buffer.alloc(100))).rejects.toMatchObject({ errno: "EIO" });
    await device.write(REGION + 100, Buffer.alloc(100));
    expect(device.stats).toMatchObject({ demandCopies: 2, demandCopyFailures: 1 });
  });
});

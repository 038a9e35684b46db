import { describe, expect, test } from "vitest";
import { Geometry } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { RegionMap } from "../../../src/engine/region-map.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";

const REGIONS = 150;

async function newMap(): Promise<{ map: RegionMap; metadata: CloneMetadata }> {
  const device = new MemoryDevice({ size: 64 * 4096 });
  const geometry = new Geometry({ size: REGIONS * 4096, regionSize: 4096 });
  await CloneMetadata.create(device, { geometry, blockCount: 64 });
  const metadata = await CloneMetadata.open(device);
  return { map: new RegionMap(metadata), metadata };
}

describe("RegionMap", () => {
  test.for(["complete", "fail", "cancel"] as const)(
    "wakes those who wait for a hydration in the order they came, when it ends by %s()",
    async (how) => {
      const { map } = await newMap();
      const hydration = map.begin({ start: 3, end: 5 }, { cancellable: true });
      const other = map.begin({ start: 5, end: 6 });
      expect(map.isAwaited(hydration)).toBe(false);
      const woken: number[] = [];
      for (const who of [1, 2, 3]) {
        void map.ended(hydration).then((error) => {
          expect(error).toBeUndefined();
          woken.push(who);
        });
      }
      void map.ended(other).then(() => woken.push(4));
      expect(map.isAwaited(hydration)).toBe(true);
      await Promise.resolve();
      expect(woken).toEqual([]);
      map[how](hydration);
      await new Promise((resolve) => setImmediate(resolve));
      expect(woken).toEqual([1, 2, 3]);
      map.complete(other);
    },
  );

  test("fail() tells those who wait why, where it is told", async () => {
    const { map } = await newMap();
    const hydration = map.begin({ start: 3, end: 5 });
    const ended = map.ended(hydration);
    const error = new Error("no such sector");
    map.fail(hydration, error);
    expect(await ended).toBe(error);
  });

  test("isHydrated() is about every region of a range, and never about one in the table", async () => {
    const { map, metadata } = await newMap();
    metadata.markHydrated({ start: 10, end: 20 });
    metadata.markHydrated({ start: 30, end: 100 });
    expect([map.isHydrated(10, 20), map.isHydrated(9, 20), map.isHydrated(10, 21), map.isHydrated(33, 97)]).toEqual([
      true,
      false,
      false,
      true,
    ]);
    const hydration = map.begin({ start: 20, end: 30 });
    expect([map.isHydrated(10, 20), map.isHydrated(19, 21), map.isHydrated(25, 26), map.isHydrated(30, 31)]).toEqual([
      true,
      false,
      false,
      true,
    ]);
    // The table comes first, whatever the map says: dm-clone's discard goes by the map alone.
    metadata.markHydrated({ start: 24, end: 26 });
    for (const [start, end] of [
      [24, 26],
      [10, 100],
      [10, 25],
      [25, 40],
    ] as const) {
      expect(map.isHydrated(start, end)).toBe(false);
    }
    expect(map.state(25)).toBe("hydrating");
    map.complete(hydration);
    expect(map.isHydrated(10, 100)).toBe(true);
  });

  test("isHydrating() finds any overlap with the table", async () => {
    const { map } = await newMap();
    expect(map.isHydrating(0, REGIONS)).toBe(false);
    map.begin({ start: 10, end: 12 });
    map.begin({ start: 20, end: 21 });
    const found = [
      [0, 10],
      [0, 11],
      [11, 12],
      [12, 20],
      [12, 21],
      [20, 21],
      [21, 150],
      [11, 11],
    ].filter(([start, end]) => map.isHydrating(start as number, end as number));
    expect(found).toEqual([
      [0, 11],
      [11, 12],
      [12, 21],
      [20, 21],
      [11, 11],
    ]);
  });

  test("stateEnd() ends a run where the state changes, sourceEnd() where the truth moves", async () => {
    const { map, metadata } = await newMap();
    metadata.markHydrated({ start: 10, end: 80 });
    map.begin({ start: 3, end: 5 });
    map.begin({ start: 5, end: 6 });
    expect([0, 3, 4, 5, 6, 10, 80].map((region) => map.stateEnd(region, REGIONS))).toEqual([3, 5, 5, 6, 10, 80, 150]);
    expect([map.stateEnd(0, 2), map.stateEnd(3, 4), map.stateEnd(20, 30)]).toEqual([2, 4, 30]);
    expect([0, 4, 10, 80].map((region) => map.sourceEnd(region, REGIONS))).toEqual([10, 10, 10, 150]);
  });

  test("cancel() takes off what has not begun to land, land() forbids it from then on", async () => {
    const { map } = await newMap();
    const copy = map.begin({ start: 0, end: 1 });
    expect(map.cancel(copy)).toBe(false);
    expect(map.state(0)).toBe("hydrating");

    const landed = map.begin({ start: 1, end: 3 }, { cancellable: true });
    expect(map.land(landed)).toBe(true);
    expect(map.cancel(landed)).toBe(false);
    expect(map.complete(landed)).toBe(true);
    expect(map.state(2)).toBe("hydrated");

    const cancelled = map.begin({ start: 3, end: 5 }, { cancellable: true });
    expect(map.cancel(cancelled)).toBe(true);
    expect(map.state(3)).toBe("unhydrated");
    expect(map.land(cancelled)).toBe(false);
    // Nor is it taken for the next one at the same place.
    const next = map.begin({ start: 3, end: 5 }, { cancellable: true });
    expect(map.land(cancelled)).toBe(false);
    expect(map.cancel(next)).toBe(true);
    expect(() => map.complete(cancelled)).toThrow("are not being hydrated");
    expect(map.hydratingCount).toBe(1);
  });
});

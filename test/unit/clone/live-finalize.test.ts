// What a finalize does with the missing regions of a clone at work, where the destination may lose what is written to it.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DeviceError, LostWritesError } from "../../../src/base/errors.ts";
import type { RegionRange } from "../../../src/base/geometry.ts";
import type { Clone } from "../../../src/clone/clone.ts";
import { fillMissing, type LiveFinalizeParts } from "../../../src/clone/live-finalize.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { committedRegions } from "../../support/hydration.ts";
import { noise } from "../../support/layout.ts";
import { LossyLinkDevice } from "../../support/lossy-link-device.ts";
import { seededRandom } from "../../support/power-loss-device.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 16 * REGION;
const SOURCE = noise(SIZE, 1);
const DIRT = noise(SIZE, 2);
const ACCEPT = { acceptUnreadable: true, withoutSource: false };
const NO_RECORD = async (): Promise<void> => expect.fail("must not be recorded");
/** Regions that cannot be read: of 4 one sector, of 5 and 6 all, of 11 nothing is wrong any more. */
const MISSING = [
  { start: 4, end: 7 },
  { start: 11, end: 12 },
];

/** All but the missing regions are hydrated, durably. */
async function setUp({ seed = 1, chance = 0, most = 0 } = {}) {
  const clock = new VirtualClock();
  const random = seededRandom(seed);
  const link = new LossyLinkDevice(DIRT, "disk", { clock, random, latencyMs: 20, chance: 0, most: 0, outageMs: 500 });
  const source = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: SOURCE }), {
    failRead: ({ offset, length }) =>
      offset < 7 * REGION && offset + length > 4 * REGION + 1024 && offset !== 4 * REGION + 1536,
  });
  const h = await makeClone({ size: SIZE, clock, source, destination: link, link, trusted: false });
  for (const range of [
    { start: 0, end: 4 },
    { start: 7, end: 11 },
    { start: 12, end: 16 },
  ]) {
    const hydration = h.regions.begin(range);
    const { offset, length } = h.geometry.bytesOf(range);
    await link.write(offset, SOURCE.subarray(offset, offset + length));
    h.regions.complete(hydration);
  }
  await h.commits.commit();
  link.options = { ...link.options, chance, most };
  const warnings: string[] = [];
  const clone = {
    path: "copy.img.clone",
    geometry: h.geometry,
    metadata: h.metadata,
    descriptor: { unreadable: { ranges: MISSING, inexact: false, complete: true } },
    warn: (warning: string) => void warnings.push(warning),
  } as unknown as Clone;
  const engine = {
    ...h,
    source: { view: source },
    destination: { view: link },
  } as unknown as LiveFinalizeParts["engine"];
  const stop = new AbortController();
  const parts = { clone, engine, sourceTimeoutMs: Infinity, signal: stop.signal };
  return { ...h, link, parts, warnings, stop };
}

/** What the destination should hold at the end: of 4 the first two sectors, and the one that can be read. */
function expected(): Buffer {
  const bytes = Buffer.from(SOURCE);
  bytes.fill(0, 4 * REGION + 1024, 7 * REGION);
  SOURCE.copy(bytes, 4 * REGION + 1536, 4 * REGION + 1536, 4 * REGION + 2048);
  return bytes;
}

describe("fillMissing()", () => {
  test("keeps what can be read, says what cannot, and marks it only when that is recorded", async () => {
    const h = await setUp();
    const records: RegionRange[][] = [];
    const zeroed = await fillMissing(h.parts, ACCEPT, async (ranges) => {
      records.push(ranges);
      expect(await committedRegions(h.store)).toEqual([
        { start: 0, end: 4 },
        { start: 7, end: 16 },
      ]);
      expect(Buffer.compare(h.link.durable, expected())).toBe(0);
    });
    expect(zeroed).toEqual([{ start: 4, end: 7 }]);
    expect(records).toEqual([zeroed]);
    expect(await committedRegions(h.store)).toEqual([{ start: 0, end: 16 }]);
    expect(h.commits.complete).toBe(true);
    expect(h.regions.hydratingCount).toBe(0);
  });

  test("refuses without being asked to, and leaves nothing in hand", async () => {
    const h = await setUp();
    await expect(fillMissing(h.parts, { ...ACCEPT, acceptUnreadable: false }, NO_RECORD)).rejects.toThrow(
      /could not be read/,
    );
    expect(h.regions.hydratingCount).toBe(0);
  });

  // The source fails as a whole at the second region that is missing: the first is zeros in part by then.
  test.each([
    ["is away", { errno: "ECONNREFUSED" }, /ECONNREFUSED/],
    ["does not answer in time", { errno: undefined }, /it has not answered for 0.02 s/],
    ["has become another one", { errno: "ESTALE" }, /ESTALE/],
  ])("records nothing where the source %s meanwhile, and leaves nothing in hand", async (_, { errno }, message) => {
    const h = await setUp();
    const { view } = h.parts.engine.source as unknown as { view: BlockDevice };
    const failing = new (class extends FilterDevice {
      override async read(offset: number, buffer: Uint8Array): Promise<void> {
        if (offset < 5 * REGION) return await super.read(offset, buffer);
        if (errno === undefined) await new Promise<void>(() => {});
        throw new DeviceError(`Cannot read: ${errno}`, { errno });
      }
    })(view);
    const engine = { ...h.parts.engine, source: { view: failing } } as unknown as LiveFinalizeParts["engine"];
    const parts = { ...h.parts, engine, sourceTimeoutMs: errno === undefined ? 20 : Infinity };
    await expect(fillMissing(parts, ACCEPT, NO_RECORD)).rejects.toThrow(message);
    expect([h.regions.hydratingCount, h.commits.failure, h.warnings]).toEqual([0, undefined, []]);
    expect(h.metadata.hydratedCount).toBe(12);
    // Nothing was given up: once it can be read, all that can be had of it is.
    expect(await fillMissing(h.parts, ACCEPT, async () => {})).toEqual([{ start: 4, end: 7 }]);
    expect(Buffer.compare(h.link.durable, expected())).toBe(0);
  });

  test("records nothing where its server ends meanwhile, and says so", async () => {
    const h = await setUp();
    h.stop.abort(new Error("its server ends"));
    await expect(fillMissing(h.parts, ACCEPT, NO_RECORD)).rejects.toThrow("its server ends");
    expect(h.regions.hydratingCount).toBe(0);
  });

  test("asks the source nothing where it is to do without, and makes zeros of all that is missing", async () => {
    const h = await setUp();
    const records: RegionRange[][] = [];
    const record = async (ranges: RegionRange[]): Promise<void> => void records.push(ranges);
    await fillMissing(h.parts, { ...ACCEPT, withoutSource: true }, record);
    expect(records).toEqual([MISSING]);
    const bytes = Buffer.from(SOURCE);
    for (const { start, end } of MISSING) bytes.fill(0, start * REGION, end * REGION);
    expect(Buffer.compare(h.link.durable, bytes)).toBe(0);
  });

  test("has nothing in hand where the record cannot be made, and those who wait hear of it", async () => {
    const h = await setUp();
    let write: Promise<unknown> | undefined;
    const record = async (): Promise<void> => {
      write = h.device.write(5 * REGION, noise(512, 3)).catch((error: unknown) => error);
      throw new Error("no room");
    };
    await expect(fillMissing(h.parts, ACCEPT, record)).rejects.toThrow("no room");
    expect(await write).toMatchObject({ message: "no room" });
    expect(h.regions.hydratingCount).toBe(0);
  });

  test("records nothing that is not durable, whatever the destination loses on the way", () =>
    fc.assert(
      fc.asyncProperty(fc.integer(), fc.constantFrom(0.05, 0.2), fc.nat(4), async (seed, chance, most) => {
        const h = await setUp({ seed, chance, most });
        let recorded: RegionRange[] | undefined;
        const filled = fillMissing(h.parts, ACCEPT, async (ranges) => {
          recorded = ranges;
          expect(Buffer.compare(h.link.durable, expected())).toBe(0);
        });
        const outcome = await filled.catch((error: unknown) => error);
        if (outcome instanceof LostWritesError) expect(h.link.breaks).toBeGreaterThan(0);
        else {
          expect(outcome).toEqual([{ start: 4, end: 7 }]);
          expect(recorded).toEqual(outcome);
          expect(h.commits.complete).toBe(true);
          expect(await committedRegions(h.store)).toEqual([{ start: 0, end: 16 }]);
          expect(Buffer.compare(h.link.durable, expected())).toBe(0);
        }
        expect([h.regions.hydratingCount, h.commits.failure]).toEqual([0, undefined]);
      }),
      { numRuns: 200 },
    ));
});

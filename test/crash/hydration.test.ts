// A whole offline hydration, on a destination and a metadata device with volatile caches. Power fails before every write
// and flush in turn; each sector written but not flushed then holds what was flushed or anything written since, by seed. A
// second life goes on from there until its own cut, a third to the end. After every cut the metadata must be without
// fault, and every region that it calls hydrated equal to the source; at the end all is.
//
// What the destination held before matters, because zeros are skipped where it shows zeros: the three former lives below
// are the ones that an engine which remembers, assumes, or forgets to flush gets wrong, as the last tests prove.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Geometry } from "../../src/base/geometry.ts";
import type { BlockDevice, Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { formattedStore, makeHydration } from "../support/hydration.ts";
import { imageOf } from "../support/image.ts";
import { deviceOf, noise, type Run } from "../support/layout.ts";
import { Power, PowerLossDevice, PowerLost, seededRandom } from "../support/power-loss-device.ts";
import { SlowDevice } from "../support/slow-device.ts";
import { VirtualClock } from "../support/virtual-clock.ts";
import { ZeroTellingDevice } from "../support/zero-telling-device.ts";

const REGION = 4096;
const REGIONS = 24;
const SIZE = (REGIONS - 1) * REGION + 512; // the last one is short
const geometry = new Geometry({ size: SIZE, regionSize: REGION });
const SOURCE_RUNS: Run[] = [
  { kind: "data", length: 5 * REGION },
  { kind: "hole", length: 3 * REGION },
  { kind: "data", length: REGION + 512 },
  { kind: "zero", length: 3 * REGION - 512 },
  { kind: "data", length: 4 * REGION },
  { kind: "hole", length: 4 * REGION },
  { kind: "data", length: 4 * REGION },
];
const DIRT = noise(SIZE, 2);
const ZEROS = Buffer.alloc(SIZE);

/** What is durable on the destination before the first life, what was written over it and never flushed, the source. */
interface FormerLife {
  name: string;
  durable: Uint8Array;
  unflushed?: Uint8Array;
  source: MemoryDevice;
}

const mixed = await deviceOf(SOURCE_RUNS, SIZE, 1, "source");
const empty = new MemoryDevice({ name: "source", size: SIZE });
const fullOfOldData: FormerLife = { name: "full of old data", durable: DIRT, source: mixed };
const zeroedOldData: FormerLife = {
  name: "with old data, zeroed but not flushed",
  durable: DIRT,
  unflushed: ZEROS,
  source: mixed,
};
const onlySkipped: FormerLife = {
  name: "with old data, zeroed but not flushed, from a source of zeros",
  durable: DIRT,
  unflushed: ZEROS,
  source: empty,
};
const createdEmpty: FormerLife = {
  name: "created empty, written to but not flushed",
  durable: ZEROS,
  unflushed: DIRT,
  source: mixed,
};

/** Wraps the destination as a wrong engine would use it. */
type Mutation = (destination: BlockDevice) => BlockDevice;
const asItIs: Mutation = (destination) => destination;

interface Media {
  disk: Uint8Array;
  unflushed?: Uint8Array | undefined;
  store: Uint8Array;
}

const STORE = await imageOf(await formattedStore(SIZE, REGION));

/** Hydrates until the power fails after `operations`, or to the end; returns what is then on the media. */
async function live(
  media: Media,
  {
    source,
    operations,
    seed,
    mutation,
  }: { source: MemoryDevice; operations: number; seed: number; mutation: Mutation },
) {
  const power = new Power();
  const clock = new VirtualClock();
  const disk = new PowerLossDevice(media.disk, { name: "disk", power });
  const store = new PowerLossDevice(media.store, { name: "metadata", power });
  if (media.unflushed !== undefined) await disk.write(0, media.unflushed);
  power.used = 0;
  power.left = operations;
  // Slow enough for the timer to commit several times on the way.
  const destination = new SlowDevice(mutation(new ZeroTellingDevice(disk)), clock, 250);
  let survived = true;
  try {
    const settings = { threshold: 2, batchSize: 1 };
    const { run } = await makeHydration({ size: SIZE, clock, source, destination, store, settings });
    expect((await run()).end).toBe("complete");
  } catch (error) {
    if (!(error instanceof PowerLost)) throw error;
    survived = false;
  }
  const random = seededRandom(seed);
  const after: Media = {
    disk: await imageOf(disk.afterPowerLoss(random)),
    store: await imageOf(store.afterPowerLoss(random)),
  };
  return { after, survived, operations: power.used };
}

/** What is wrong with what the media hold, sentences, and how many regions they call hydrated. */
async function inspect({ disk, store }: Media, { source, complete }: { source: MemoryDevice; complete: boolean }) {
  const wrong: string[] = [];
  const expected = await imageOf(source);
  const device = new MemoryDevice({ name: "metadata", size: store.length, content: store });
  const { verdict } = await checkMetadata(device);
  if (verdict !== "clean") return { wrong: [`the metadata is ${verdict}`], hydrated: 0 };
  const metadata = await CloneMetadata.open(device);
  for (const { start, end } of metadata.hydratedRanges()) {
    for (let region = start; region < end; region++) {
      const { offset, length } = geometry.bytesOf({ start: region, end: region + 1 });
      if (Buffer.compare(disk.subarray(offset, offset + length), expected.subarray(offset, offset + length)) !== 0) {
        wrong.push(`region ${region} is called hydrated and is not`);
      }
    }
  }
  if (complete && metadata.hydratedCount !== REGIONS) wrong.push(`only ${metadata.hydratedCount} are hydrated`);
  if (complete && Buffer.compare(disk, expected) !== 0) wrong.push("the copy differs from the source");
  return { wrong, hydrated: metadata.hydratedCount };
}

/** Three lives, the first cut after `cut` operations, the second somewhere, the third not; everything that went wrong. */
async function threeLives(former: FormerLife, cut: number, seed: number, mutation: Mutation) {
  const { durable, unflushed, source } = former;
  const wrong: string[] = [];
  const hydrated: number[] = [];
  let media: Media = { disk: durable, unflushed, store: STORE };
  for (const operations of [cut, Math.abs(seed) % 60, Infinity]) {
    const { after, survived } = await live(media, { source, operations, seed, mutation });
    const found = await inspect(after, { source, complete: survived });
    wrong.push(...found.wrong);
    hydrated.push(found.hydrated);
    media = after;
  }
  return { wrong, hydrated };
}

async function operationsOf({ durable, unflushed, source }: FormerLife): Promise<number> {
  const media = { disk: durable, unflushed, store: STORE };
  return (await live(media, { source, operations: Infinity, seed: 0, mutation: asItIs })).operations;
}

describe.for([fullOfOldData, zeroedOldData, onlySkipped, createdEmpty])(
  "A hydration onto a destination $name",
  (former) => {
    test("cut before any operation, and again, never vouches for lost data, and ends equal to the source", {
      timeout: 60_000,
    }, async () => {
      const operations = await operationsOf(former);
      const progress = new Set<number>();
      for (let cut = 0; cut <= operations; cut++) {
        await fc.assert(
          fc.asyncProperty(fc.integer(), async (seed) => {
            const { wrong, hydrated } = await threeLives(former, cut, seed, asItIs);
            expect(wrong, `cut after ${cut} operations`).toEqual([]);
            progress.add(hydrated[0] as number);
          }),
          { numRuns: 4 },
        );
      }
      // The cuts fell before, between and after commits.
      expect(progress).toContain(0);
      expect(progress).toContain(REGIONS);
      if (former !== onlySkipped) expect(progress.size).toBeGreaterThanOrEqual(4);
    });
  },
);

/** The first that goes wrong at any cut, with a few seeds each. */
async function firstWrong(former: FormerLife, mutation: Mutation): Promise<string | undefined> {
  const operations = await operationsOf(former);
  for (let seed = 0; seed < 5; seed++) {
    for (let cut = 0; cut <= operations; cut++) {
      const { wrong } = await threeLives(former, cut, seed, mutation);
      if (wrong.length > 0) return wrong[0];
    }
  }
  return undefined;
}

// What follows is wrong in the way that each class says, and must be found by the same lives.

class NeverFlushes extends FilterDevice {
  override async flush(): Promise<void> {}
}

/** Flushes only what this process wrote: not the zeros that it found, and vouches for. */
class FlushesOwnWrites extends FilterDevice {
  #written = false;
  override async write(offset: number, data: Uint8Array): Promise<void> {
    this.#written = true;
    await super.write(offset, data);
  }
  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    this.#written = true;
    await super.zero(offset, length, options);
  }
  override async flush(): Promise<void> {
    if (this.#written) await super.flush();
    this.#written = false;
  }
}

/** Takes whatever it has not written itself for zeros, because the file was created empty. */
class RemembersEmptiness extends FilterDevice {
  override async extents(offset: number, length: number): Promise<Extent[]> {
    return [{ offset, length, hole: true, zero: true }];
  }
}

describe("The lives above find an engine", () => {
  test("that does not flush the destination before it commits", async () => {
    expect(await firstWrong(fullOfOldData, (disk) => new NeverFlushes(disk))).toMatch(/is called hydrated and is not/);
  });

  test("that does not flush where it has only skipped zeros, so that what was there before comes back", async () => {
    expect(await firstWrong(onlySkipped, (disk) => new FlushesOwnWrites(disk))).toMatch(
      /is called hydrated and is not/,
    );
  });

  test("that skips zeros because the destination was created empty, so that a lost write comes back", async () => {
    expect(await firstWrong(createdEmpty, (disk) => new RemembersEmptiness(disk))).toMatch(
      /is called hydrated and is not/,
    );
  });
});

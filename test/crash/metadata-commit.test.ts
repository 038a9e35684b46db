// Power fails before every device operation of a commit in turn, or after all of them. Every sector written but not flushed
// then lands or does not, by seed. Whatever was lost, the metadata must be without fault, say what it said before the commit
// or what it was to say after, and call no region hydrated whose data is not on the destination.
import fc from "fast-check";
import { expect, test } from "vitest";
import { Geometry, type RegionRange } from "../../src/base/geometry.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { RegionBitmap } from "../../src/metadata/region-bitmap.ts";
import { encodeSuperblock, readSuperblock } from "../../src/metadata/superblock.ts";
import { readBitsetLayout, readBitsetWords, setBits } from "../../src/persistent-data/bitset.ts";
import { BlockManager } from "../../src/persistent-data/block-manager.ts";
import { SpaceMap } from "../../src/persistent-data/space-map.ts";
import { TransactionManager } from "../../src/persistent-data/transaction-manager.ts";
import { imageOf } from "../support/image.ts";
import { Power, PowerLossDevice, PowerLost, seededRandom } from "../support/power-loss-device.ts";

const REGION_SIZE = 4096;

interface Machine {
  power: Power;
  store: PowerLossDevice;
  destination: PowerLossDevice;
  metadata: CloneMetadata;
}

/** A clone of `regionCount` regions on a destination of zeroes, on `blockCount` metadata blocks. */
async function machine(regionCount: number, blockCount: number): Promise<Machine> {
  const blank = new MemoryDevice({ name: "store", size: blockCount * 4096 });
  const geometry = new Geometry({ size: regionCount * REGION_SIZE, regionSize: REGION_SIZE });
  await CloneMetadata.create(blank, { geometry, blockCount });
  const power = new Power();
  const store = new PowerLossDevice(await imageOf(blank), { name: "store", power });
  // Its data would be large and is all alike: one byte per region stands for the region.
  const destination = new PowerLossDevice(new Uint8Array(Math.ceil(regionCount / 512) * 512), { name: "disk", power });
  return { power, store, destination, metadata: await CloneMetadata.open(store) };
}

/** Copies the regions and marks them, as the hydrator does. */
async function hydrate({ destination, metadata }: Machine, ranges: readonly RegionRange[]): Promise<void> {
  for (const range of ranges) {
    await destination.write(range.start, new Uint8Array(range.end - range.start).fill(1));
    metadata.markHydrated(range);
  }
}

async function commit({ destination, metadata }: Machine): Promise<void> {
  metadata.preCommit();
  await destination.flush();
  await metadata.commit();
}

/** Runs until the power fails; whether it did not. */
async function survives(work: () => Promise<void>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof PowerLost) return false;
    throw error;
  }
}

/** What is found when the power is back: faultless metadata that vouches for no lost data. */
async function recovered({ store, destination }: Machine, seed: number): Promise<RegionRange[]> {
  const random = seededRandom(seed);
  const after = store.afterPowerLoss(random);
  const data = await imageOf(destination.afterPowerLoss(random));
  expect((await checkMetadata(after)).verdict).toBe("clean");
  const ranges = [...(await CloneMetadata.open(after)).hydratedRanges()];
  for (const { start, end } of ranges) expect(data.subarray(start, end).every((byte) => byte === 1)).toBe(true);
  return ranges;
}

// 40000 regions have two array blocks. The first operation of a commit is the destination's flush.
const BEFORE: RegionRange[] = [
  { start: 0, end: 64 },
  { start: 39_000, end: 39_001 },
];
const ADDED: RegionRange[] = [
  { start: 64, end: 65 },
  { start: 100, end: 200 },
  { start: 32_570, end: 32_580 },
];
const AFTER: RegionRange[] = [
  { start: 0, end: 65 },
  { start: 100, end: 200 },
  { start: 32_570, end: 32_580 },
  { start: 39_000, end: 39_001 },
];
/** Destination's flush, blocks (in one write), flush, superblock, flush. */
const OPERATIONS = 5;

async function machineBeforeCommit(): Promise<Machine> {
  const m = await machine(40_000, 32);
  await hydrate(m, BEFORE);
  await commit(m);
  await hydrate(m, ADDED);
  return m;
}

test("CloneMetadata.commit() takes the device operations that the crash tests cut between", async () => {
  const m = await machineBeforeCommit();
  const { used } = m.power;
  await commit(m);
  expect(m.power.used - used).toBe(OPERATIONS);
});

test.for(Array.from({ length: OPERATIONS + 1 }, (_, i) => i))(
  "CloneMetadata.commit() cut after %i operations leaves the state before or after it, and no bit without its data",
  (operationsLeft) =>
    fc.assert(
      fc.asyncProperty(fc.integer(), async (seed) => {
        const m = await machineBeforeCommit();
        m.power.left = operationsLeft;
        const done = await survives(() => commit(m));
        expect(done).toBe(operationsLeft === OPERATIONS);
        const ranges = await recovered(m, seed);
        if (done) expect(ranges).toEqual(AFTER);
        else if (operationsLeft < OPERATIONS - 1) expect(ranges).toEqual(BEFORE);
        else expect([BEFORE, AFTER]).toContainEqual(ranges);
      }),
      { numRuns: 20 },
    ),
);

test("CloneMetadata.commit() leaves out what is hydrated while the destination is flushed, even in the same word", async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer(), async (seed) => {
      const m = await machine(40_000, 32);
      await hydrate(m, [{ start: 3, end: 4 }]);
      m.metadata.preCommit();
      await m.destination.flush();
      await hydrate(m, [
        { start: 4, end: 5 },
        { start: 1000, end: 1001 },
      ]); // unflushed: may be lost
      const committing = m.metadata.commit();
      await hydrate(m, [{ start: 5, end: 6 }]);
      await committing;
      expect(m.metadata.changed).toBe(true);
      expect(m.metadata.hydratedCount).toBe(4);
      expect(m.metadata.committedCount).toBe(1);
      expect(await recovered(m, seed)).toEqual([{ start: 3, end: 4 }]);
      await commit(m);
      expect(await recovered(m, seed)).toEqual([
        { start: 3, end: 6 },
        { start: 1000, end: 1001 },
      ]);
    }),
    { numRuns: 20 },
  );
});

// 10 blocks are the least that 16 regions need: allocation wraps round every other commit and reuses every free block.
test("CloneMetadata on the fewest possible blocks survives any number of commits and a cut in any of them", () =>
  fc.assert(
    fc.asyncProperty(
      fc.array(fc.uniqueArray(fc.nat({ max: 15 }), { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 12 }),
      fc.nat({ max: 60 }),
      fc.integer(),
      async (commits, operationsLeft, seed) => {
        const m = await machine(16, 10);
        m.power.left = operationsLeft;
        const allowed = [new Set<number>()];
        await survives(async () => {
          for (const regions of commits) {
            await hydrate(
              m,
              regions.map((region) => ({ start: region, end: region + 1 })),
            );
            const next = new Set(allowed.at(-1));
            for (const region of regions) next.add(region);
            allowed.push(next);
            await commit(m);
            allowed.splice(0, allowed.length - 1);
          }
        });
        const found = (await recovered(m, seed)).flatMap(({ start, end }) =>
          Array.from({ length: end - start }, (_, i) => start + i),
        );
        const sorted = allowed.map((set) => [...set].sort((a, b) => a - b));
        expect(sorted).toContainEqual(found);
      },
    ),
    { numRuns: 150 },
  ));

// With a buffer of two blocks nearly every block of the transaction is written out before the commit begins.
test("A transaction written out early, in pieces, leaves the committed state whole wherever it is cut", () =>
  fc.assert(
    fc.asyncProperty(fc.nat({ max: 14 }), fc.integer(), async (operationsLeft, seed) => {
      const m = await machine(200_000, 64); // 7 array blocks
      await hydrate(m, [{ start: 5, end: 150_000 }]);
      await commit(m);
      const { superblock } = await readSuperblock(m.store);
      const blocks = new BlockManager(m.store, { blockCount: 64, bufferBytes: 8192 });
      const source = { name: "store", blockCount: 64, read: blocks.read.bind(blocks) };
      const transaction = new TransactionManager(blocks, await SpaceMap.load(source, superblock.spaceMap));
      m.power.left = operationsLeft;
      const done = await survives(async () => {
        const bitsetRoot = await setBits(transaction, superblock.bitsetRoot, 200_000, [{ start: 0, end: 200_000 }]);
        await transaction.preCommit();
        await transaction.commit(encodeSuperblock({ ...superblock, bitsetRoot, spaceMap: transaction.spaceMap.root }));
      });
      const after = m.store.afterPowerLoss(seededRandom(seed));
      expect((await checkMetadata(after)).verdict).toBe("clean");
      const { superblock: found } = await readSuperblock(after);
      const readable = new BlockManager(after, { blockCount: 64 });
      const readableSource = { name: "after", blockCount: 64, read: readable.read.bind(readable) };
      const bits = new RegionBitmap(200_000);
      const layout = await readBitsetLayout(readableSource, found.bitsetRoot, 200_000);
      await readBitsetWords(readable, layout, 200_000, (first, words) => void bits.load(first, words));
      const states = [[{ start: 5, end: 150_000 }], [{ start: 0, end: 200_000 }]];
      expect(done ? states.slice(1) : states).toContainEqual([...bits.ranges()]);
    }),
    { numRuns: 120 },
  ));

// The space map against a plain model: one set of blocks in use now, one of those in use at the last commit. What it
// allocates must be in neither, its own blocks included, and it must say the same after it was read again from disk.
import fc from "fast-check";
import { expect, test } from "vitest";
import { CloneError } from "../../src/base/errors.ts";
import { SpaceMap } from "../../src/persistent-data/space-map.ts";
import { endTransaction, newTransaction, reload } from "../support/transaction.ts";

type Step =
  | { kind: "allocate"; count: number }
  | { kind: "free"; pick: number }
  | { kind: "commit" }
  | { kind: "reload" };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant("allocate" as const), count: fc.integer({ min: 1, max: 5 }) }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("free" as const), pick: fc.nat() }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("commit" as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("reload" as const) }) },
);

async function run(blockCount: number, fill: number, steps: readonly Step[]): Promise<void> {
  let { device, transaction } = newTransaction(blockCount);
  let map = transaction.spaceMap;
  /** What this test holds, besides the superblock, the reference counts and the map's own. */
  const held: number[] = [];
  const live = () => new Set([0, map.root.refCountRoot, ...map.ownBlocks(), ...held]);
  let committed = new Set<number>();

  const allocate = (): boolean => {
    const before = live();
    let block: number;
    try {
      block = map.allocate();
    } catch (error) {
      expect(error).toBeInstanceOf(CloneError); // out of space, not out of step
      const freeInBoth = Array.from({ length: blockCount }, (_, i) => i).filter(
        (i) => !before.has(i) && !committed.has(i),
      );
      // One for the block itself, and one for each bitmap that has to be shadowed for it.
      expect(freeInBoth.length).toBeLessThan(1 + map.ownBlocks().length);
      return false;
    }
    expect(before.has(block)).toBe(false);
    expect(committed.has(block)).toBe(false);
    held.push(block);
    for (const own of map.ownBlocks()) if (!before.has(own)) expect(committed.has(own)).toBe(false);
    expect(map.isNew(block)).toBe(true);
    return true;
  };
  const commit = async (): Promise<boolean> => {
    try {
      await endTransaction(transaction);
    } catch (error) {
      expect(error).toBeInstanceOf(CloneError);
      return false; // no space for the index; the model has no opinion on when exactly
    }
    committed = live();
    return true;
  };

  for (let i = 0; i < fill; i++) held.push(map.allocate()); // right after the format there is room, and no bitmap to shadow
  if (!(await commit())) return;
  for (const action of steps) {
    if (action.kind === "allocate") {
      for (let i = 0; i < action.count; i++) if (!allocate()) return;
    } else if (action.kind === "free") {
      if (held.length === 0) continue;
      try {
        map.free(held.splice(action.pick % held.length, 1)[0] as number);
      } catch (error) {
        expect(error).toBeInstanceOf(CloneError);
        return; // no space for the shadow of a bitmap
      }
    } else {
      if (!(await commit())) return;
      if (action.kind === "reload") {
        transaction = await reload(device, transaction);
        map = transaction.spaceMap;
        expect(map.warnings).toEqual([]);
      }
    }
    const now = live();
    expect(now.size).toBe(3 + map.ownBlocks().length - 1 + held.length); // nothing has two uses
    expect(map.allocatedCount).toBe(now.size);
    for (let block = 0; block < Math.min(blockCount, 64); block++) {
      expect(map.count(block)).toBe(now.has(block) ? 1 : 0);
      expect(map.isCommitted(block)).toBe(committed.has(block));
    }
  }
}

test("SpaceMap never hands out a block in use now or at the last commit, on a device that fills up", () =>
  fc.assert(
    fc.asyncProperty(fc.integer({ min: 12, max: 40 }), fc.nat({ max: 6 }), fc.array(step, { maxLength: 60 }), run),
    { numRuns: 300 },
  ));

test("SpaceMap never hands out a block in use now or at the last commit, where bitmaps meet", () =>
  fc.assert(fc.asyncProperty(fc.constant(16_345), fc.constant(16_310), fc.array(step, { maxLength: 40 }), run), {
    numRuns: 5,
  }));

test("SpaceMap.allocate() does not reuse a block freed in this transaction, and does so in the next", async () => {
  const { transaction } = newTransaction(12);
  const map = transaction.spaceMap;
  const blocks = [map.allocate(), map.allocate()];
  await endTransaction(transaction);
  map.free(blocks[0] as number);
  const taken = [map.allocate(), map.allocate()];
  expect(taken).not.toContain(blocks[0]);
  await endTransaction(transaction);
  const later = Array.from({ length: 4 }, () => map.allocate());
  expect(later).toContain(blocks[0]);
});

test("SpaceMap.allocate() refuses when nothing is free, naming the counts", () => {
  const map = SpaceMap.format(6, "small.meta");
  map.allocate();
  map.allocate();
  expect(() => map.allocate()).toThrow('No block is free in the metadata "small.meta" (6 of 6 in use)');
});

test("SpaceMap.allocate() refuses rather than hand out the last free block twice", async () => {
  const { transaction } = newTransaction(10);
  const map = transaction.spaceMap;
  while (map.allocatedCount < 9) map.allocate();
  await endTransaction(transaction);
  // The last block is taken, and the bitmap's shadow then needs another one.
  expect(() => map.allocate()).toThrow(CloneError);
});

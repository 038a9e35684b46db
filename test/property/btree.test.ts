// A btree against a Map, across transactions: small sets of keys, then enough of them in every order to make each way of
// gaining room happen (splitting the root, evening out left and right, one node to two, two to three).
import fc from "fast-check";
import { expect, test } from "vitest";
import { BTree, WritableBTree } from "../../src/persistent-data/btree.ts";
import type { TransactionManager } from "../../src/persistent-data/transaction-manager.ts";
import { seededRandom } from "../support/power-loss-device.ts";
import { endTransaction, newTransaction, reload } from "../support/transaction.ts";

/** Values have to look like block numbers of the device. */
const BLOCKS = 16_000;

/** Everything in the tree in the order it is met, and its nodes with their depth. */
async function contents(transaction: TransactionManager, root: number) {
  const entries: [number, number][] = [];
  const nodes: { block: number; depth: number }[] = [];
  await new BTree(transaction, { valueSize: 8 }).walk(root, {
    entry: (key, value) => void entries.push([key, value]),
    node: (block, depth) => void nodes.push({ block, depth }),
  });
  return { entries, nodes };
}

function sorted(model: ReadonlyMap<number, number>): [number, number][] {
  return [...model].sort(([a], [b]) => a - b);
}

/** Inserts the keys, ending the transaction now and then, and compares with the model. */
async function insertAll(keys: readonly number[], commitEvery: number) {
  const { device, transaction } = newTransaction(BLOCKS);
  const tree = new WritableBTree(transaction);
  const model = new Map<number, number>();
  let root = tree.createEmpty();
  for (const [i, key] of keys.entries()) {
    const value = 1 + (i % (BLOCKS - 1));
    root = await tree.insert(root, key, value);
    model.set(key, value);
    if ((i + 1) % commitEvery === 0) await endTransaction(transaction);
  }
  await endTransaction(transaction);
  return { device, transaction, tree, root, model };
}

test("BTree holds what a Map holds, now and read again, and loses no block", () =>
  fc.assert(
    fc.asyncProperty(
      fc.array(fc.nat({ max: 2 ** 40 }), { maxLength: 60 }),
      fc.integer({ min: 1, max: 20 }),
      async (keys, commitEvery) => {
        const { device, transaction, tree, root, model } = await insertAll(keys, commitEvery);
        const { entries, nodes } = await contents(transaction, root);
        expect(entries).toEqual(sorted(model));
        expect((await contents(await reload(device, transaction), root)).entries).toEqual(entries);
        for (const key of keys) {
          expect(await tree.lookup(root, key)).toBe(model.get(key));
          if (!model.has(key + 1)) expect(await tree.lookup(root, key + 1)).toBeUndefined();
        }
        // Superblock, reference counts, index and bitmaps: everything else in use is a node of the tree.
        const own = transaction.spaceMap.ownBlocks().length + 2;
        expect(transaction.spaceMap.allocatedCount).toBe(nodes.length + own);
      },
    ),
    { numRuns: 60 },
  ));

const ascending = (count: number) => Array.from({ length: count }, (_, i) => i);
const shuffled = (count: number): number[] => {
  const random = seededRandom(count);
  return ascending(count)
    .map((key) => ({ key, at: random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ key }) => key);
};
const orders: Record<string, (count: number) => number[]> = {
  ascending,
  descending: (count) => ascending(count).reverse(),
  "from both ends": (count) => ascending(count).map((i) => (i % 2 === 0 ? i : 2 * count - i)),
  "scattered over full leaves": (count) => {
    const random = seededRandom(count);
    return ascending(count).map((i) => (i < count / 2 ? 1000 * i : Math.floor(random() * 1000 * (count / 2))));
  },
  shuffled,
};

test.each(Object.keys(orders))(
  "BTree of 6000 keys inserted %s holds what a Map holds, its nodes well filled",
  async (order) => {
    const keys = (orders[order] as (count: number) => number[])(6000);
    const { device, transaction, root, model } = await insertAll(keys, 1700);
    const { entries, nodes } = await contents(await reload(device, transaction), root);
    expect(entries).toEqual(sorted(model));
    expect(nodes.length - 1).toBeLessThanOrEqual(Math.ceil(model.size / 100)); // a split leaves 126 per leaf, three-way 168
    expect(transaction.spaceMap.allocatedCount).toBe(nodes.length + transaction.spaceMap.ownBlocks().length + 2);
  },
);

test("BTree of three levels holds what a Map holds when keys are inserted and then replaced in another order", async () => {
  const count = 40_000;
  const keys = ascending(count);
  const again = shuffled(count).slice(0, 3000);
  const { device, transaction, root, model } = await insertAll([...keys, ...keys.reverse(), ...again], 50_000);
  const { entries, nodes } = await contents(await reload(device, transaction), root);
  expect(entries).toEqual(sorted(model));
  expect(transaction.spaceMap.allocatedCount).toBe(nodes.length + transaction.spaceMap.ownBlocks().length + 2);
});

import { expect, test } from "vitest";
import {
  bitsetNodeCount,
  metadataByteLength,
  minimumBlockCount,
  recommendedBlockCount,
} from "../../../src/metadata/metadata-size.ts";
import { BTree, WritableBTree } from "../../../src/persistent-data/btree.ts";
import { newTransaction } from "../../support/transaction.ts";

test.each([
  [16, 10],
  [32_576, 10],
  [262_144, 26],
  [8_209_152, 512],
  [10_000_000, 626],
  [67_108_864, 4148],
])("minimumBlockCount(%d regions) is %d", (regions, blocks) => {
  expect(minimumBlockCount(regions)).toBe(blocks);
});

test.each([
  [252, 1],
  [253, 3],
  [500, 3],
  [501, 4],
  [748, 4],
  [1000, 6],
  [2061, 10],
  [4123, 18],
  [8243, 35],
  [16_486, 68],
  [32_969, 134],
])("bitsetNodeCount(%d array blocks) is the kernel's %d", (arrayBlocks, nodes) => {
  expect(bitsetNodeCount(arrayBlocks)).toBe(nodes);
});

test("bitsetNodeCount() is what the btree grows to, up to as many array blocks as 2^31 regions have", async () => {
  const { transaction } = newTransaction(66_000);
  const tree = new WritableBTree(transaction);
  let root = tree.createEmpty();
  for (let key = 0; key < 65_923; key++) {
    root = await tree.insert(root, key, 1);
    const count = key + 1;
    // Whenever growth changes anything, and at steps that have nothing to do with it.
    if (count !== 65_923 && count % 9973 !== 0 && ![62_100, 62_500].includes(count)) continue;
    let nodes = 0;
    await new BTree(transaction, { valueSize: 8 }).walk(root, { node: () => void nodes++ });
    expect([count, bitsetNodeCount(count)]).toEqual([count, nodes]);
  }
});

test("recommendedBlockCount() adds a quarter, at least 1 MiB, within what the format can use", () => {
  expect(recommendedBlockCount(16)).toBe(10 + 256);
  expect(recommendedBlockCount(67_108_864)).toBe(4148 + 1037);
  expect(metadataByteLength(recommendedBlockCount(2 ** 31))).toBeLessThan(680 * 2 ** 20);
});

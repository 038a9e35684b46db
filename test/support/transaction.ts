/** Transactions over memory, for tests of what is built on them. */
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { BlockManager } from "../../src/persistent-data/block-manager.ts";
import { BLOCK_SIZE } from "../../src/persistent-data/checksum.ts";
import { SpaceMap } from "../../src/persistent-data/space-map.ts";
import { TransactionManager } from "../../src/persistent-data/transaction-manager.ts";

/** A transaction on a newly formatted space map of `blockCount` blocks; its reference-count leaf is not written. */
export function newTransaction(blockCount: number): { device: MemoryDevice; transaction: TransactionManager } {
  const device = new MemoryDevice({ name: "store", size: blockCount * BLOCK_SIZE });
  const blocks = new BlockManager(device, { blockCount });
  return { device, transaction: new TransactionManager(blocks, SpaceMap.format(blockCount, "store")) };
}

/** Ends a transaction, with an empty superblock. */
export async function endTransaction(transaction: TransactionManager): Promise<void> {
  await transaction.preCommit();
  await transaction.commit(new Uint8Array(BLOCK_SIZE));
}

/** The same space map, read from the device anew. */
export async function reload(device: MemoryDevice, transaction: TransactionManager): Promise<TransactionManager> {
  const { blockCount } = transaction;
  const blocks = new BlockManager(device, { blockCount });
  const source = { name: device.name, blockCount, read: blocks.read.bind(blocks) };
  return new TransactionManager(blocks, await SpaceMap.load(source, transaction.spaceMap.root));
}

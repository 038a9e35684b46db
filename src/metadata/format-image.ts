/**
 * Whole metadata in one go: for a new clone, and for what is restored or rebuilt from elsewhere.
 *
 *     0 superblock | 1 index | 2 reference-count leaf | 3 … bitmaps | bitset root | array blocks, nodes as the tree grows
 *
 * The blocks are those that the kernel's format hands out (`__format_metadata`, format section 7), the bits put straight
 * into the array blocks. The order in which they become durable is that of a commit, with a step before it:
 *
 *     1. an old superblock is zeroed       or it would soon point to blocks of the new metadata
 *     2. the descriptor                    from the moment the superblock is there, the metadata is complete
 *     3. everything but block 0
 *     4. the superblock
 *
 * each flushed before the next. A crash before the end leaves a device that holds no clone, never half of one.
 */
import assert from "node:assert";
import { UsageError } from "../base/errors.ts";
import type { Geometry } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { bitsetBlockCountOf, createBitset } from "../persistent-data/bitset.ts";
import { BlockManager } from "../persistent-data/block-manager.ts";
import { BTreeNode } from "../persistent-data/btree-node.ts";
import { BLOCK_SIZE, sealBlock } from "../persistent-data/checksum.ts";
import { bitmapCountOf, MAX_METADATA_BLOCKS, SpaceMap } from "../persistent-data/space-map.ts";
import { TransactionManager } from "../persistent-data/transaction-manager.ts";
import { describeAnew } from "./describe-anew.ts";
import { DESCRIPTOR_BYTES, type Descriptor, DescriptorStore } from "./descriptor.ts";
import { bitsetNodeCount, metadataByteLength, minimumBlockCount } from "./metadata-size.ts";
import type { RegionBitmap } from "./region-bitmap.ts";
import { encodeSuperblock } from "./superblock.ts";

/** What formatted metadata is made from. */
export interface FormatContent {
  geometry: Geometry;
  /** Blocks that the space map is to manage (`nr_blocks`). */
  blockCount: number;
  /** The hydrated regions; null for none. */
  bits: RegionBitmap | null;
}

/**
 * Formats the first `blockCount` blocks of a device, and the place of the descriptor behind them: with `descriptor`, or
 * blank where that is null, lest the remains of an earlier clone be taken for it. (No room is needed for none.) The
 * descriptor says that the place was blank where `isBlank` does, whatever it said of another place, and how the clone was
 * left as far as that holds for the new blocks (`describe-anew.ts`).
 *
 * @throws {UsageError} where the blocks are fewer than commits need, or more than the device or the format has
 * @throws {RangeError} where there is no room for the descriptor, or it breaks its documented limits
 * @throws {DeviceError} after which the device holds no clone
 */
export async function writeFormatted(
  device: BlockDevice,
  content: FormatContent & { descriptor: Descriptor | null; isBlank?: boolean },
): Promise<void> {
  const { geometry, blockCount } = content;
  const descriptor = aboutPlace(content.descriptor, content.isBlank ?? false);
  checkBlockCount(device, content);
  const hasRoom = metadataByteLength(blockCount) + DESCRIPTOR_BYTES <= device.size;
  if (!hasRoom && descriptor !== null) {
    throw new RangeError(`"${device.name}" has no room for a descriptor behind ${blockCount} blocks`);
  }
  await destroySuperblock(device);
  if (hasRoom) {
    const descriptors = await DescriptorStore.format(device, { geometry, blockCount });
    if (descriptor !== null) {
      const superblock = formattedSuperblock(content);
      await descriptors.write(await describeAnew(device, descriptor, { ...content, superblock }));
    }
  }
  await writeBlocks(device, content);
}

/** The superblock that is written, checksum included. @see writeFormatted */
export function formattedSuperblock({ geometry, blockCount }: Omit<FormatContent, "bits">): Uint8Array {
  const arrayBlocks = bitsetBlockCountOf(geometry.regionCount);
  const bitsetRoot = 3 + bitmapCountOf(blockCount); // it keeps its block when the tree grows
  const allocatedCount = bitsetRoot + bitsetNodeCount(arrayBlocks) + arrayBlocks;
  const bytes = encodeSuperblock({
    geometry,
    spaceMap: { blockCount, allocatedCount, indexBlock: 1, refCountRoot: 2 },
    bitsetRoot,
  });
  sealBlock(bytes, "superblock", 0);
  return bytes;
}

/** Whether the place was blank is known of this one, whatever the descriptor says of where it came from. */
function aboutPlace(descriptor: Descriptor | null, isBlank: boolean): Descriptor | null {
  if (descriptor === null) return null;
  const { blank: _, ...rest } = descriptor;
  return isBlank ? { ...rest, blank: true } : rest;
}

/** The same, but what stands behind the managed blocks stays as it is. @throws as `writeFormatted` */
export async function formatBlocks(device: BlockDevice, content: FormatContent): Promise<void> {
  checkBlockCount(device, content);
  await destroySuperblock(device);
  await writeBlocks(device, content);
}

function checkBlockCount(device: BlockDevice, { geometry, blockCount }: FormatContent): void {
  const minimum = minimumBlockCount(geometry.regionCount);
  const refuse = (why: string): never => {
    throw new UsageError(`Cannot create clone metadata of ${blockCount} blocks on "${device.name}": ${why}`);
  };
  if (!Number.isInteger(blockCount)) throw new RangeError(`block count ${blockCount} is not an integer`);
  if (blockCount < minimum) refuse(`${geometry.regionCount} regions need ${minimum}`);
  if (blockCount > MAX_METADATA_BLOCKS) refuse(`the format has room for ${MAX_METADATA_BLOCKS}`);
  if (metadataByteLength(blockCount) > device.size) refuse(`it has ${Math.floor(device.size / BLOCK_SIZE)}`);
}

async function destroySuperblock(device: BlockDevice): Promise<void> {
  const first = new Uint8Array(BLOCK_SIZE);
  await device.read(0, first);
  if (first.every((byte) => byte === 0)) return;
  await device.write(0, first.fill(0));
  await device.flush();
}

async function writeBlocks(device: BlockDevice, { geometry, blockCount, bits }: FormatContent): Promise<void> {
  const { regionCount } = geometry;
  assert(bits === null || bits.size === regionCount);
  const spaceMap = SpaceMap.format(blockCount, device.name);
  const blocks = new BlockManager(device, { blockCount });
  const transaction = new TransactionManager(blocks, spaceMap);
  const refCounts = BTreeNode.format(new Uint8Array(BLOCK_SIZE), { leaf: true, valueSize: 4 });
  await blocks.write(spaceMap.root.refCountRoot, "node", refCounts.bytes);
  const bitsetRoot = await createBitset(transaction, regionCount, (firstBit, words) => bits?.store(firstBit, words));
  await transaction.preCommit();
  await transaction.commit(encodeSuperblock({ geometry, spaceMap: spaceMap.root, bitsetRoot }));
}

/**
 * The descriptor of damaged metadata. It stands behind the managed blocks, and says itself how many these are and of what
 * clone: so where the superblock cannot tell, every place that can hold one is looked at.
 */
import { Geometry, SECTOR_SIZE } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { BLOCK_SIZE, type BlockReader, MAX_BLOCK_COUNT, readUint64 } from "./check-blocks.ts";
import { DESCRIPTOR_BYTES, type Descriptor, type DescriptorPlace, DescriptorStore } from "./descriptor.ts";
import { MIN_METADATA_BLOCKS, metadataByteLength } from "./metadata-size.ts";

const MAGIC = Buffer.from("dmclone\0", "latin1");
const SLOT_BLOCKS = DESCRIPTOR_BYTES / BLOCK_SIZE / 2;
/** Places looked at more closely: far more than two clones on one device leave behind. */
const MOST_PLACES = 64;

/** A descriptor and the metadata it says it belongs to. */
export interface FoundDescriptor {
  place: DescriptorPlace;
  descriptor: Descriptor;
}

/** What is where a descriptor is expected. */
export interface ReadDescriptor {
  descriptor: Descriptor | null;
  /** Sentences on what stands there instead, or beside it. */
  warnings: readonly string[];
}

/** Reads the descriptor of metadata whose geometry is known; none is no error. */
export async function readDescriptor(device: BlockDevice, place: DescriptorPlace): Promise<ReadDescriptor> {
  const store = await DescriptorStore.open(device, place);
  return { descriptor: store.read(), warnings: store.warnings };
}

/** Every descriptor on the device that stands where it says it belongs. */
export async function findDescriptors(device: BlockDevice, reader: BlockReader): Promise<FoundDescriptor[]> {
  const places = new Map<string, DescriptorPlace>();
  const last = Math.min(reader.blocksOnDevice, MAX_BLOCK_COUNT + 2 * SLOT_BLOCKS);
  const candidates = Array.from({ length: Math.max(0, last - MIN_METADATA_BLOCKS) }, (_, i) => i + MIN_METADATA_BLOCKS);
  await reader.each(candidates, (block) => {
    if (typeof block === "string" || MAGIC.compare(block.bytes, 0, MAGIC.length) !== 0) return;
    const place = placeIn(block.view);
    if (place === null || places.size === MOST_PLACES) return;
    const slot = (block.number - place.blockCount) / SLOT_BLOCKS;
    const { size, regionSize } = place.geometry;
    if (slot === 0 || slot === 1) places.set(`${size} ${regionSize} ${place.blockCount}`, place);
  });
  const found: FoundDescriptor[] = [];
  for (const place of places.values()) {
    const { descriptor } = await readDescriptor(device, place);
    if (descriptor !== null) found.push({ place, descriptor });
  }
  return found;
}

/** What the header of a slot says that it belongs to; its checksum has not been looked at. */
function placeIn(view: DataView): DescriptorPlace | null {
  const [size, regionSize, blockCount] = [
    readUint64(view, 24) * SECTOR_SIZE,
    readUint64(view, 32) * SECTOR_SIZE,
    readUint64(view, 40),
  ];
  if (!(blockCount >= MIN_METADATA_BLOCKS && blockCount <= MAX_BLOCK_COUNT)) return null;
  const geometry = geometryOf({ size, regionSize });
  return geometry === null ? null : { geometry, blockCount };
}

/** The geometry of sizes that may be anything; null where they are impossible. Bytes. */
export function geometryOf(sizes: { size: number; regionSize: number }): Geometry | null {
  try {
    return new Geometry(sizes);
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

/** Bytes that metadata takes, with its descriptor or without. */
export function imageBytes(blockCount: number, descriptor: Descriptor | null): number {
  return metadataByteLength(blockCount) + (descriptor === null ? 0 : DESCRIPTOR_BYTES);
}

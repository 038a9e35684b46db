/**
 * What a descriptor records of how a clone was left, when the clone gets new metadata: by a repair, or from a dump. The
 * superblock is another one then, or the same by chance, as formatting makes the same of every clone of a size; and so are the
 * free blocks. So what is recorded of them is
 *
 *     made anew      where the new metadata has exactly the bits that were recorded: nobody has gone on
 *     no more        where that was so before: somebody had gone on, and that remains to be known
 *     forgotten      where the bits are others: as after a run that was cut off
 */
import type { Geometry } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { readUint64 } from "./check-blocks.ts";
import { BitsDigest } from "./descriptor-digest.ts";
import type { Descriptor, SettledState } from "./descriptor-json.ts";
import type { RegionBitmap } from "./region-bitmap.ts";
import { arrayBlockCount, REGIONS_PER_BLOCK, wordsUnder } from "./repair-array.ts";
import { checksumText, MOST_FREE, recordBlocks } from "./settled-witness.ts";

/** The new metadata, of which all that is in use comes first. */
interface NewMetadata {
  geometry: Geometry;
  /** The hydrated regions; null for none. */
  bits: RegionBitmap | null;
  /** Its block 0. */
  superblock: Uint8Array;
}

/** The descriptor for new metadata on a device whose free blocks are already what they will be. */
export async function describeAnew(
  device: BlockDevice,
  descriptor: Descriptor,
  { geometry, bits, superblock }: NewMetadata,
): Promise<Descriptor> {
  const { settled } = descriptor.destination;
  if (settled == null) return descriptor;
  const anew = (state: SettledState | null): Descriptor => ({
    ...descriptor,
    destination: { ...descriptor.destination, settled: state },
  });
  const count = bits?.count() ?? 0;
  if (settled.free === undefined) return anew(goneOn(settled, { isOlder: count < (settled.hydratedRegions ?? 0) }));
  if (settled.hydratedRegions !== count || settled.hydratedDigest !== digestOf(geometry, bits)) return anew(null);
  const { free: _, ...rest } = settled;
  const free = await recordBlocks(device, firstFree(superblock));
  return anew({ ...rest, superblock: checksumText(superblock), ...free });
}

/**
 * What is recorded of a clone that somebody else has gone on with, in metadata that does not show it any more. `isOlder`: whether
 * there may be fewer bits than were recorded, which is no fault then.
 */
export function goneOn(settled: SettledState, { isOlder }: { isOlder: boolean }): SettledState {
  const { free: _, hydratedDigest: __, hydratedRegions, ...rest } = settled;
  return isOlder || hydratedRegions === undefined ? rest : { ...rest, hydratedRegions };
}

/** @see BitsDigest */
function digestOf(geometry: Geometry, bits: RegionBitmap | null): string {
  const digest = new BitsDigest();
  if (bits !== null) {
    for (let key = 0; key < arrayBlockCount(geometry); key++) {
      const words = new Uint8Array(8 * wordsUnder(key, geometry));
      bits.store(key * REGIONS_PER_BLOCK, words);
      digest.add(key, words);
    }
  }
  return digest.toString();
}

function firstFree(superblock: Uint8Array): number[] {
  const view = new DataView(superblock.buffer, superblock.byteOffset, superblock.length);
  const [blockCount, allocated] = [readUint64(view, 44), readUint64(view, 52)];
  return Array.from({ length: Math.min(MOST_FREE, blockCount - allocated) }, (_, i) => allocated + i);
}

/**
 * Whether the metadata of an idle clone says what it said when the clone was left, as far as its descriptor recorded that.
 *
 * The same superblock does not mean the same bits: it has no number of its transaction, and blocks are used again, so that a kernel
 * that has gone on may leave its roots, and so every byte of block 0, where they were. But it only adds bits. So where there
 * are more than there were, nobody can tell; where there are not, and they are others, no commit has made them.
 */
import { MetadataError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import type { CloneMetadata } from "../metadata/clone-metadata.ts";
import type { Descriptor } from "../metadata/descriptor.ts";

/**
 * To be asked of metadata that is locked: nobody commits meanwhile.
 *
 * @returns a warning where fewer regions are hydrated than were, by a commit of somebody else
 * @throws {MetadataError} where other regions are hydrated than were, and not more, by the same superblock
 * @throws {DeviceError}
 */
export async function refuseOtherBits(
  device: BlockDevice,
  metadata: CloneMetadata,
  descriptor: Descriptor | null,
): Promise<string | undefined> {
  const settled = descriptor?.destination.settled;
  if (settled == null) return undefined;
  const checksum = new Uint8Array(4);
  await device.read(0, checksum);
  const { hydratedRegions = 0, hydratedDigest } = settled;
  if (settled.superblock !== Buffer.from(checksum).toString("hex")) {
    if (metadata.hydratedCount >= hydratedRegions) return undefined;
    return `${metadata.hydratedCount} regions are hydrated, ${hydratedRegions} were when the clone was left: its metadata is older than that, or was begun anew`;
  }
  if (hydratedDigest === undefined || hydratedDigest === metadata.hydratedDigest()) return undefined;
  if (metadata.hydratedCount > hydratedRegions) return undefined;
  throw new MetadataError(`Which regions are hydrated is not what the clone was left with, in "${device.name}"`, {
    hint: "A block of another clone, or of another time, stands in the place of the true one: see `clone check` and `clone repair`.",
  });
}

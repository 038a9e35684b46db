/**
 * Whether the metadata of an idle clone says what it said when the clone was left, as far as its descriptor recorded that.
 *
 * Other bits than were recorded are refuted only where nobody has committed since (`settled-witness.ts`).
 */
import { MetadataError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import type { CloneMetadata } from "../metadata/clone-metadata.ts";
import type { Descriptor } from "../metadata/descriptor.ts";
import { isAsLeft } from "../metadata/settled-witness.ts";

/**
 * To be asked of metadata that is locked: nobody commits meanwhile.
 *
 * @returns a warning where fewer regions are hydrated than were, by a commit of somebody else
 * @throws {MetadataError} where other regions are hydrated than were, though nobody has committed since
 * @throws {DeviceError}
 */
export async function refuseOtherBits(
  device: BlockDevice,
  metadata: CloneMetadata,
  descriptor: Descriptor | null,
): Promise<string | undefined> {
  const settled = descriptor?.destination.settled;
  if (settled == null) return undefined;
  const { hydratedRegions = 0, hydratedDigest } = settled;
  if (!(await isAsLeft(device, settled))) {
    if (metadata.hydratedCount >= hydratedRegions) return undefined;
    return `${metadata.hydratedCount} regions are hydrated, ${hydratedRegions} were when the clone was left: its metadata is older than that, or was begun anew`;
  }
  if (hydratedDigest === undefined || hydratedDigest === metadata.hydratedDigest()) return undefined;
  throw new MetadataError(`Which regions are hydrated is not what the clone was left with, in "${device.name}"`, {
    hint: "A block of another clone, or of another time, stands in the place of the true one: see `clone check` and `clone repair`.",
  });
}

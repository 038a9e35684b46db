/** `clone delete`: gives a clone up. The metadata goes, the destination stays. */
import { DeviceError, MetadataError, withHint } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";
import { DescriptorStore } from "../metadata/descriptor.ts";
import { probeSuperblock } from "../metadata/superblock.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";
import { displayUri } from "./location.ts";
import { removeMetadata } from "./metadata-file.ts";
import { openMetadata } from "./open-metadata.ts";

/** A clone about to be given up. */
export interface Deletion {
  metadata: string;
  /** Path or URI of the destination, where it is known. */
  destination: string | undefined;
}

/**
 * Gives up the clone that `name` means, if `confirm` agrees. Also one whose metadata is damaged, as long as it is known to
 * be a clone's; anything else is left alone. A metadata device has its first block zeroed, as dm-clone wants it.
 *
 * @returns what was given up, or undefined where `confirm` did not agree
 * @throws {MetadataError} where it is no clone's metadata
 * @throws {BusyError} where it is in use
 * @throws {DeviceError}
 */
export async function deleteClone(
  name: string,
  confirm: (deletion: Deletion) => Promise<boolean>,
): Promise<Deletion | undefined> {
  await using opened = await openMetadata(name, "exclusive");
  const { device } = opened;
  const deletion = { metadata: device.path, destination: await destinationOf(device) };
  if (!(await confirm(deletion))) return undefined;
  if (device.kind === "block") {
    await device.write(0, new Uint8Array(BLOCK_SIZE), { fua: true });
  } else {
    await removeMetadata(device.path);
  }
  return deletion;
}

/** @throws {MetadataError} where the device holds no clone's metadata, damaged or not */
async function destinationOf(device: FileDevice): Promise<string | undefined> {
  const probed = await probeSuperblock(device).catch((error: unknown) => {
    if (!(error instanceof DeviceError)) throw error;
    throw withHint(error, "Whether it is a clone's cannot be told: where you know that it is, remove it by hand.");
  });
  if (probed.verdict === "damaged" || (probed.verdict === "unformatted" && probed.orphans)) return undefined;
  if (probed.verdict === "truncated" && probed.left === "superblock") return undefined;
  if (probed.verdict !== "valid") {
    throw new MetadataError(`Cannot delete "${device.path}": ${probed.error.message}`, { cause: probed.error });
  }
  const { geometry, spaceMap } = probed.superblock;
  const descriptors = await DescriptorStore.open(device, { geometry, blockCount: spaceMap.blockCount });
  const uri = descriptors.read()?.destination.uri;
  return uri === undefined ? undefined : displayUri(uri);
}

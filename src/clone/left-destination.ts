/**
 * Whether a destination is a file that nobody has written to since its clone was left. Of all that can be a destination only a
 * file has a time of last change.
 */
import { CloneError, DeviceError } from "../base/errors.ts";
import { FileDevice } from "../device/file-device.ts";
import type { Descriptor } from "../metadata/descriptor.ts";
import { lastChange } from "./destination-state.ts";
import { destinationFingerprint, differenceFrom } from "./fingerprint.ts";
import { type Location, parseLocation } from "./location.ts";
import { strangerOwning } from "./metadata-owner.ts";
import { recordedLocation } from "./recorded-location.ts";

/** Where to look. */
interface LeftDestination {
  /** What the user has named as the destination. */
  named: string | undefined;
  metadata: FileDevice;
}

/** False as well where it cannot be looked at. */
export async function isDestinationAsLeft(
  { destination: { settled, fingerprint, uri } }: Descriptor,
  { named, metadata }: LeftDestination,
): Promise<boolean> {
  if (settled == null) return false;
  try {
    const location = await locate(named, { uri, metadata });
    if (location?.kind !== "file") return false;
    await using file = await FileDevice.open(location.path, { access: "read-only", direct: "off" });
    const difference = differenceFrom(fingerprint, destinationFingerprint({ file, device: file }));
    return file.kind === "file" && difference === undefined && (await lastChange(file)) === settled.mtimeNs;
  } catch (error) {
    if (error instanceof CloneError || error instanceof DeviceError) return false;
    throw error;
  }
}

/** Undefined where only a stranger says where it is. */
async function locate(
  named: string | undefined,
  { uri, metadata }: { uri: string; metadata: FileDevice },
): Promise<Location | undefined> {
  if (named !== undefined) return parseLocation(named);
  return (await strangerOwning(metadata)) === undefined ? await recordedLocation(uri, "destination") : undefined;
}

/**
 * The destination of an unfinished clone as a source: it has holes where its data is not yet, and nothing in it shows which. What
 * tells is the metadata beside it, or the lock of whoever is at work on it.
 */
import { BusyError, UsageError } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";
import { describeHolder, lockHolder } from "../device/lock.ts";
import { openLoopFile } from "../device/loop-file.ts";
import type { AttachedSource, Clone, DeviceRequest } from "./clone.ts";
import { readStatus } from "./clone-status.ts";
import { defaultMetadataPath } from "./metadata-file.ts";
import type { OpenedSource } from "./open-devices.ts";
import { holdsSoundMetadata } from "./standing-metadata.ts";

/**
 * @throws {UsageError | BusyError} where a source is one, or an image or a loop device that is read from one
 * @throws {MetadataError | DeviceError} where that cannot be known
 */
export async function refuseUnfinishedSource({ device, files }: Pick<OpenedSource, "device" | "files">): Promise<void> {
  for (const file of files) await refuseUnfinished(file, device.name);
}

/**
 * Attaches the source of a clone to copy from it. One that is not known to be what the clone was made of is looked at as a new
 * one is.
 * @throws {CloneError} as `Clone.attachSource()` and `refuseUnfinishedSource()`
 */
export async function attachSourceToCopy(clone: Clone, request: DeviceRequest): Promise<AttachedSource> {
  const source = await clone.attachSource(request);
  if (request.source !== undefined || request.acceptChangedSource) await refuseUnfinishedSource(source);
  return source;
}

/** `name` is the source's; `file` is it, or one of those that it is read from. */
async function refuseUnfinished(file: FileDevice, name: string): Promise<void> {
  const isAll = file.path === name;
  const what = isAll ? "it" : `"${file.path}", which it is read from`;
  const which = isAll ? what : `${what},`;
  const holder = await lockHolder(file);
  if (holder !== undefined) {
    throw new BusyError(`Cannot clone "${name}": ${describeHolder(holder)} is writing to ${what}`, {
      pid: holder.pid,
    });
  }
  if (file.kind === "block") {
    await using behind = await openLoopFile(file);
    if (behind !== undefined) await refuseUnfinished(behind, name);
    return;
  }
  const beside = await defaultMetadataPath(file.path);
  const refusal = `Cannot clone "${name}": ${which} may itself be an unfinished clone`;
  if (!(await holdsSoundMetadata(beside, refusal))) return;
  const { status, descriptorFailure } = await readStatus(beside);
  if (status.hydratedRegions === status.regions) return;
  if (descriptorFailure !== null) throw descriptorFailure;
  if (status.state === "finalized") return;
  throw new UsageError(
    `Cannot clone "${name}": ${which} is itself an unfinished clone, ${status.regions - status.hydratedRegions} of its ${status.regions} regions are missing`,
    { hint: `\`clone hydrate ${file.path}\` finishes it.` },
  );
}

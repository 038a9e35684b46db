/** `clone copy`: what of create, hydrate and finalize is still to be done. */
import { CloneError, UsageError } from "../base/errors.ts";
import { Clone, type OpenRequest } from "./clone.ts";
import { type CreatedClone, type CreateRequest, createClone, DEFAULT_REGION_SIZE } from "./create-clone.ts";
import { displayName, displayUri, type Location, parseLocation, parsePath, uriOf } from "./location.ts";
import { defaultMetadataPath, exists, isBlockDevice } from "./metadata-file.ts";
import { strangerOwning } from "./metadata-owner.ts";
import { mayBeMetadata, probeMetadata } from "./standing-metadata.ts";

/** What to copy, and how. */
export interface CopyRequest extends Omit<CreateRequest, "regionSize"> {
  /** Bytes; a copy that goes on keeps its own. */
  regionSize?: number | undefined;
}

/** A clone ready to be hydrated. */
export interface CopyStart {
  clone: Clone;
  /** What was made just now, or null where an earlier, interrupted copy goes on. */
  created: CreatedClone | null;
}

/**
 * Opens the clone of an interrupted copy from this source to this destination, or creates it.
 * @throws {UsageError} where the metadata there belongs to something else
 * @throws what `createClone` and `Clone.open` throw
 */
export async function startCopy(
  request: CopyRequest,
  { signal, onWarning, onDetail }: Pick<OpenRequest, "signal" | "onWarning" | "onDetail">,
): Promise<CopyStart> {
  const destination = parseLocation(request.destination);
  const metadata = await metadataOf(request, destination);
  const isThere = (await isBlockDevice(metadata)) ? await isInUse(metadata) : await exists(metadata);
  const created = isThere
    ? null
    : await createClone({
        ...request,
        regionSize: request.regionSize ?? DEFAULT_REGION_SIZE,
        signal,
        onNote: onWarning,
        onDetail,
      });
  const clone = await Clone.open({ name: metadata, access: "exclusive", signal, onWarning, onDetail });
  try {
    if (created === null) {
      if (request.metadata === undefined) await refuseStranger(clone);
      refuseAnother(clone, request);
    }
    return { clone, created };
  } catch (error) {
    await clone[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * A metadata device is always there; one without metadata on it is to be made into one. Zeroed it counts as that, whatever
 * follows: so deleting a clone leaves it.
 */
async function isInUse(metadata: string): Promise<boolean> {
  const found = await probeMetadata(metadata);
  return mayBeMetadata(found) && found.verdict !== "unformatted";
}

async function metadataOf({ metadata }: CopyRequest, destination: Location): Promise<string> {
  if (metadata !== undefined) return parsePath(metadata);
  if (destination.kind === "file") return await defaultMetadataPath(destination.path);
  throw new UsageError(`Cannot copy to "${displayName(destination)}": a URI needs --metadata FILE`, {
    hint: "It is removed again when the copy is whole.",
  });
}

/** Nobody has named the metadata: who has put it there must not choose what counts as copied. @throws {CloneError} */
async function refuseStranger({ path, metadataDevice }: Clone): Promise<void> {
  const stranger = await strangerOwning(metadataDevice);
  if (stranger === undefined) return;
  throw new CloneError("failed", `Cannot go on with "${path}": it belongs to another user (uid ${stranger})`, {
    hint: `Copy to another place; or, if it is yours, say so: --metadata ${path}`,
  });
}

function refuseAnother({ path, descriptor, geometry, metadataDevice }: Clone, request: CopyRequest): void {
  if (descriptor === null) {
    throw new UsageError(`Cannot go on with "${path}": it does not say whose clone it is`, {
      hint: "`clone hydrate` and `clone finalize` take --source and --destination.",
    });
  }
  for (const which of ["source", "destination"] as const) {
    const wanted = uriOf(parseLocation(request[which]));
    if (descriptor[which].uri === wanted) continue;
    throw new UsageError(
      `Cannot copy "${displayName(parseLocation(request.source))}" to "${displayName(parseLocation(request.destination))}": "${path}" belongs to an unfinished clone whose ${which} is "${displayUri(descriptor[which].uri)}"`,
      { hint: "`clone hydrate` goes on with that clone, `clone delete` gives it up." },
    );
  }
  if (request.regionSize !== undefined && request.regionSize !== geometry.regionSize) {
    throw new UsageError(
      `Cannot go on with "${path}" in regions of ${request.regionSize} bytes: it was created with ${geometry.regionSize}`,
    );
  }
  const { finalized } = descriptor;
  if (finalized !== null && (finalized.metadataKept || metadataDevice.kind === "block")) {
    throw new UsageError(
      `Cannot copy "${displayName(parseLocation(request.source))}" to "${displayName(parseLocation(request.destination))}": that was finished at ${finalized.finished}`,
      { hint: "`clone delete` removes the metadata that was kept; then it can be copied anew." },
    );
  }
}

/**
 * `clone finalize`: the clone is over, the destination stands alone. In this order:
 *
 *     1. everything is hydrated, or what is missing could not be read and is accepted
 *     2. the destination is compared with the source if asked for, else by samples where it may have been changed
 *     3. what is missing is read once more, sector by sector, and filled with zeros where it cannot be; the destination and its
 *        name are flushed, and where the destination says that it has lost something, this is done again
 *     4. the finalize record is written: from here on the clone is `finalized`, whatever happens
 *     5. the zeros are marked hydrated
 *     6. the metadata file is removed; a metadata device is left as it is, never zeroed, because a zeroed first block
 *        would make the kernel start the clone anew
 *
 * What of 3 can be read in whole is hydrated like any other region, before 4, and is not missing any more.
 *
 * A source that cannot be opened ends it, whatever the reason, unless it is told to do without. One that is gone for good while 3
 * reads from it is done without: what it has given by then is kept.
 *
 * Interrupted before 4 it has changed nothing that matters; after 4 it goes on when called again. The record stands before
 * the marks, so that zeros are never taken for data that was read.
 */
import { realpath } from "node:fs/promises";
import { systemClock } from "../base/clock.ts";
import { ChangedError, CloneError, errnoOf, LostWritesError, UsageError, withHint } from "../base/errors.ts";
import { countRegions, type RegionRange, SECTOR_SIZE } from "../base/geometry.ts";
import { printable } from "../base/printable.ts";
import { formatSize } from "../base/units.ts";
import { syncDirectoryOf } from "../device/directory.ts";
import { CommitPipeline } from "../engine/commit-pipeline.ts";
import { Salvage, SOURCE_AWAY_HINT } from "../engine/salvage.ts";
import { UnreadableRegions, unhydratedParts } from "../engine/unreadable-regions.ts";
import type { AttachedDestination, AttachedSource, Clone, DeviceRequest } from "./clone.ts";
import type { RunningComparison } from "./compare-sides.ts";
import { refuseLostDestination } from "./destination-guard.ts";
import { refuseDifferentSamples } from "./destination-state.ts";
import { changeAsError } from "./hydrate-clone.ts";
import { removeMetadata } from "./metadata-file.ts";
import { attachSourceToCopy } from "./unfinished-source.ts";
import { verifyClone } from "./verify-clone.ts";

/** How to finalize. */
export interface FinalizeRequest extends DeviceRequest {
  /** Compare with the source first. */
  verify: boolean;
  /** Leave the metadata file in place; the clone's status is `finalized` then. */
  keepMetadata: boolean;
  /** Take regions that could not be read with zeros in place of what is missing of them. */
  acceptUnreadable: boolean;
  /** Do not open the source: all of what is missing becomes zeros, and nothing is compared. */
  withoutSource: boolean;
}

/** What was done. */
export interface FinalizeReport {
  destination: string;
  /** Bytes of the copy. */
  size: number;
  verified: boolean;
  /** Regions that could not be read in whole from the source, and are zeros where they could not. */
  unreadable: RegionRange[];
  /** Where the metadata still is, or null where it was removed. */
  metadata: string | null;
}

/** A report as `clone finalize --json` and the control socket tell it. */
export interface FinalizeJson extends Omit<FinalizeReport, "unreadable"> {
  /** Half-open ranges. */
  unreadable: [start: number, end: number][];
}

/** A report as JSON. */
export function finalizeJson(report: FinalizeReport): FinalizeJson {
  return { ...report, unreadable: report.unreadable.map(({ start, end }) => [start, end]) };
}

/**
 * Ends a clone; afterwards it should only be closed.
 * @throws {CloneError} where regions are missing, or source and destination differ
 * @throws {DeviceError} where the destination or the metadata fails
 */
export async function finalizeClone(
  clone: Clone,
  request: FinalizeRequest,
  { signal, onVerify }: { signal: AbortSignal; onVerify?: ((running: RunningComparison) => void) | undefined },
): Promise<FinalizeReport> {
  const already = clone.finalized !== null;
  const missing = already ? unreadableParts(clone) : refuseMissing(clone, request);
  const destination = await clone.attachDestination(request, "read-write");
  if (request.verify) await refuseDifference(clone, request, { signal, onVerify });
  else if (!already) await refuseForeign(clone, request, destination);
  signal.throwIfAborted();
  const keeps = keepsMetadata(clone, request);
  const commits = new CommitPipeline({
    metadata: clone.metadata,
    destination: destination.view,
    link: destination.remote,
    refuseLost: () => refuseLostDestination(destination, clone.exactSize),
  });
  let zeroed = missing;
  if (!already) {
    if (missing.length > 0) {
      const { salvage, source } = await openSalvage(clone, request, destination);
      await clone.unsettle(); // or the zeros of a run that is cut off would seem somebody else's
      zeroed = await lasting(commits, async () => {
        const rest = await fillMissing(clone, missing, { salvage, signal }).catch(async (error: unknown) => {
          if (!(error instanceof ChangedError) || source === undefined) throw error;
          throw (await changeAsError(source)) ?? error;
        });
        const change = source === undefined ? undefined : await changeAsError(source);
        if (change !== undefined) throw change;
        return rest;
      });
    } else await commits.flush();
    signal.throwIfAborted();
    await recordFinalized(clone, destination, { missing: zeroed, verified: request.verify, keepsMetadata: keeps });
  }
  // What was recorded is durable: the destination may lose no more than what this finds there again.
  await lasting(commits, async () => {
    for (const range of zeroed) clone.metadata.markHydrated(range);
  });
  if (!keeps) await removeMetadata(clone.path);
  return {
    destination: destination.device.name,
    size: clone.exactSize,
    verified: request.verify || (clone.finalized?.verified ?? false),
    unreadable: clone.descriptor?.unreadable.ranges ?? [],
    metadata: keeps ? clone.path : null,
  };
}

/** How often something is done again because the destination has lost it. */
const MOST_ATTEMPTS = 5;

/**
 * Does something and makes it durable, as often as it takes until the destination has not lost it meanwhile.
 * @throws {LostWritesError} where it never comes to that
 */
async function lasting<T>(commits: CommitPipeline, work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    const { losses } = commits;
    try {
      const result = await work();
      await commits.flush();
      if (commits.losses === losses) return result;
    } catch (error) {
      if (!(error instanceof LostWritesError) || attempt === MOST_ATTEMPTS) throw error;
      commits.lose(error);
    }
    if (attempt === MOST_ATTEMPTS) {
      throw new LostWritesError("Cannot finalize: the destination loses what is written to it, again and again");
    }
  }
}

/**
 * What reads regions that could not be read, once more.
 * @throws {CloneError} where the source cannot be opened, whatever the reason, with how to do without it
 */
async function openSalvage(
  clone: Clone,
  request: FinalizeRequest,
  destination: AttachedDestination,
): Promise<{ salvage: Salvage; source: AttachedSource | undefined }> {
  const onGone = (why: string): void => clone.warn(`What could not be read becomes zeros. ${why}`);
  const source = request.withoutSource ? undefined : await hinted(attachSourceToCopy(clone, request), SOURCE_AWAY_HINT);
  const parts = {
    source: source?.view,
    destination: destination.view,
    clock: systemClock,
    timeoutMs: Infinity,
    onGone,
  };
  return { salvage: new Salvage(parts), source };
}

/** @throws {CloneError} where it cannot be opened, with what can be done about that */
async function hinted(source: Promise<AttachedSource>, wayOut: string): Promise<AttachedSource> {
  return await source.catch((error: unknown) => {
    throw error instanceof CloneError ? withHint(error, wayOut) : error;
  });
}

/** Fills what is missing, and marks what could be read in whole; returns the rest, which holds zeros. */
async function fillMissing(
  { geometry, metadata }: Clone,
  missing: RegionRange[],
  { salvage, signal }: { salvage: Salvage; signal: AbortSignal },
): Promise<RegionRange[]> {
  const zeroed = new UnreadableRegions();
  for (const { start, end } of missing) {
    for (let region = start; region < end; region++) {
      const range = { start: region, end: region + 1 };
      if (await salvage.fill(geometry.bytesOf(range), signal)) metadata.markHydrated(range);
      else zeroed.add(region);
    }
  }
  return zeroed.ranges;
}

/** Whether the metadata outlives the clone: a device always does, since a zeroed one would start the clone anew. */
export function keepsMetadata(clone: Clone, request: Pick<FinalizeRequest, "keepMetadata">): boolean {
  return request.keepMetadata || clone.metadataDevice.kind === "block";
}

/**
 * Says in the metadata that the destination, which has been flushed, stands alone: from here on the clone is `finalized`.
 * `missing` are regions that could not be read in whole, and are zeros where they could not.
 * @throws {DeviceError}
 */
export async function recordFinalized(
  clone: Clone,
  destination: AttachedDestination,
  record: { missing: RegionRange[]; verified: boolean; keepsMetadata: boolean },
): Promise<void> {
  if (destination.file !== undefined) await syncName(destination.file.path);
  const recorded = await clone.settle({
    finalized: {
      finished: new Date().toISOString(),
      verified: record.verified,
      unreadableRegions: countRegions(record.missing),
      metadataKept: record.keepsMetadata,
    },
    unreadable: { ranges: record.missing, inexact: false, complete: true },
  });
  if (record.keepsMetadata && !recorded) {
    clone.warn(`"${clone.path}" has no room for a record: its status will not say that it is finalized`);
  }
}

/** Makes the name of a destination as durable as its content. @throws {CloneError} */
async function syncName(path: string): Promise<void> {
  const real = await realpath(path).catch((error: unknown) => {
    throw new CloneError("failed", `Cannot find "${path}" any more: ${errnoOf(error)}`, { cause: error });
  });
  await syncDirectoryOf(real);
}

/** Where samples of a destination must match the source, and there is none. */
const NOT_COMPARED_HINT =
  "Nobody knows whether the destination still holds what was copied: finalize again when the source can be read, or with --without-source, which compares nothing.";

/**
 * A destination that somebody else has written to is not the copy that the metadata says it is.
 * @throws {CloneError} where that can be told
 */
async function refuseForeign(clone: Clone, request: FinalizeRequest, destination: AttachedDestination): Promise<void> {
  await clone.refuseAnotherDisk(destination, request);
  const trust = await clone.trustIn(destination);
  if (trust === "touched" && !request.acceptChangedSource) {
    throw new CloneError(
      "failed",
      `Cannot finalize "${clone.path}": somebody else has written to "${destination.device.name}" since the clone last did`,
      {
        hint: "`clone finalize --verify` compares it with the source first; --accept-changed-source takes it as it is.",
      },
    );
  }
  if (trust !== "compare" || request.acceptChangedSource) return;
  if (request.withoutSource) return clone.warnNotCompared(destination);
  const source = await hinted(clone.attachSource(request), NOT_COMPARED_HINT);
  await refuseDifferentSamples(clone, source.view, destination.view);
}

/**
 * The device-mapper table that replaces the clone: `0 SECTORS linear DESTINATION 0`.
 * @throws {CloneError} where regions are missing: their data would be too
 * @throws {UsageError} where there is no device or file of this machine, or its name cannot stand in a table
 */
export async function linearTable(clone: Clone, request: DeviceRequest): Promise<string> {
  refuseMissing(clone, { acceptUnreadable: false });
  // Whoever has it open: what is hydrated stays so, and this is what the kernel's clone is to be replaced by.
  const { device, file } = await clone.attachDestination(request, "beside-the-kernel");
  if (file === undefined) {
    throw new UsageError(`Cannot make a table for "${device.name}": device-mapper maps block devices of this machine`, {
      hint: "Where nbd-client has attached it, --destination /dev/nbd0 names the device.",
    });
  }
  if (file.kind === "file") {
    clone.warn(`"${file.path}" is a file: device-mapper takes it only behind a loop device, as \`losetup\` makes them`);
  }
  if (clone.exactSize % SECTOR_SIZE !== 0) {
    throw new UsageError(
      `Cannot make a table for "${device.name}": its ${clone.exactSize} bytes are not whole sectors`,
    );
  }
  if (printable(file.path) !== file.path) {
    throw new UsageError(`Cannot make a table for "${device.name}": its name has control characters in it`, {
      hint: "--destination with another name of it, a symbolic link, gives a table that can be printed and read.",
    });
  }
  return `0 ${clone.geometry.size / SECTOR_SIZE} linear ${file.path.replaceAll(/[\\ ]/g, "\\$&")} 0`;
}

/** The regions that may be missing. @throws {CloneError} where more are */
export function refuseMissing(clone: Clone, { acceptUnreadable }: { acceptUnreadable: boolean }): RegionRange[] {
  const { metadata, geometry } = clone;
  const missing = geometry.regionCount - metadata.hydratedCount;
  if (missing === 0) return [];
  const unreadable = unreadableParts(clone);
  const isTried = clone.descriptor?.unreadable.complete === true;
  const percent = (Math.ceil((missing / geometry.regionCount) * 1000) / 10).toFixed(1);
  const amount = `${missing} of ${geometry.regionCount} regions (${percent} %, about ${formatSize(missing * geometry.regionSize)}) are missing`;
  if (!isTried || countRegions(unreadable) < missing) {
    throw new CloneError("failed", `Cannot finalize "${clone.path}": ${amount}`, {
      hint: "`clone hydrate` copies them.",
    });
  }
  if (!acceptUnreadable) {
    throw new CloneError("failed", `Cannot finalize "${clone.path}": ${amount}, because the source could not be read`, {
      hint: "`clone hydrate` tries again; --accept-unreadable gives them up and fills them with zeros.",
    });
  }
  return unreadable;
}

async function refuseDifference(
  clone: Clone,
  request: FinalizeRequest,
  options: { signal: AbortSignal; onVerify?: ((running: RunningComparison) => void) | undefined },
): Promise<void> {
  const { equal, differing, served } = await verifyClone(clone, request, {
    signal: options.signal,
    onStart: options.onVerify,
  });
  if (equal) return;
  const count = countRegions(differing);
  const what = count === 1 ? "1 region differs" : `${count} regions differ`;
  throw new CloneError("differs", `Cannot finalize "${clone.path}": ${what} from the source`, {
    hint: served
      ? "The clone was served: these may be what clients wrote, which --verify cannot tell from damage."
      : "`clone verify` lists them.",
  });
}

/** The missing regions that are known to be unreadable. */
function unreadableParts(clone: Clone): RegionRange[] {
  return unhydratedParts(clone.metadata, clone.descriptor?.unreadable.ranges ?? []);
}

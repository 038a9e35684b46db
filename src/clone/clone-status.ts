/** `clone status`: how far a clone is, without changing anything or locking anybody out. */
import type { CloneError } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import { countRegions, SECTOR_SIZE } from "../base/geometry.ts";
import { metadataId } from "../control/control-path.ts";
import { type LockHolder, lockHolder } from "../device/lock.ts";
import type { Descriptor } from "../metadata/descriptor.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";
import { Clone, type OpenRequest } from "./clone.ts";
import { findLivePeer, type LivePeer } from "./live-peer.ts";

/** `status --json`. Fields are only ever added. Sizes are bytes. */
export interface CloneStatus {
  /** The first of this list that holds. */
  state: "failed" | "finalized" | "hydrated" | "paused" | "hydrating" | "serving" | "idle";
  mode: "rw" | "ro" | "fail";
  /** Null where they are not known. */
  source: {
    uri: string;
    size: number;
    /** How its bytes are read: `raw`, or as an image in this format. */
    format: string;
  } | null;
  destination: { uri: string; size: number } | null;
  /** True where some of the descriptor cannot be read: what is told of it, also whether the clone is finalized, may be out of date. */
  descriptorUnreadable: boolean;
  /** `id` tells it from all other metadata on this machine, see `metadataId`. */
  metadata: { path: string; id: string; blockSize: number; usedBlocks: number; totalBlocks: number };
  size: number;
  regionSize: number;
  regions: number;
  hydratedRegions: number;
  /** Of these, what is durably so: after a crash the rest is copied again. */
  committedRegions: number;
  hydratingRegions: number;
  unreadableRegions: number;
  /** True where some of the unreadable regions are in truth readable: there were too many to keep the list exact. */
  unreadableInexact: boolean;
  /** Bytes that are hydrated. */
  hydratedBytes: number;
  hydration: HydrationStatus;
  /** Why it is `failed`; a sentence, else null. */
  failure: string | null;
  /** Null where no clients are served. */
  server: ServerStatus | null;
  /** Process that has the clone locked, or null. */
  lockedBy: number | null;
}

/** How a clone is being hydrated. Without a process that does it and can be asked, nothing of it is known. */
export interface HydrationStatus {
  /** Whether regions are hydrated in the background. */
  enabled: boolean;
  /** Bytes per second at most; null is unlimited, or not known. */
  rate: number | null;
  /** Bytes per second that clients never take from it; null where there are no clients. */
  minRate: number | null;
  /** The values in use, regions. */
  threshold: number | null;
  batchSize: number | null;
  hydrateOnRead: "auto" | "on" | "off" | null;
  bytesPerSecond: number;
  etaSeconds: number | null;
  /** Why it makes no headway, or why it ended before all was hydrated; a sentence. */
  stalled: string | null;
  /** Bytes that the process has hydrated, by the way that was done. */
  copiedBytes: number;
  reflinkedBytes: number;
  zeroedBytes: number;
  skippedBytes: number;
}

/** Who serves a clone to clients. */
export interface ServerStatus {
  pid: number;
  /** Where; of several the first. */
  uri: string;
  connections: number;
}

/** What a process that has a clone open knows of it beyond the metadata. Counts are regions, sizes bytes. */
export interface RunningState extends Omit<HydrationStatus, "enabled" | "stalled"> {
  /** Why nothing is written any more. */
  failure: Error | undefined;
  /** The destination stands alone already. */
  finalized: boolean;
  /** Hydration in the background rests. */
  paused: boolean;
  /** Regions are hydrated in the background, or will be by themselves: false where only unreadable ones are left. */
  hydrating: boolean;
  stalled: string | undefined;
  hydratedRegions: number;
  /** Of these, what is durably so: a clone is complete when all is. */
  committedRegions: number;
  hydratedBytes: number;
  hydratingRegions: number;
  unreadable: readonly RegionRange[];
  usedBlocks: number;
  totalBlocks: number;
  server: ServerStatus | null;
}

/** What a clone is like at this moment. */
export interface StatusReport {
  status: CloneStatus;
  unreadable: RegionRange[];
  hydratedRanges: Iterable<RegionRange>;
  /** Who has it locked, or undefined. */
  holder: LockHolder | undefined;
  /** Who was asked; undefined where the metadata was read. */
  peer: LivePeer | undefined;
  /** Why the descriptor is not to be acted on: a part of it that may be the newer one cannot be read. Else null. */
  descriptorFailure: CloneError | null;
}

/** Ranges of regions asked for: more cannot be told apart on a screen. */
const MOST_RANGES = 65536;

/**
 * A clone's state: as the process tells it that has it open, else as it was last committed.
 * @param map whether `hydratedRanges` is wanted
 * @throws {MetadataError} where the metadata is damaged, or no clone's
 * @throws {DeviceError} where it cannot be read
 */
export async function readStatus(
  name: string,
  { signal, onWarning, map = false }: Pick<OpenRequest, "signal" | "onWarning"> & { map?: boolean } = {},
): Promise<StatusReport> {
  const { peer, unanswered } = await findLivePeer(name, signal);
  const live = peer === undefined ? undefined : await liveReport(peer, map, signal);
  if (live !== undefined) return live;
  if (unanswered?.reason === "silent") {
    onWarning?.(`This is what was last committed: whoever has the clone open does not answer. ${unanswered.message}`);
  }
  return await readCommittedStatus(name, { signal, onWarning });
}

/** What a process says of the clone that it has open; undefined where it cannot say all that is wanted. */
async function liveReport(peer: LivePeer, map: boolean, signal?: AbortSignal): Promise<StatusReport | undefined> {
  const { client, status } = peer;
  const holder = { pid: status.lockedBy ?? undefined, command: undefined };
  const told = { status, holder, peer, descriptorFailure: null }; // who has it open to change it could read it
  if (!map && status.unreadableRegions === 0) return { ...told, unreadable: [], hydratedRanges: [] };
  const { hydrated, unreadable, complete } = await client.regions(MOST_RANGES, signal);
  if (map && !complete) return undefined;
  return { ...told, unreadable: unreadable.map(asRange), hydratedRanges: hydrated.map(asRange) };
}

function asRange([start, end]: [number, number]): RegionRange {
  return { start, end };
}

async function readCommittedStatus(
  name: string,
  { signal, onWarning }: Pick<OpenRequest, "signal" | "onWarning">,
): Promise<StatusReport> {
  await using clone = await Clone.open({ name, access: "any", signal, onWarning });
  const holder = await lockHolder(clone.metadataDevice);
  const { metadata, descriptor } = clone;
  const unreadable = descriptor?.unreadable.ranges ?? [];
  const status = statusOf(clone, {
    ...UNKNOWN_HYDRATION,
    failure: undefined,
    finalized: clone.finalized !== null,
    paused: false,
    hydrating: holder !== undefined,
    stalled: undefined,
    hydratedRegions: metadata.hydratedCount,
    committedRegions: metadata.hydratedCount,
    hydratedBytes: hydratedBytes(clone),
    hydratingRegions: 0,
    unreadable,
    usedBlocks: metadata.usedBlocks,
    totalBlocks: metadata.totalBlocks,
    server: null,
  });
  status.lockedBy = holder?.pid ?? null;
  const { descriptorFailure } = clone;
  status.descriptorUnreadable = descriptorFailure !== null;
  const hydratedRanges = metadata.hydratedRanges();
  return { status, unreadable, hydratedRanges, holder, peer: undefined, descriptorFailure };
}

const UNKNOWN_HYDRATION = {
  rate: null,
  minRate: null,
  threshold: null,
  batchSize: null,
  hydrateOnRead: null,
  bytesPerSecond: 0,
  etaSeconds: null,
  copiedBytes: 0,
  reflinkedBytes: 0,
  zeroedBytes: 0,
  skippedBytes: 0,
};

/** The status of a clone that this process has open. */
export function statusOf(
  clone: Pick<Clone, "path" | "geometry" | "metadataDevice" | "descriptor">,
  now: RunningState,
): CloneStatus {
  const { geometry, descriptor } = clone;
  const state = stateOf(now, geometry.regionCount);
  return {
    state,
    mode: now.failure === undefined ? "rw" : "fail",
    source: descriptor === null ? null : sourceOf(descriptor),
    destination: descriptor === null ? null : { uri: descriptor.destination.uri, size: descriptor.destination.size },
    descriptorUnreadable: false,
    metadata: {
      path: clone.path,
      id: metadataId(clone.metadataDevice.identity),
      blockSize: BLOCK_SIZE,
      usedBlocks: now.usedBlocks,
      totalBlocks: now.totalBlocks,
    },
    size: geometry.size,
    regionSize: geometry.regionSize,
    regions: geometry.regionCount,
    hydratedRegions: now.hydratedRegions,
    committedRegions: now.committedRegions,
    hydratingRegions: now.hydratingRegions,
    unreadableRegions: countRegions(now.unreadable),
    unreadableInexact: descriptor?.unreadable.inexact ?? false,
    hydratedBytes: now.hydratedBytes,
    hydration: {
      enabled: state === "hydrating",
      rate: now.rate,
      minRate: now.minRate,
      threshold: now.threshold,
      batchSize: now.batchSize,
      hydrateOnRead: now.hydrateOnRead,
      bytesPerSecond: Math.round(now.bytesPerSecond),
      etaSeconds: now.etaSeconds === null ? null : Math.round(now.etaSeconds),
      stalled: now.stalled ?? null,
      copiedBytes: now.copiedBytes,
      reflinkedBytes: now.reflinkedBytes,
      zeroedBytes: now.zeroedBytes,
      skippedBytes: now.skippedBytes,
    },
    failure: now.failure?.message ?? null,
    server: now.server,
    lockedBy: process.pid,
  };
}

function sourceOf({ source: { uri, size, format } }: Descriptor): CloneStatus["source"] {
  return { uri, size, format };
}

/** The first that holds, see `CloneStatus`. */
function stateOf(now: RunningState, regionCount: number): CloneStatus["state"] {
  if (now.failure !== undefined) return "failed";
  if (now.finalized) return "finalized";
  if (now.committedRegions === regionCount) return "hydrated";
  if (now.paused) return "paused";
  if (now.hydrating) return "hydrating";
  return now.server === null ? "idle" : "serving";
}

/** Bytes of the hydrated regions; the last region may be short. */
export function hydratedBytes({ geometry, metadata }: Pick<Clone, "geometry" | "metadata">): number {
  const last = geometry.regionCount - 1;
  const missingFromLast = metadata.isHydrated(last) ? geometry.regionCount * geometry.regionSize - geometry.size : 0;
  return metadata.hydratedCount * geometry.regionSize - missingFromLast;
}

/**
 * The status line that `dmsetup status` prints, field for field. Features and core arguments are run-time settings: where
 * nobody who has the clone open tells them, the kernel's own defaults stand there. In fail mode it is one word, as there.
 */
export function dmStatusLine(status: CloneStatus): string {
  const { metadata, size, regionSize, hydratedRegions, regions, hydratingRegions, hydration } = status;
  const extent = `0 ${size / SECTOR_SIZE} clone`;
  if (status.mode === "fail") return `${extent} Fail`;
  return [
    extent,
    `${metadata.blockSize / SECTOR_SIZE} ${metadata.usedBlocks}/${metadata.totalBlocks}`,
    `${regionSize / SECTOR_SIZE} ${hydratedRegions}/${regions} ${hydratingRegions}`,
    hydration.enabled ? "0" : "1 no_hydration",
    `4 hydration_threshold ${hydration.threshold ?? 1} hydration_batch_size ${hydration.batchSize ?? 1}`,
    status.mode,
  ].join(" ");
}

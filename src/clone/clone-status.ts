/** `clone status`: how far a clone is, without changing anything or locking anybody out. */
import type { RegionRange } from "../base/geometry.ts";
import { countRegions, SECTOR_SIZE } from "../base/geometry.ts";
import { type LockHolder, lockHolder } from "../device/lock.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";
import { Clone, type OpenRequest } from "./clone.ts";

/** `status --json`. Fields are only ever added. Sizes are bytes. */
export interface CloneStatus {
  /** The first of this list that holds. */
  state: "failed" | "finalized" | "hydrated" | "paused" | "hydrating" | "serving" | "idle";
  mode: "rw" | "ro" | "fail";
  /** Null where they are not known. */
  source: { uri: string; size: number } | null;
  destination: { uri: string; size: number } | null;
  metadata: { path: string; blockSize: number; usedBlocks: number; totalBlocks: number };
  size: number;
  regionSize: number;
  regions: number;
  hydratedRegions: number;
  hydratingRegions: number;
  unreadableRegions: number;
  /** True where some of the unreadable regions are in truth readable: there were too many to keep the list exact. */
  unreadableInexact: boolean;
  /** Bytes that are hydrated. */
  hydratedBytes: number;
  hydration: {
    enabled: boolean;
    rate: number | null;
    threshold: number | null;
    batchSize: number | null;
    bytesPerSecond: number;
    etaSeconds: number | null;
  };
  server: null;
  /** Process that has the clone locked, or null. */
  lockedBy: number | null;
}

/** What a clone is like at this moment. */
export interface StatusReport {
  status: CloneStatus;
  unreadable: RegionRange[];
  hydratedRanges: Iterable<RegionRange>;
  /** Who has it locked, or undefined. */
  holder: LockHolder | undefined;
}

/**
 * Reads a clone's state; while another process commits to it, the state of one commit or the next.
 * @throws {MetadataError} where the metadata is damaged, or no clone's
 * @throws {DeviceError} where it cannot be read
 */
export async function readStatus(
  name: string,
  { signal, onWarning }: Pick<OpenRequest, "signal" | "onWarning"> = {},
): Promise<StatusReport> {
  await using clone = await Clone.open({ name, access: "any", signal, onWarning });
  const holder = await lockHolder(clone.metadataDevice);
  const { geometry, metadata, descriptor } = clone;
  const unreadable = descriptor?.unreadable.ranges ?? [];
  const complete = metadata.hydratedCount === geometry.regionCount;
  const status: CloneStatus = {
    state: clone.finalized !== null ? "finalized" : complete ? "hydrated" : holder !== undefined ? "hydrating" : "idle",
    mode: "rw",
    source: descriptor === null ? null : { uri: descriptor.source.uri, size: descriptor.source.size },
    destination: descriptor === null ? null : { uri: descriptor.destination.uri, size: descriptor.destination.size },
    metadata: {
      path: clone.path,
      blockSize: BLOCK_SIZE,
      usedBlocks: metadata.usedBlocks,
      totalBlocks: metadata.totalBlocks,
    },
    size: geometry.size,
    regionSize: geometry.regionSize,
    regions: geometry.regionCount,
    hydratedRegions: metadata.hydratedCount,
    hydratingRegions: 0,
    unreadableRegions: countRegions(unreadable),
    unreadableInexact: descriptor?.unreadable.inexact ?? false,
    hydratedBytes: hydratedBytes(clone),
    hydration: { enabled: false, rate: null, threshold: null, batchSize: null, bytesPerSecond: 0, etaSeconds: null },
    server: null,
    lockedBy: holder?.pid ?? null,
  };
  status.hydration.enabled = status.state === "hydrating";
  return { status, unreadable, hydratedRanges: metadata.hydratedRanges(), holder };
}

/** Bytes of the hydrated regions; the last region may be short. */
export function hydratedBytes({ geometry, metadata }: Pick<Clone, "geometry" | "metadata">): number {
  const last = geometry.regionCount - 1;
  const missingFromLast = metadata.isHydrated(last) ? geometry.regionCount * geometry.regionSize - geometry.size : 0;
  return metadata.hydratedCount * geometry.regionSize - missingFromLast;
}

/**
 * The status line that `dmsetup status` prints, field for field. Features and core arguments are run-time settings, which
 * a clone that nobody serves does not have: the kernel's own defaults stand there.
 */
export function dmStatusLine(status: CloneStatus): string {
  const { metadata, size, regionSize, hydratedRegions, regions, hydratingRegions, hydration } = status;
  return [
    `0 ${size / SECTOR_SIZE} clone`,
    `${metadata.blockSize / SECTOR_SIZE} ${metadata.usedBlocks}/${metadata.totalBlocks}`,
    `${regionSize / SECTOR_SIZE} ${hydratedRegions}/${regions} ${hydratingRegions}`,
    hydration.enabled ? "0" : "1 no_hydration",
    `4 hydration_threshold ${hydration.threshold ?? 1} hydration_batch_size ${hydration.batchSize ?? 1}`,
    status.mode,
  ].join(" ");
}

/** What a repair is going to do, before anything is written. */
import type { Geometry, RegionRange } from "../base/geometry.ts";
import type { CheckReport } from "./check-report.ts";
import type { Descriptor } from "./descriptor.ts";
import type { RegionBitmap } from "./region-bitmap.ts";

/** What the user lets a repair call a region of which nothing is known. */
export type Assumption = "hydrated" | "unhydrated";

/** What the user tells of a clone whose superblock is lost. Bytes. */
export interface ToldGeometry {
  size: number;
  regionSize: number;
}

/** What is known at the time that a comparison is asked for. `hydrated` has no region of the unknown ones. */
export interface ComparedState {
  geometry: Geometry;
  blockCount: number;
  hydrated: RegionBitmap;
  descriptor: Descriptor | null;
}

/**
 * Reads regions on both sides and returns those that are equal: they may be called hydrated whatever they were. What cannot
 * be read is not equal.
 */
export type CompareRegions = (state: ComparedState, unknown: Iterable<RegionRange>) => Promise<Iterable<RegionRange>>;

/** How a repair is planned. */
export interface RepairRequest {
  geometry?: ToldGeometry | undefined;
  assume?: Assumption | undefined;
  compare?: CompareRegions | undefined;
  /**
   * Whether the destination was certainly not written to since the clone was left, as its time of last change tells. Asked where all
   * depends on it; without it nothing does.
   */
  isDestinationAsLeft?: ((descriptor: Descriptor) => Promise<boolean>) | undefined;
  signal?: AbortSignal | undefined;
}

/** What a repair found and decided; sentences are for people, without a full stop. */
export interface RepairAccount {
  /** What was wrong before. */
  before: CheckReport;
  /** What is put right without any loss. */
  exact: string[];
  /** What is taken from older blocks, and from which. */
  salvaged: string[];
  /** Regions of which neither the metadata nor a comparison tells whether they are hydrated. */
  unknown: RegionRange[];
  /** Regions called hydrated because both sides are equal; null where nothing was compared. */
  compared: RegionRange[] | null;
  /** Unknown regions that are taken for unhydrated without a word of the user: no client has ever written to this clone. */
  copiedAgain: RegionRange[];
  /** Unknown regions decided on by the user. */
  assumed: { as: Assumption; regions: RegionRange[] } | null;
  /** What is lost, in plain words; nothing in most cases. */
  lost: string[];
}

/** Metadata that can be written. */
export interface PlannedRepair extends RepairAccount {
  ok: true;
  geometry: Geometry;
  /** Blocks that the space map is to manage. */
  blockCount: number;
  /** The hydrated regions. */
  bits: RegionBitmap;
  /** Null where there was none, or it is lost. */
  descriptor: Descriptor | null;
}

/** Metadata that cannot be repaired, or not without a word of the user. */
export interface RefusedRepair extends RepairAccount {
  ok: false;
  /** Why not: the end of a sentence. */
  reason: string;
  /** What the user can do. */
  hint?: string;
}

/** What comes of planning a repair. */
export type RepairPlan = PlannedRepair | RefusedRepair;

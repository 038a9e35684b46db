/**
 * How much hydration may be under way at once: dm-clone's threshold and batch size, which may change at any time, and
 * whether it rests. Whoever finds no room waits for a change and asks again.
 *
 *     threshold   most regions in the table of running hydrations, those of the foreground included, which are never held
 *                 back themselves (`do_hydration`, `atomic_read(&clone->hydrations_in_flight)`)
 *     batch       most neighbouring regions copied as one; never more than the threshold leaves
 *
 * Long runs of zeros move no bytes and count only as one task each, or a sparse terabyte would take for ever.
 */
import type { Clock } from "../base/clock.ts";
import type { Geometry, RegionRange } from "../base/geometry.ts";
import type { CopyAllowance, RegionCopier } from "./region-copier.ts";
import type { RegionMap } from "./region-map.ts";
import { Wakeup } from "./wakeup.ts";

/** Live settings. `null` is `auto`: adapted to the devices. */
export interface PaceSettings {
  /** Most regions being copied at once (dm-clone's `hydration_threshold`); 0 is none, as there. */
  threshold: number | null;
  /** Most neighbouring regions per copy (dm-clone's `hydration_batch_size`); like there never more than the threshold. */
  batchSize: number | null;
}

/** What the pace is of. */
export interface PaceParts {
  geometry: Geometry;
  regions: Pick<RegionMap, "hydratingCount">;
  copier: Pick<RegionCopier, "preferredLength">;
  /** Copies of `copier.preferredLength` bytes that keep the devices busy: the automatic threshold. */
  copiesInFlight: number;
  /** How many at this moment, where that changes. */
  allowance?: Pick<CopyAllowance, "depth">;
  clock: Clock;
}

/** Regions hydrated as one. `zeros`: the source says they are, so no bytes will move. */
export type Batch = Readonly<RegionRange & { zeros: boolean }>;

/** Most bytes of data per copy, unless copying itself asks for more: who waits for a region waits for its batch. */
const MOST_BATCH_BYTES = 64 * 2 ** 20;
/**
 * Batches in flight at once, whatever the threshold: zeros cost no copy, but each batch of them is a task. Enough for regions
 * of 64 KiB that do not lie together to fill 16 MiB.
 */
const MOST_BATCHES = 256;
/** How often it looks what clients have hydrated meanwhile, ms: for room, and for whether there is anything left. */
const LOOK_WHILE_CROWDED_MS = 10;
const LOOK_WHILE_PAUSED_MS = 1000;

/** The bound on what background hydration has under way. */
export class HydrationPace {
  /** Wakes those who wait for room. */
  readonly changed = new Wakeup();
  readonly #parts: PaceParts;
  #settings: PaceSettings;
  #paused = false;
  #batches = 0;
  #copyingRegions = 0;
  #zeroRegions = 0;

  constructor(parts: PaceParts, { threshold, batchSize }: PaceSettings) {
    this.#parts = parts;
    this.#settings = { threshold, batchSize };
  }

  /** The batch size in use, regions. */
  get batchSize(): number {
    const automatic = Math.floor(this.#parts.copier.preferredLength / this.#parts.geometry.regionSize);
    const most = Math.floor(MOST_BATCH_BYTES / this.#parts.geometry.regionSize);
    const wanted = Math.min(this.#settings.batchSize ?? automatic, Math.max(automatic, most));
    return Math.max(1, Math.min(wanted, this.#settings.threshold ?? Infinity));
  }

  /** The threshold in use, regions. */
  get threshold(): number {
    const copies = Math.min(this.#parts.copiesInFlight, this.#parts.allowance?.depth ?? Infinity);
    if (this.#settings.threshold !== null) return this.#settings.threshold;
    const { copier, geometry } = this.#parts;
    // Where regions are longer than pieces, as many pieces as fill these: more would be cut too small before the way is known.
    const regions = this.batchSize + Math.ceil((copies * copier.preferredLength) / geometry.regionSize);
    return Math.min(this.batchSize * copies, regions);
  }

  /** Changes what is given, at once; running copies are unaffected. */
  tune({ threshold = this.#settings.threshold, batchSize = this.#settings.batchSize }: Partial<PaceSettings>): void {
    this.#settings = { threshold, batchSize };
    this.changed.wake();
  }

  /** Whether no new copies are begun. */
  get paused(): boolean {
    return this.#paused;
  }

  set paused(paused: boolean) {
    this.#paused = paused;
    this.changed.wake();
  }

  /** Batches under way. */
  get batches(): number {
    return this.#batches;
  }

  /** Regions that may be begun together at this moment; 0 is none. */
  get room(): number {
    return this.roomFor(Infinity);
  }

  /** As `room`, for those who want no more than `wanted` regions, and need no room for a whole batch. */
  roomFor(wanted: number): number {
    if (this.#paused || this.#batches >= MOST_BATCHES) return 0;
    const threshold = this.threshold - this.#foregroundRegions;
    const most = Math.max(0, Math.min(this.batchSize, wanted, threshold));
    return this.#copyingRegions + most <= threshold ? most : 0;
  }

  /** Waits for what may make room. The foreground does not tell when it has hydrated something, so that is looked at. */
  async change(): Promise<void> {
    if (this.#paused) await this.changed.waitAtMost(this.#parts.clock, LOOK_WHILE_PAUSED_MS);
    else if (this.#foregroundRegions > 0) await this.changed.waitAtMost(this.#parts.clock, LOOK_WHILE_CROWDED_MS);
    else await this.changed.wait();
  }

  /** A batch has been entered in the table of running hydrations. */
  begin(batch: Batch): void {
    this.#count(batch, 1);
  }

  /** It has been taken off again. Wakes nobody: what came of it may decide what is next. */
  end(batch: Batch): void {
    this.#count(batch, -1);
  }

  #count({ start, end, zeros }: Batch, sign: 1 | -1): void {
    this.#batches += sign;
    if (zeros) this.#zeroRegions += sign * (end - start);
    else this.#copyingRegions += sign * (end - start);
  }

  get #foregroundRegions(): number {
    return this.#parts.regions.hydratingCount - this.#copyingRegions - this.#zeroRegions;
  }
}

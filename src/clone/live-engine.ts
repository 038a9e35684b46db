/** The engine of a clone at work online, put together over its devices. */
import { systemClock } from "../base/clock.ts";
import { AbsentDevice } from "../device/absent-device.ts";
import { alignedBuffer } from "../device/aligned-buffer.ts";
import { SharedLanes } from "../device/filters/shared-lanes.ts";
import { CloneDevice } from "../engine/clone-device.ts";
import { CommitPipeline } from "../engine/commit-pipeline.ts";
import { ExtentCache } from "../engine/extent-cache.ts";
import { ForegroundMeter } from "../engine/foreground-meter.ts";
import { Governor } from "../engine/governor.ts";
import type { HydrationSettings } from "../engine/hydrator.ts";
import { LesserAllowance } from "../engine/lesser-allowance.ts";
import { OnlineHydrator } from "../engine/online-hydrator.ts";
import { PeriodicCommits } from "../engine/periodic-commits.ts";
import { ReadsInFlight } from "../engine/reads-in-flight.ts";
import { RegionCopier } from "../engine/region-copier.ts";
import { RegionMap } from "../engine/region-map.ts";
import { Throttle } from "../engine/throttle.ts";
import type { TransferWindow } from "../engine/transfer-window.ts";
import type { AttachedDestination, AttachedSource, Clone, DeviceRequest } from "./clone.ts";
import { refuseLostDestination } from "./destination-guard.ts";
import { changeAsError, PAGE, PIECE_LENGTH, PIECES_IN_FLIGHT, ZERO_UNIT } from "./hydrate-clone.ts";
import type { HydrateOnReadPolicy } from "./on-read-policy.ts";
import { patientGuard } from "./patient-guard.ts";
import { windowOf } from "./source-window.ts";
import type { Trace } from "./trace-codec.ts";
import { orderOf } from "./trace-file.ts";

/** How a clone is put to work. */
export interface LiveRequest extends DeviceRequest, Omit<HydrationSettings, "limit"> {
  /** Clients may not write. */
  readOnly: boolean;
  hydrateOnRead: HydrateOnReadPolicy;
  discardPassdown: boolean;
  /** How long a client's request may wait for the source. */
  sourceTimeoutMs: number;
  /** Bytes per second at most, or null. */
  rate: number | null;
  /** Bytes per second that foreground I/O never takes from the background; null is the default. */
  minRate: number | null;
  /** Read back what was copied and compare. */
  verify: boolean;
  /** Trust the holes that the source reports. */
  extents: boolean;
  /** What is hydrated before all that nobody asks for. */
  order?: Trace | undefined;
  /** Told of the bytes that clients need. */
  onTouch?: ((offset: number, length: number) => void) | undefined;
}

/** Who hears of what happens to a live clone. */
export interface LiveEvents {
  /** Everything is hydrated, and durably so; at once, where it was when it was opened. */
  onHydrated: () => void;
  /** Nothing is written any more. */
  onFailed: (error: Error) => void;
  /** Hydration makes no headway. */
  onStall: (reason: string) => void;
}

/** A copy that a client waits for is a region, or as much of one as makes a good request. */
const DEMAND_PIECE_LENGTH = 2 ** 20;
const DEMAND_PIECES_IN_FLIGHT = 4;
/**
 * Questions to the source in flight at once, of all together, and of each who asks. Where one of this machine hangs each keeps
 * a thread of the pool's 16, and the destination needs some; the others leave a few to clients, who may ask for parts of it
 * that do not hang. What is far away keeps no thread: there these bound the memory for requests, and what is on its way is
 * bounded in bytes.
 */
const NEAR = { total: 12, clients: 8, demand: 3, extents: 1, copies: 6 };
const FAR = { total: 512, clients: 128, demand: 64, extents: 4, copies: 256 };
/** Bytes on their way for clients from far away; from near it is a thread that each takes. */
const CLIENT_BYTES = 24 * 2 ** 20;
/** How far a sequential reader is kept ahead of, bytes: twice what the way to the source holds, and something to learn that from. */
const LEAST_AHEAD = 256 * 1024;
const MOST_AHEAD = 8 * 2 ** 20;
/** Zeros hydrated as one in the background are not so long that a client's write would have to wait for them long. */
const MOST_ZEROS_AT_ONCE = 64 * 2 ** 20;

/** The parts of the engine, put together. */
export interface Engine {
  device: CloneDevice;
  regions: RegionMap;
  commits: CommitPipeline;
  periodic: PeriodicCommits;
  hydrator: OnlineHydrator;
  governor: Governor;
  meter: ForegroundMeter;
  /** Of the background. */
  copier: RegionCopier;
  source: AttachedSource | undefined;
  destination: AttachedDestination;
}

/** Where it gets its bytes from and puts them. */
export interface Devices {
  /** Undefined where the clone is complete and can do without. */
  source: AttachedSource | undefined;
  destination: AttachedDestination;
}

/** Puts the parts together; nothing runs yet. `events` are told from when there are any. */
export function assemble(
  clone: Clone,
  { source, destination }: Devices,
  request: LiveRequest,
  events: () => LiveEvents | undefined,
): Engine {
  const { geometry, metadata } = clone;
  const clock = systemClock;
  const halt = new AbortController();
  const far = windowOf(source, clock);
  const most = far === undefined ? NEAR : FAR;
  const asked = far?.view ?? source?.view ?? new AbsentDevice("the source", geometry.size);
  const lanes = new SharedLanes(asked, { total: most.total });
  // In the order of who waits for it.
  const [forClients, forWrites] = [lanes.lane(most.clients), lanes.lane(most.demand)];
  const [forExtents, forCopies] = [lanes.lane(most.extents), lanes.lane(most.copies)];
  const shared = far && { reads: new ReadsInFlight() };
  const throttle = new Throttle(clock, request.rate);
  const meter = new ForegroundMeter(clock);
  const governor = new Governor({
    meter,
    clock,
    throttle,
    moved: () => copier.counts.copied + copier.counts.reflinked,
    rate: request.rate,
    minRate: request.minRate,
    // From far away each place of the order that is not there in time costs whoever needs it a round trip.
    isUrgent: () => far !== undefined && hydrator.followsOrder,
    far: far !== undefined,
  });
  const extents = new ExtentCache(forExtents, { trusted: request.extents });
  const copying = {
    destination: destination.view,
    extents,
    zeroUnit: Math.min(ZERO_UNIT, geometry.regionSize),
    allocate: (byteLength: number) => alignedBuffer(byteLength, destination.file?.directAlignment ?? PAGE),
    verify: request.verify,
    halt: halt.signal,
    ...shared,
  };
  const allowance = far === undefined ? governor : new LesserAllowance(governor, far.window);
  const depth = far === undefined ? PIECES_IN_FLIGHT : Infinity;
  const copier = new RegionCopier({
    ...copying,
    source: forCopies,
    throttle,
    allowance,
    pieceLength: PIECE_LENGTH,
    depth,
    ...(far && { window: far.window }),
  });
  const demandCopier = new RegionCopier({
    ...copying,
    source: forWrites,
    throttle: new Throttle(clock, null),
    pieceLength: Math.min(DEMAND_PIECE_LENGTH, Math.max(geometry.regionSize, ZERO_UNIT)),
    depth: DEMAND_PIECES_IN_FLIGHT,
  });
  const regions = new RegionMap(metadata);
  const sourceGuard = source === undefined ? undefined : patientGuard(() => changeAsError(source), clock);
  const commits = new CommitPipeline({
    metadata,
    destination: destination.view,
    regions,
    link: destination.remote,
    ...(sourceGuard === undefined ? {} : { guard: sourceGuard }),
    refuseLost: () => refuseLostDestination(destination, clone.exactSize),
    onFailed: (error) => {
      halt.abort(error);
      events()?.onFailed(error);
    },
  });
  const known = clone.descriptor?.unreadable.ranges ?? [];
  const hydrator = new OnlineHydrator(
    {
      geometry,
      metadata,
      regions,
      copier,
      extents,
      commits,
      clock,
      halt,
      get copiesInFlight() {
        return Math.min(depth, allowance.depth);
      },
      ...(far && { rescueWidth: PIECES_IN_FLIGHT }),
      zerosLength: MOST_ZEROS_AT_ONCE,
      ...(request.order && { order: orderOf(request.order, geometry, (warning) => clone.warn(warning)) }),
      onStall: (stall) => events()?.onStall(stall.reason),
    },
    request,
    known,
  );
  const device = new CloneDevice({
    geometry,
    exactSize: clone.exactSize,
    regions,
    source: forClients,
    destination: destination.view,
    extents,
    commits,
    copier: demandCopier,
    clock,
    meter,
    onHint: (range, kind) => hydrator.hint(range, kind),
    onTouch: request.onTouch,
    hydrateOnRead: "never",
    discardPassdown: request.discardPassdown,
    readOnly: request.readOnly,
    sourceTimeoutMs: request.sourceTimeoutMs,
    sourceDepth: most.clients,
    ...shared,
    ...(far && { sourceBytes: CLIENT_BYTES, readAheadBytes: () => readAheadOf(far.window) }),
    retry: request.retry,
    isUnreadable: (range) => {
      const { start, end } = geometry.regionsTouching(range);
      return hydrator.unreadable.some((bad) => bad.start < end && bad.end > start);
    },
  });
  const periodic = new PeriodicCommits({ commits, clock, onFailure: () => {} }); // the pipeline has told of it
  return { device, regions, commits, periodic, hydrator, governor, meter, copier, source, destination };
}

function readAheadOf({ length }: TransferWindow): number {
  return Math.max(LEAST_AHEAD, Math.min(MOST_AHEAD, 2 * length));
}

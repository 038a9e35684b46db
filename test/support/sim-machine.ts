/**
 * A whole served clone in one simulated machine: the engine's own parts, put together as `clone/live-engine` does, over
 * simulated disks, a simulated source and virtual time. A test that wants to see what happens without one of the engine's defences takes it out
 * here, by a wrapper.
 */
import type { Geometry, RegionRange } from "../../src/base/geometry.ts";
import type { BlockDevice } from "../../src/device/block-device.ts";
import { PaddedDevice } from "../../src/device/filters/padded.ts";
import { CloneDevice, type HydrateOnRead } from "../../src/engine/clone-device.ts";
import { CommitPipeline } from "../../src/engine/commit-pipeline.ts";
import { ExtentCache } from "../../src/engine/extent-cache.ts";
import { ForegroundMeter } from "../../src/engine/foreground-meter.ts";
import { Governor } from "../../src/engine/governor.ts";
import { HydrationOrder } from "../../src/engine/hydration-order.ts";
import type { HydrationSettings } from "../../src/engine/hydrator.ts";
import { OnlineHydrator } from "../../src/engine/online-hydrator.ts";
import { PeriodicCommits } from "../../src/engine/periodic-commits.ts";
import { ReadsInFlight } from "../../src/engine/reads-in-flight.ts";
import { RegionCopier } from "../../src/engine/region-copier.ts";
import { RegionMap } from "../../src/engine/region-map.ts";
import { Throttle } from "../../src/engine/throttle.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import type { LossyLinkDevice } from "./lossy-link-device.ts";
import type { SimulationLog } from "./sim-disk.ts";
import { Notebook } from "./sim-notebook.ts";
import type { VirtualClock } from "./virtual-clock.ts";

/** What a test puts in the place of a part, or round it. Each is called once, before anything runs. */
export interface Mutation {
  /** Before anything is opened, for what can only be changed where it is defined; what it returns changes it back. */
  patch?: () => () => void;
  source?: (source: BlockDevice) => BlockDevice;
  /** The destination as the engine uses it; the disk beneath is `SimulatedDisk`. */
  destination?: (destination: BlockDevice) => BlockDevice;
  /** Likewise; nothing has been read from it yet. */
  metadataDevice?: (device: BlockDevice) => BlockDevice;
  metadata?: (metadata: CloneMetadata) => CloneMetadata;
  regions?: (regions: RegionMap) => RegionMap;
  commits?: (commits: CommitPipeline) => CommitPipeline;
  /** The clone as clients use it. */
  device?: (device: CloneDevice, machine: Omit<Machine, "device">) => CloneDevice;
}

/** How the clone is served. */
export interface MachineOptions {
  /** Bytes that clients see. */
  exactSize: number;
  hydrateOnRead: HydrateOnRead;
  discardPassdown: boolean;
  settings: Pick<HydrationSettings, "threshold" | "batchSize" | "retry" | "maxErrors" | "onError">;
  /** Bytes per second of the background at most. */
  rate: number | null;
  pieceLength: number;
  trusted: boolean;
  /** Each read of the source costs a round trip: reads are shared, and readers are read ahead of. */
  far: boolean;
  governed: boolean;
  order: readonly RegionRange[];
  verify: boolean;
  /** How often a client's read is tried again. */
  retry: number;
}

/** The devices and the time of a machine. */
export interface MachineDevices {
  clock: VirtualClock;
  log: SimulationLog;
  random: () => number;
  source: BlockDevice;
  destination: BlockDevice;
  metadata: BlockDevice;
  /** The destination, where it is at the other end of a connection that breaks. */
  link?: LossyLinkDevice | undefined;
}

/** A clone that is being served. */
export interface Machine extends MachineDevices {
  geometry: Geometry;
  opened: CloneMetadata;
  regions: RegionMap;
  commits: CommitPipeline;
  hydrator: OnlineHydrator;
  governor: Governor;
  periodic: PeriodicCommits;
  copier: RegionCopier;
  halt: AbortController;
  /** The descriptor, where it has one. */
  notebook: Notebook | undefined;
  device: CloneDevice;
}

/** What serving and hydrating have in common. */
export async function openParts(devices: MachineDevices, options: MachineOptions, mutation: Mutation) {
  const { clock, log, link } = devices;
  const source = new PaddedDevice(mutation.source?.(devices.source) ?? devices.source);
  const destination = new PaddedDevice(mutation.destination?.(devices.destination) ?? devices.destination);
  const store = mutation.metadataDevice?.(devices.metadata) ?? devices.metadata;
  const opened = await CloneMetadata.open(store);
  const metadata = mutation.metadata?.(opened) ?? opened;
  noteMarks(metadata, log);
  const { geometry } = metadata;
  const halt = new AbortController();
  const throttle = new Throttle(clock, options.rate);
  const extents = new ExtentCache(source, { trusted: options.trusted });
  const shared = options.far ? { reads: new ReadsInFlight() } : {};
  const copying = {
    source,
    destination,
    extents,
    zeroUnit: Math.min(65536, geometry.regionSize),
    allocate: (byteLength: number) => new Uint8Array(byteLength),
    halt: halt.signal,
    depth: 4,
    verify: options.verify,
    ...shared,
  };
  const map = new RegionMap(metadata);
  const regions = mutation.regions?.(map) ?? map;
  const pipeline = new CommitPipeline({
    metadata,
    destination,
    regions,
    link,
    onCommitted: () => log.note("committed", { committed: metadata.committedCount, answer: true }),
    onFailed: (error) => {
      log.note(`failed: ${error.message}`);
      halt.abort(error);
    },
  });
  const commits = mutation.commits?.(pipeline) ?? pipeline;
  const order = new HydrationOrder();
  for (const range of options.order) order.push(range);
  const place = { geometry, blockCount: metadata.totalBlocks };
  const notebook = await Notebook.open(store, place, () => log.moment());
  return {
    notebook,
    source,
    destination,
    metadata,
    geometry,
    halt,
    throttle,
    extents,
    shared,
    copying,
    regions,
    commits,
    order,
  };
}

/** The parts that both have. */
export type MachineParts = Awaited<ReturnType<typeof openParts>>;

/** Opens the clone that is on the devices and puts the parts together; nothing runs yet. */
export async function openMachine(
  devices: MachineDevices,
  options: MachineOptions,
  mutation: Mutation = {},
): Promise<Machine> {
  const { clock, log } = devices;
  const parts = await openParts(devices, options, mutation);
  const { source, destination, metadata, geometry, halt, throttle, extents, shared, copying, regions, commits } = parts;
  const meter = new ForegroundMeter(clock);
  const governor = new Governor({
    meter,
    clock,
    throttle,
    moved: () => copier.counts.copied,
    rate: options.rate,
    minRate: null,
    far: options.far,
  });
  const allowance = options.governed ? governor : undefined;
  const copier = new RegionCopier({
    ...copying,
    throttle,
    pieceLength: options.pieceLength,
    ...(allowance && { allowance }),
  });
  const demandCopier = new RegionCopier({
    ...copying,
    throttle: new Throttle(clock, null),
    pieceLength: 65536,
  });
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
      copiesInFlight: 4,
      zerosLength: 64 * 2 ** 20,
      order: parts.order,
      ...(allowance && { allowance }),
      onStall: ({ reason }) => log.note(`stalled: ${reason}`),
    },
    options.settings,
    [],
  );
  const device = new CloneDevice({
    geometry,
    exactSize: options.exactSize,
    regions,
    source,
    destination,
    extents,
    commits,
    copier: demandCopier,
    clock,
    meter,
    onHint: (range, kind) => hydrator.hint(range, kind),
    hydrateOnRead: options.hydrateOnRead,
    discardPassdown: options.discardPassdown,
    readOnly: false,
    sourceTimeoutMs: Infinity,
    ...shared,
    ...(options.far && { readAheadBytes: () => 65536 }),
    retry: options.retry,
    random: devices.random,
  });
  const periodic = new PeriodicCommits({ commits, clock, onFailure: () => {} }); // the pipeline has told of it
  const machine = {
    ...devices,
    geometry,
    opened: metadata,
    regions,
    commits,
    hydrator,
    governor,
    periodic,
    copier,
    halt,
    notebook: parts.notebook,
  };
  return { ...machine, device: mutation.device?.(device, machine) ?? device };
}

/** Has the log say which regions are marked hydrated, and when. */
export function noteMarks(metadata: CloneMetadata, log: SimulationLog): void {
  const mark = metadata.markHydrated.bind(metadata);
  metadata.markHydrated = (range) => {
    const { start, end } = range;
    for (let from = metadata.nextUnhydrated(start, end); from < end; ) {
      const marked = { start: from, end: metadata.nextHydrated(from, end) };
      log.note(`regions ${marked.start} to ${marked.end} are marked`, { marked });
      from = metadata.nextUnhydrated(marked.end, end);
    }
    mark(range);
  };
}

/** The engine put together over memory, a virtual clock, and whatever faults a test wraps round its devices. */
import { Geometry, type RegionRange } from "../../src/base/geometry.ts";
import type { BlockDevice } from "../../src/device/block-device.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { type CommitParts, CommitPipeline } from "../../src/engine/commit-pipeline.ts";
import { ExtentCache } from "../../src/engine/extent-cache.ts";
import { HintQueue } from "../../src/engine/hint-queue.ts";
import { HydrationOrder } from "../../src/engine/hydration-order.ts";
import { type HydrationSettings, Hydrator } from "../../src/engine/hydrator.ts";
import { OnlineHydrator, type Stall } from "../../src/engine/online-hydrator.ts";
import { PeriodicCommits } from "../../src/engine/periodic-commits.ts";
import { type CopyAllowance, type ReadWindow, RegionCopier } from "../../src/engine/region-copier.ts";
import { RegionMap } from "../../src/engine/region-map.ts";
import { Throttle } from "../../src/engine/throttle.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { noise } from "./layout.ts";
import { VirtualClock } from "./virtual-clock.ts";

/** Blocks of metadata in every test clone. */
export const METADATA_BLOCKS = 64;

/** What differs from the usual: 64 regions of 4096 bytes of data, into a hole, everything at once and unlimited. */
export interface HydrationOptions {
  size?: number;
  regionSize?: number;
  clock?: VirtualClock;
  /** Default: noise. */
  source?: BlockDevice;
  /** Default: a hole. */
  destination?: BlockDevice;
  /** Formatted metadata. */
  store?: BlockDevice;
  settings?: Partial<HydrationSettings>;
  lastTime?: RegionRange[];
  rate?: number | null;
  verify?: boolean;
  trusted?: boolean;
  pieceLength?: number;
  depth?: number;
  zeroUnit?: number;
  copiesInFlight?: number;
  zerosLength?: number;
  allowance?: CopyAllowance;
  window?: ReadWindow;
  guard?: () => Promise<void>;
  link?: CommitParts["link"];
  rescueWidth?: number;
  /** Ranges of regions that come first. */
  order?: readonly RegionRange[];
}

/** Metadata in memory for a clone of which nothing is hydrated. */
export async function formattedStore(size: number, regionSize: number): Promise<MemoryDevice> {
  const store = new MemoryDevice({ name: "metadata", size: METADATA_BLOCKS * 4096 });
  await CloneMetadata.create(store, { geometry: new Geometry({ size, regionSize }), blockCount: METADATA_BLOCKS });
  return store;
}

/** Everything that a hydration needs, and the hydrator over it. */
export async function makeHydration(options: HydrationOptions = {}) {
  const { size = 64 * 4096, regionSize = 4096, clock = new VirtualClock() } = options;
  const source = options.source ?? new MemoryDevice({ name: "source", size, content: noise(size, 1) });
  const destination = options.destination ?? new MemoryDevice({ name: "destination", size });
  const store = options.store ?? (await formattedStore(size, regionSize));
  const metadata = await CloneMetadata.open(store);
  const { geometry } = metadata;
  const halt = new AbortController();
  const throttle = new Throttle(clock, options.rate ?? null);
  const extents = new ExtentCache(source, { trusted: options.trusted ?? true });
  const copier = new RegionCopier({
    source,
    destination,
    extents,
    throttle,
    pieceLength: options.pieceLength ?? 65536,
    depth: options.depth ?? 2,
    zeroUnit: options.zeroUnit ?? Math.min(65536, regionSize),
    allocate: (byteLength) => new Uint8Array(byteLength),
    verify: options.verify ?? false,
    ...(options.allowance && { allowance: options.allowance }),
    ...(options.window && { window: options.window }),
    halt: halt.signal,
  });
  const regions = new RegionMap(metadata);
  const commits = new CommitPipeline({
    metadata,
    destination,
    regions,
    ...(options.guard && { guard: options.guard }),
    link: options.link,
  });
  const { copiesInFlight = 4, rescueWidth = 1 } = options;
  const hints = new HintQueue(orderOf(options));
  const hydrator = new Hydrator(
    { geometry, regions, copier, extents, commits, clock, halt, copiesInFlight, rescueWidth, hints },
    settingsOf(options),
    options.lastTime,
  );
  const run = async (signal: AbortSignal = new AbortController().signal) => {
    const periodic = new PeriodicCommits({ commits, clock, onFailure: (error) => halt.abort(error) });
    periodic.start();
    return await hydrator.run(signal).finally(() => periodic.stop());
  };
  return {
    clock,
    source,
    destination,
    store,
    metadata,
    geometry,
    halt,
    throttle,
    extents,
    copier,
    regions,
    commits,
    hydrator,
    run,
  };
}

/** The same, hydrated beside clients. `began` has the batches in the order they entered the table. */
export async function makeOnlineHydration(options: HydrationOptions & { onStall?: (stall: Stall) => void } = {}) {
  const h = await makeHydration(options);
  const began: RegionRange[] = [];
  const begin = h.regions.begin.bind(h.regions);
  h.regions.begin = (range, ...rest) => {
    began.push({ start: range.start, end: range.end });
    return begin(range, ...rest);
  };
  const { limit: _, ...settings } = settingsOf(options);
  const { copiesInFlight = 4, zerosLength, allowance, onStall } = options;
  const optional = {
    ...(zerosLength && { zerosLength }),
    ...(allowance && { allowance }),
    ...(onStall && { onStall }),
    ...(options.order && { order: orderOf(options) }),
  };
  const parts = { ...h, copiesInFlight, ...optional };
  const hydrator = new OnlineHydrator(parts, settings, options.lastTime ?? []);
  const periodic = new PeriodicCommits({ ...h, onFailure: (error) => h.halt.abort(error) });
  const stop = new AbortController();
  /** Runs it to its end, with commits by the clock. */
  const run = async () => {
    periodic.start();
    return await hydrator.run(stop.signal).finally(() => periodic.stop());
  };
  return { ...h, hydrator, began, stop, run };
}

function orderOf({ order = [] }: HydrationOptions): HydrationOrder {
  const ranges = new HydrationOrder();
  for (const range of order) ranges.push(range);
  return ranges;
}

function settingsOf({ settings = {} }: HydrationOptions): HydrationSettings {
  return { threshold: null, batchSize: null, retry: 3, maxErrors: 1000, onError: "skip", limit: null, ...settings };
}

/** The regions that metadata on a device, opened anew, calls hydrated. */
export async function committedRegions(store: BlockDevice): Promise<RegionRange[]> {
  return [...(await CloneMetadata.open(store)).hydratedRanges()];
}

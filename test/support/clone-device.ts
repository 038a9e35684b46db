/** A clone device put together over memory, with whatever a test wraps round its devices. */
import { Geometry, type RegionRange } from "../../src/base/geometry.ts";
import type { BlockDevice } from "../../src/device/block-device.ts";
import { PaddedDevice } from "../../src/device/filters/padded.ts";
import { SliceDevice } from "../../src/device/filters/slice.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { CloneDevice, type CloneDeviceParts } from "../../src/engine/clone-device.ts";
import { type CommitParts, CommitPipeline } from "../../src/engine/commit-pipeline.ts";
import { ExtentCache } from "../../src/engine/extent-cache.ts";
import { RegionCopier } from "../../src/engine/region-copier.ts";
import { RegionMap } from "../../src/engine/region-map.ts";
import { Throttle } from "../../src/engine/throttle.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { formattedStore } from "./hydration.ts";
import { noise } from "./layout.ts";
import type { PowerLossDevice } from "./power-loss-device.ts";
import { VirtualClock } from "./virtual-clock.ts";

/** What differs from the usual: 16 regions of 4096 bytes of data, onto a destination full of old data, no time limit. */
export interface TestCloneOptions
  extends Partial<
    Pick<
      CloneDeviceParts,
      | "hydrateOnRead"
      | "discardPassdown"
      | "readOnly"
      | "sourceTimeoutMs"
      | "sourceDepth"
      | "writeBehindBytes"
      | "reads"
      | "retry"
      | "isUnreadable"
      | "readAheadBytes"
      | "onTouch"
    >
  > {
  /** Bytes that clients see. */
  size?: number;
  regionSize?: number;
  clock?: VirtualClock;
  /** Default: noise. */
  source?: BlockDevice;
  /** Default: other noise. */
  destination?: BlockDevice;
  /** Formatted metadata. */
  store?: BlockDevice;
  /** Regions that are hydrated from the beginning, though not committed. */
  hydrated?: RegionRange[];
  /** Whether the source is asked for its holes. */
  trusted?: boolean;
  /** Bytes per piece of a copy. */
  pieceLength?: number;
  guard?: NonNullable<CommitParts["guard"]>;
  link?: CommitParts["link"];
}

/** Everything that a served clone needs, and the device over it. */
export async function makeClone(options: TestCloneOptions = {}) {
  const { size = 16 * 4096, regionSize = 4096, clock = new VirtualClock() } = options;
  const padded = Math.ceil(size / 512) * 512;
  const geometry = new Geometry({ size: padded, regionSize });
  const source =
    options.source ?? new PaddedDevice(new MemoryDevice({ name: "source", size, content: noise(size, 1) }));
  const destination =
    options.destination ?? new PaddedDevice(new MemoryDevice({ name: "destination", size, content: noise(size, 2) }));
  const store = options.store ?? (await formattedStore(padded, regionSize));
  const metadata = await CloneMetadata.open(store);
  for (const range of options.hydrated ?? []) metadata.markHydrated(range);
  const halt = new AbortController();
  const extents = new ExtentCache(source, { trusted: options.trusted ?? true });
  const copier = new RegionCopier({
    source,
    destination,
    extents,
    throttle: new Throttle(clock, null),
    pieceLength: options.pieceLength ?? 65536,
    depth: 4,
    zeroUnit: Math.min(65536, regionSize),
    allocate: (byteLength) => new Uint8Array(byteLength),
    verify: false,
    halt: halt.signal,
    ...(options.reads && { reads: options.reads }),
  });
  const regions = new RegionMap(metadata);
  const events: string[] = [];
  const commits = new CommitPipeline({
    metadata,
    destination,
    regions,
    link: options.link,
    ...(options.guard && { guard: options.guard }),
    onCommitted: () => events.push("committed"),
    onFailed: (error) => {
      events.push(`failed: ${error.message}`);
      halt.abort(error);
    },
  });
  const hints: string[] = [];
  const meter = { busy: 0, touches: 0, measured: 0 };
  const device = new CloneDevice({
    geometry,
    exactSize: size,
    regions,
    source,
    destination,
    extents,
    commits,
    copier,
    clock,
    meter: {
      begin: () => {
        meter.busy++;
        return ++meter.measured;
      },
      end: () => void meter.busy--,
      touch: () => void meter.touches++,
    },
    onHint: ({ start, end }, kind) => void hints.push(`${kind} ${start}-${end}`),
    hydrateOnRead: options.hydrateOnRead ?? "never",
    discardPassdown: options.discardPassdown ?? true,
    readOnly: options.readOnly ?? false,
    sourceTimeoutMs: options.sourceTimeoutMs ?? Infinity,
    ...(options.sourceDepth !== undefined && { sourceDepth: options.sourceDepth }),
    ...(options.writeBehindBytes !== undefined && { writeBehindBytes: options.writeBehindBytes }),
    ...(options.reads && { reads: options.reads }),
    ...(options.retry !== undefined && { retry: options.retry }),
    ...(options.isUnreadable && { isUnreadable: options.isUnreadable }),
    ...(options.readAheadBytes && { readAheadBytes: options.readAheadBytes }),
    random: () => 0.5,
    onTouch: options.onTouch,
  });
  return {
    clock,
    geometry,
    source,
    destination,
    store,
    metadata,
    regions,
    extents,
    copier,
    commits,
    device,
    hints,
    meter,
    events,
    halt,
  };
}

/** A clone device in a test. */
export type TestClone = Awaited<ReturnType<typeof makeClone>>;

/** Bytes of a device. */
export async function bytesAt(device: Pick<BlockDevice, "read">, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xee);
  await device.read(offset, buffer);
  return buffer;
}

/** A clone of an odd size over destinations as they are opened: the clone's bytes and no others. */
export function destinationOf(device: BlockDevice, size: number): BlockDevice {
  return new PaddedDevice(new SliceDevice(device, { start: 0, size }));
}

/** One letter per region: `.` unhydrated, `~` hydrating, `#` hydrated. */
export function drawing({ regions }: Pick<TestClone, "regions">): string {
  const letters = { unhydrated: ".", hydrating: "~", hydrated: "#" };
  return Array.from({ length: regions.regionCount }, (_, region) => letters[regions.state(region)]).join("");
}

/** The clone opened again after the power has failed at this moment: of what was not flushed nothing, or all, is there. */
export async function afterPowerLossOf(
  {
    disk,
    store,
    ...options
  }: Omit<TestCloneOptions, "destination" | "store"> & { disk: PowerLossDevice; store: PowerLossDevice },
  random: () => number = () => 0,
): Promise<TestClone> {
  return await makeClone({ ...options, destination: disk.afterPowerLoss(random), store: store.afterPowerLoss(random) });
}

/** Everything about a run that is chosen before it begins, drawn from its seed. */
import { Geometry, type RegionRange } from "../../src/base/geometry.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES } from "../../src/metadata/descriptor.ts";
import { minimumBlockCount } from "../../src/metadata/metadata-size.ts";
import { readFixtureImage } from "./kernel-fixtures.ts";
import type { LossyLinkOptions } from "./lossy-link-device.ts";
import type { SeededRandom } from "./random.ts";
import type { DiskHabits } from "./sim-disk.ts";
import { ImageDevice, SparseImage } from "./sim-image.ts";
import type { MachineOptions } from "./sim-machine.ts";
import { Notebook } from "./sim-notebook.ts";

/** What kind of clone is simulated. */
export type RunKind =
  /** Few regions, one client, few requests: every cut is looked at. */
  | "short"
  | "long"
  /** Reads, writes and flushes fail. */
  | "faulty"
  /** More regions than an array block has bits. */
  | "sparse"
  /** Hydration alone, without clients. */
  | "offline"
  /** The destination is at the other end of a connection that breaks. */
  | "lossy"
  /** The metadata is what the kernel has left. */
  | "kernel";

/** A request of a client; bytes. `pauseMs` after the one before it. */
export type SimRequest = { pauseMs: number; waits: boolean } & (
  | { kind: "read"; offset: number; length: number }
  | { kind: "write"; offset: number; length: number; fua: boolean }
  | { kind: "zero"; offset: number; length: number; fua: boolean; mayPunch: boolean; fast: boolean }
  | { kind: "discard"; offset: number; length: number; fua: boolean }
  | { kind: "hint"; offset: number; length: number }
  | { kind: "extents"; offset: number; length: number }
  | { kind: "flush" | "commit" | "describe" | "pause" | "resume" | "linear" }
  | {
      kind: "tune";
      threshold: number | null;
      batchSize: number | null;
      rate: number | null;
      onRead: "always" | "whole" | "never";
    }
);

/** The clone's shape, its source, and what the media hold at first. */
export interface World {
  kind: RunKind;
  exactSize: number;
  geometry: Geometry;
  source: SparseImage;
  /** Bytes of the source that cannot be read for now. */
  unreadable: { offset: number; length: number }[];
  media: { destination: SparseImage; metadata: SparseImage };
  /** How often the power fails and it goes on. */
  generations: number;
}

/** One life of the clone, from opening it to its end. */
export interface Life {
  options: MachineOptions;
  habits: {
    source: { latencyMs: number; failRead: number; immediate: number };
    destination: DiskHabits;
    metadata: DiskHabits;
  };
  /** The connection to the destination, where it is far away. */
  link?: Pick<LossyLinkOptions, "chance" | "most" | "outageMs" | "patienceMs" | "strayMs">;
  /** One list for each client. */
  clients: SimRequest[][];
  /** What comes when clients have ended: nothing, an orderly stop, or hydration to its end. */
  ending: "abrupt" | "stop" | "complete";
  /** Paused from the beginning. */
  paused: boolean;
}

const PAGE = 4096;
/** What the kernel wrote, of sizes that can be hydrated a thousand times. */
const KERNEL_FIXTURES = [
  ...["bg", "crash", "discards", "fresh", "full", "writes"].map((name) => `${name}-64m-4k`),
  ...["odd-fresh-32k", "odd-full-32k", "odd-tail-32k", "one-region-exact", "one-region-fresh", "regions-64"],
  "big-regions-1m",
];

/** Draws the shape of a clone. */
export async function drawWorld(random: SeededRandom, only?: RunKind): Promise<World> {
  const kind = only ?? drawKind(random);
  if (kind === "kernel") return await kernelWorld(random);
  const regionSize = PAGE * random.pick(kind === "sparse" ? [1] : [1, 1, 1, 2, 4, 8, 16]);
  const most = kind === "short" ? 6 : Math.max(3, Math.min(40, Math.floor((512 * 1024) / regionSize)));
  const regionCount = kind === "sparse" ? random.integer(32_570, 66_000) : random.integer(1, most);
  const lastLength = random.pick([
    regionSize,
    512 * random.integer(1, regionSize / 512),
    random.integer(1, regionSize),
  ]);
  const exactSize = (regionCount - 1) * regionSize + lastLength;
  const geometry = new Geometry({ size: Math.ceil(exactSize / 512) * 512, regionSize });
  const places = hotPlaces(random, geometry, kind);
  const source = new SparseImage(geometry.size);
  const destination = new SparseImage(geometry.size);
  for (const { offset, length } of places) {
    fillRuns(source, offset, Math.min(length, exactSize - offset), random, 0.7);
    fillRuns(destination, offset, Math.min(length, exactSize - offset), random, 0.85);
  }
  const unreadable: World["unreadable"] = [];
  if (kind === "faulty" || random.oneIn(6)) {
    for (let count = random.integer(0, 3); count > 0; count--) {
      const offset = 512 * random.integer(0, geometry.size / 512 - 1);
      unreadable.push({ offset, length: 512 * random.integer(1, 4) });
    }
  }
  const least = minimumBlockCount(regionCount);
  // Where there are no more than a commit needs, blocks are used again at once.
  const blockCount = random.pick([least, least, least + 1, least + random.integer(1, 40)]);
  const described = !random.oneIn(4);
  const metadata = new SparseImage(blockCount * PAGE + (described ? DESCRIPTOR_BYTES : random.pick([0, 8 * PAGE])));
  const device = new ImageDevice(metadata, "metadata");
  await CloneMetadata.create(device, { geometry, blockCount });
  if (described) await Notebook.format(device, { geometry, blockCount });
  const generations = kind === "short" ? random.integer(1, 2) : random.integer(1, 4);
  return { kind, exactSize, geometry, source, unreadable, media: { destination, metadata }, generations };
}

/** Short runs take the least time. */
function drawKind(random: SeededRandom): RunKind {
  const shares = { short: 8, long: 10, faulty: 6, sparse: 2, offline: 4, lossy: 6, kernel: 2 } as const;
  const kinds = Object.keys(shares) as (keyof typeof shares)[];
  return random.pick(kinds.flatMap((kind) => Array<RunKind>(shares[kind]).fill(kind)));
}

/** A clone that the kernel has begun: its bits are as it left them, and behind them is what has no other copy. */
async function kernelWorld(random: SeededRandom): Promise<World> {
  const metadata = SparseImage.from(readFixtureImage(random.pick(KERNEL_FIXTURES)));
  const { geometry } = await CloneMetadata.open(new ImageDevice(metadata, "metadata"), { readOnly: true });
  const [source, destination] = [new SparseImage(geometry.size), new SparseImage(geometry.size)];
  for (const { offset, length } of hotPlaces(random, geometry, "kernel")) {
    fillRuns(source, offset, length, random, 0.7);
    fillRuns(destination, offset, length, random, 0.85);
  }
  const media = { destination, metadata };
  return { kind: "kernel", exactSize: geometry.size, geometry, source, unreadable: [], media, generations: 2 };
}

/** Where there is anything: everywhere, or in a few places of a sparse clone. */
export function hotPlaces(
  random: SeededRandom,
  { size }: Geometry,
  kind: RunKind,
): { offset: number; length: number }[] {
  if (kind !== "sparse" && kind !== "kernel") return [{ offset: 0, length: size }];
  const length = 10 * PAGE;
  const last = Math.max(0, Math.floor(size / PAGE) - 5) * PAGE;
  // At both ends, where array blocks meet (32576 bits each), and in the middle of nowhere.
  const starts = [0, last, 32_570 * PAGE, 4096 * PAGE, PAGE * random.integer(0, Math.floor(last / PAGE))];
  return starts
    .filter((offset) => offset < size)
    .map((offset) => ({ offset, length: Math.min(length, size - offset) }));
}

/** Draws one life of it. */
export function drawLife(random: SeededRandom, world: World, generation: number): Life {
  const { kind, geometry, exactSize } = world;
  const faulty = kind === "faulty";
  const threshold = () => random.pick([null, 0, 1, 1, 2, 4, 16]);
  const batchSize = () => random.pick([null, 1, 1, 2, 4, 16]);
  const onRead = () => random.pick(["always", "whole", "never"] as const);
  const region = (): number => random.integer(0, geometry.regionCount - 1);
  const order = (): RegionRange => {
    const start = region();
    return { start, end: Math.min(geometry.regionCount, start + random.integer(1, 3)) };
  };
  const clientCount = kind === "short" ? 1 : random.integer(1, 4);
  const requests = kind === "short" ? random.integer(1, 6) : random.integer(4, 20);
  const options: MachineOptions = {
    exactSize,
    hydrateOnRead: onRead(),
    discardPassdown: !random.oneIn(4),
    settings: {
      threshold: threshold(),
      batchSize: batchSize(),
      retry: random.integer(0, 2),
      maxErrors: 1000,
      onError: "skip",
    },
    rate: random.pick([null, null, 20_000, 200_000]),
    pieceLength: random.pick([65536, 2 ** 21]),
    trusted: kind === "sparse" || kind === "kernel" || !random.oneIn(4),
    far: random.oneIn(3),
    governed: random.oneIn(2),
    order: random.oneIn(3) ? [order(), order()] : [],
    verify: random.oneIn(8),
    retry: random.integer(0, 2),
  };
  const disk = (latencyMs: number): DiskHabits => ({
    latencyMs: random.integer(0, latencyMs),
    immediate: random.pick([0, 0.5, 1]),
    ...(faulty && { failWrite: random.pick([0, 0, 0.05]), failFlush: random.pick([0, 0, 0.05, 0.2]) }),
  });
  const clients = Array.from({ length: clientCount }, (_, client) => {
    const places = hotPlaces(random, geometry, kind);
    return Array.from({ length: requests }, () => drawRequest(random, world, places, client));
  });
  const last = generation === world.generations - 1;
  const isFar = kind === "lossy" || (kind === "offline" && random.oneIn(3));
  const link = {
    chance: random.pick([0.005, 0.02, 0.1]),
    most: random.integer(0, 5),
    outageMs: random.pick([0, 500, 5000]),
    patienceMs: random.pick([Infinity, Infinity, 1000]),
    strayMs: random.pick([0, 2000, 20_000]),
  };
  return {
    options,
    ...(isFar && { link }),
    habits: {
      source: { latencyMs: random.integer(0, 150), failRead: faulty ? random.pick([0, 0.05, 0.2]) : 0, immediate: 0 },
      destination: { ...disk(random.pick([3, 60, 200])), zeroesFast: !random.oneIn(4) },
      metadata: disk(random.pick([3, 30, 200])),
    },
    clients,
    ending: random.pick(last ? ["abrupt", "stop", "complete", "complete"] : ["abrupt", "abrupt", "stop", "complete"]),
    paused: random.oneIn(6),
  };
}

function drawRequest(
  random: SeededRandom,
  world: World,
  places: { offset: number; length: number }[],
  client: number,
): SimRequest {
  const { exactSize, geometry } = world;
  const { regionSize } = geometry;
  const place = random.pick(places);
  const range = (): { offset: number; length: number } => {
    const regions = Math.ceil(place.length / regionSize);
    const base = place.offset + regionSize * random.integer(0, Math.max(0, regions - 1));
    const shape = random.integer(0, 9);
    let offset = base;
    let length = regionSize * random.integer(1, Math.min(4, regions));
    if (shape < 4) {
      offset = base + 512 * random.integer(0, regionSize / 512 - 1);
      length = 512 * random.integer(1, Math.ceil((1.5 * regionSize) / 512));
    } else if (shape === 4) {
      offset = base + random.integer(0, regionSize - 1);
      length = random.integer(1, 2 * regionSize);
    } else if (shape === 5) {
      length = exactSize - offset; // up to the end, where the last region is short
    }
    offset = Math.min(offset, exactSize - 1);
    return { offset, length: Math.min(Math.max(1, length), exactSize - offset, 64 * regionSize, 2 ** 20) };
  };
  const pauseMs = random.pick([0, 0, 0, random.integer(0, 30), random.integer(0, 300), random.integer(0, 2500)]);
  // Who does not wait for the answer has several requests in flight.
  const timing = { pauseMs, waits: !random.oneIn(client === 0 ? 4 : 2) };
  const draw = random.integer(0, 99);
  if (draw < 22) return { ...timing, kind: "read", ...range() };
  if (draw < 54) return { ...timing, kind: "write", ...range(), fua: random.oneIn(6) };
  if (draw < 62) {
    const flags = { fua: random.oneIn(6), mayPunch: random.oneIn(2), fast: random.oneIn(6) };
    return { ...timing, kind: "zero", ...range(), ...flags };
  }
  if (draw < 74) return { ...timing, kind: "discard", ...range(), fua: random.oneIn(6) };
  if (draw < 83) return { ...timing, kind: "flush" };
  if (draw < 86) return { ...timing, kind: "describe" };
  if (draw < 89) return { ...timing, kind: "hint", ...range() };
  if (draw < 92) return { ...timing, kind: "extents", ...range() };
  if (draw < 96) return { ...timing, kind: random.pick(["pause", "resume", "commit", "linear"] as const) };
  return {
    ...timing,
    kind: "tune",
    threshold: random.pick([null, 1, 2, 16]),
    batchSize: random.pick([null, 1, 2, 16]),
    rate: random.pick([null, 50_000, 500_000]),
    onRead: random.pick(["always", "whole", "never"] as const),
  };
}

/** Fills a range with runs of data, whose bytes are never zero, and of nothing. */
function fillRuns(image: SparseImage, offset: number, length: number, random: SeededRandom, dataShare: number): void {
  const end = offset + length;
  for (let at = offset; at < end; ) {
    const isData = random.integer(0, 99) < 100 * dataShare;
    const most = random.pick([PAGE, 4 * PAGE, 16 * PAGE]);
    const until = Math.min(
      end,
      random.oneIn(4) ? at + 512 * random.integer(1, 12) : Math.floor(at / PAGE) * PAGE + most,
    );
    if (isData) {
      const bytes = Buffer.alloc(until - at);
      let state = random.integer(1, 2 ** 31 - 2);
      for (let index = 0; index < bytes.length; index++) {
        state = (state * 16_807) % 2_147_483_647;
        bytes[index] = 1 + (state % 255);
      }
      image.write(at, bytes);
    }
    at = until;
  }
}

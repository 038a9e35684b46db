/** Looks at the crash states of one life, and chooses the one from which the next goes on. */
import { checkMetadata } from "../../src/metadata/check.ts";
import { formatFinding } from "../../src/metadata/check-report.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { seededRandom } from "./power-loss-device.ts";
import { type SeededRandom, seededRandom as seededDraws } from "./random.ts";
import { DiskAtCut, type LandedMode } from "./sim-crash.ts";
import { type SimulationEvent, SimulationLog, shownEvent } from "./sim-disk.ts";
import type { SectorHistory, WrongBytes } from "./sim-history.ts";
import { ImageDevice, SparseImage } from "./sim-image.ts";
import type { Lived } from "./sim-life.ts";
import { openMachine } from "./sim-machine.ts";
import { Notebook } from "./sim-notebook.ts";
import type { Life, RunKind, World } from "./sim-scenario.ts";
import { mix } from "./sim-seed.ts";
import { VirtualClock } from "./virtual-clock.ts";

/** [destination, metadata]; the first one is the most dangerous, and looked at at every cut. */
const SUBSETS: readonly (readonly [LandedMode, LandedMode])[] = [
  ["none", "all"],
  ["torn", "torn"],
  ["none", "none"],
  ["some writes", "some writes"],
  ["all", "all"],
  ["all but one", "all"],
  ["torn", "all"],
  ["all", "none"],
  ["only one", "torn"],
  ["none", "torn"],
  ["some writes", "all"],
];
const MOST_VIOLATIONS = 5;
/** Of the crash states one in so many is opened and read as clients would. */
const REOPEN_EVERY = 50;

/** What must be there at a cut. */
interface Promised {
  at: number;
  history: SectorHistory;
  /** At least so many regions are hydrated. */
  committed: number;
  notebook: Notebook | undefined;
}

/** What some metadata says. */
interface Verdict {
  wrong?: string;
  metadata?: CloneMetadata;
  /** What the descriptor says. */
  turn?: number | undefined;
}

/** One crash state, or all those of a cut or a generation. */
export interface OnlyState {
  generation: number;
  cut?: number;
  subset?: number;
}

/** Something that must not be. */
export interface Violation {
  /** One sentence. */
  what: string;
  generation: number;
  /** Of a crash state: after how many events, and which choice of what has landed. */
  cut?: number;
  subset?: number;
  /** What happened, one line each. */
  account: string[];
}

/** What is looked at. */
export interface LookRequest {
  lived: Lived;
  generation: number;
  seed: number;
  /** About so many; short runs are looked at whole. */
  states: number;
  only: OnlyState | undefined;
  /** Counts what is looked at. */
  counts: { states: number; cuts: number };
}

/** Looks at the crash states of one generation. */
export class CrashLook {
  /** What the next generation begins with. */
  next: { media: World["media"]; born: SparseImage } | undefined;
  readonly #world: World;
  readonly #media: World["media"];
  /** By the bytes on the metadata disk. */
  readonly #verdicts = new Map<string, Verdict>();

  constructor(world: World, media: World["media"]) {
    this.#world = world;
    this.#media = media;
  }

  /** Everything that is wrong, at the earliest cut at which anything is. */
  async at({ lived, generation, seed, states, only, counts }: LookRequest): Promise<Violation[]> {
    const { log, disks } = lived;
    const { events } = log;
    const violations: Violation[] = lived.wrong
      .slice(0, MOST_VIOLATIONS)
      .map((what) => ({ what, generation, account: this.#accountOf(events, events.length) }));
    const draws = seededDraws(mix(seed, 300 + generation));
    const points = events.flatMap((event, index) => (isCutPoint(event) ? [index + 1] : []));
    const { cuts, subsetsAt } = choosePoints(points, states, this.#world.kind, draws);
    const goOn = cuts[draws.integer(0, cuts.length - 1)] ?? 0;
    const wanted = new Set([0, ...cuts, ...(only?.generation === generation ? [only.cut ?? 0] : [])]);
    const isWanted = (cut: number, subset: number): boolean =>
      only === undefined ||
      (only.generation === generation && (only.cut ?? cut) === cut && (only.subset ?? subset) === subset);
    const destination = new DiskAtCut(disks.destination);
    const metadata = new DiskAtCut(disks.metadata);
    let committed = 0;
    /** What was looked at: the bytes, and what was promised of them. Later on more may be there of what was not. */
    const seen = new Set<string>();
    for (let cut = 0; cut <= events.length && violations.length === 0; cut++) {
      const event = events[cut - 1];
      if (event !== undefined) for (const disk of [destination, metadata]) disk.play(event);
      if (event?.kind === "note") committed = Math.max(committed, event.committed ?? 0);
      if (!wanted.has(cut)) continue;
      const before = counts.states;
      const at = event?.at ?? 0;
      const promised = {
        at,
        history: lived.history,
        committed: at >= lived.completeAt ? Infinity : committed,
        notebook: lived.notebook,
      };
      const promise = [lived.history.certainAt(at), promised.committed, lived.notebook?.leastAt(at)].join();
      for (const subset of subsetsAt(cut)) {
        const goesOn = cut === goOn && subset === 1;
        if (!goesOn && !isWanted(cut, subset)) continue;
        const random = seededRandom(mix(seed, 1000 + generation * 0x100_0000 + cut * 16 + subset));
        const [landed, noted] = SUBSETS[subset] as (typeof SUBSETS)[number];
        await destination.withLanded(landed, random, (bytes) =>
          metadata.withLanded(noted, random, async (blocks) => {
            const name = `${bytes}/${blocks} ${promise}`;
            if (seen.has(name) && !goesOn) return;
            // That from which this generation has begun is the one before's.
            if (!seen.has(name) && (cut > 0 || generation === 0)) counts.states++;
            seen.add(name);
            const reopens = goesOn || counts.states % REOPEN_EVERY === 0;
            const wrong = await this.#look(destination.image, metadata.image, blocks, promised, reopens);
            if (wrong !== undefined) {
              const account = this.#accountOf(events, cut, wrong.offset);
              violations.push({ what: wrong.what, generation, cut, subset, account });
            } else if (goesOn) {
              const media = { destination: destination.image.copy(), metadata: metadata.image.copy() };
              this.next = { media, born: this.shown(await opened(media.metadata), media.destination) };
            }
          }),
        );
      }
      if (counts.states > before) counts.cuts++;
    }
    return violations;
  }

  /** What is wrong with one crash state, a sentence. */
  async #look(
    destination: SparseImage,
    image: SparseImage,
    name: string,
    { at, history, committed, notebook }: Promised,
    reopens: boolean,
  ): Promise<{ what: string; offset?: number } | undefined> {
    let verdict = this.#verdicts.get(name);
    if (verdict === undefined) {
      if (this.#verdicts.size > 100) this.#verdicts.clear();
      verdict = await judge(image);
      this.#verdicts.set(name, verdict);
    }
    const { metadata, wrong, turn } = verdict;
    if (metadata === undefined) return { what: wrong ?? "" };
    const stale = notebook?.check(at, turn);
    if (stale !== undefined) return { what: stale };
    const { regionSize, regionCount } = this.#world.geometry;
    if (metadata.hydratedCount < Math.min(committed, regionCount)) {
      return { what: `of the regions ${metadata.hydratedCount} are hydrated, though ${committed} were committed` };
    }
    const isHydrated = (offset: number): boolean => metadata.isHydrated(Math.floor(offset / regionSize));
    const found: WrongBytes | undefined =
      history.checkCut(at, (offset) => (isHydrated(offset) ? destination : this.#world.source)) ??
      history.checkRest(destination, isHydrated);
    if (found !== undefined || !reopens) return found;
    const what = await this.#reopen(destination, image, metadata);
    return what === undefined ? undefined : { what };
  }

  /** What the clone shows: the destination's bytes where a region is hydrated, the source's elsewhere. */
  shown(metadata: CloneMetadata, destination = this.#media.destination): SparseImage {
    const { geometry, source } = this.#world;
    const shown = new SparseImage(geometry.size);
    const isHydrated = (page: number): boolean => metadata.isHydrated(Math.floor((page * 4096) / geometry.regionSize));
    for (const [page, bytes] of destination.pages) if (isHydrated(page)) shown.pages.set(page, Buffer.from(bytes));
    for (const [page, bytes] of source.pages) if (!isHydrated(page)) shown.pages.set(page, Buffer.from(bytes));
    return shown;
  }

  /** What happened before a cut, for people: to the region in which something is wrong, and at last. */
  #accountOf(events: readonly SimulationEvent[], cut: number, offset?: number): string[] {
    const { regionSize } = this.#world.geometry;
    const region = offset === undefined ? -1 : Math.floor(offset / regionSize);
    const concerns = (event: SimulationEvent): boolean => {
      if (event.kind === "durable") return event.flush;
      if (event.kind === "note") {
        const { marked, what } = event;
        return what === "committed" || (marked !== undefined && marked.start <= region && region < marked.end);
      }
      const start = event.firstSector * 512;
      if (event.disk.name === "metadata") return start === 0;
      return start < (region + 1) * regionSize && start + event.data.length > region * regionSize;
    };
    const last = Math.max(0, cut - 15);
    const lines = events.slice(0, cut).flatMap((event, index) => {
      return index >= last || (region >= 0 && concerns(event)) ? [`${index + 1}: ${shownEvent(event)}`] : [];
    });
    return region < 0 ? lines : [`region ${region}: ${region * regionSize} to ${(region + 1) * regionSize}`, ...lines];
  }

  /** Opens the clone as it is and reads all that it shows. */
  async #reopen(destination: SparseImage, metadata: SparseImage, truth: CloneMetadata): Promise<string | undefined> {
    const { exactSize, source } = this.#world;
    const log = new SimulationLog();
    const clock = new VirtualClock();
    const devices = {
      clock,
      log,
      random: () => 0.5,
      source: new ImageDevice(source, "source"),
      destination: new ImageDevice(destination.copy(), "destination"),
      metadata: new ImageDevice(metadata.copy(), "metadata"),
    };
    const { device } = await openMachine(devices, { ...READING, exactSize });
    const expected = this.shown(truth, destination);
    for (const page of expected.pages.keys()) {
      const length = Math.min(4096, exactSize - page * 4096);
      const [bytes, wanted] = [Buffer.alloc(length, 0xee), Buffer.alloc(length)];
      if (length <= 0) continue;
      await device.read(page * 4096, bytes);
      expected.read(page * 4096, wanted);
      if (!bytes.equals(wanted)) return `opened again, it shows something else in page ${page}`;
    }
    return undefined;
  }
}

const READING: Omit<Life["options"], "exactSize"> = {
  hydrateOnRead: "never",
  discardPassdown: true,
  settings: { threshold: 1, batchSize: 1, retry: 0, maxErrors: 1000, onError: "skip" },
  rate: null,
  pieceLength: 65536,
  trusted: true,
  far: false,
  governed: false,
  order: [],
  verify: false,
  retry: 0,
};

/** What the checker and the opener say of metadata. */
async function judge(image: SparseImage): Promise<Verdict> {
  const device = new ImageDevice(image, "metadata");
  const { fatal, warnings } = await checkMetadata(device);
  // One slot of the descriptor may be torn: the other one counts then.
  const torn = warnings.filter(({ structure }) => structure === "descriptor").length;
  if (fatal.length > 0 || warnings.length > Math.min(torn, 1)) {
    const findings = [...fatal, ...warnings].slice(0, 3).map(formatFinding);
    return { wrong: `the metadata is not clean: ${findings.join("; ")}` };
  }
  try {
    const metadata = await opened(image);
    const place = { geometry: metadata.geometry, blockCount: metadata.totalBlocks };
    return { metadata, turn: await Notebook.turnOn(device, place) };
  } catch (error) {
    return { wrong: `the metadata is clean, and cannot be opened: ${(error as Error).message}` };
  }
}

/** The metadata on an image. @throws {MetadataError} */
export async function opened(image: SparseImage): Promise<CloneMetadata> {
  return await CloneMetadata.open(new ImageDevice(image, "metadata"), { readOnly: true });
}

/** Every point of a short run, a sample of a long one; and which choices of what has landed are looked at there. */
function choosePoints(
  points: readonly number[],
  states: number,
  kind: RunKind,
  draws: SeededRandom,
): { cuts: number[]; subsetsAt: (cut: number) => number[] } {
  const perCut = kind === "short" ? 6 : 4;
  const most = Math.max(1, Math.floor(states / perCut));
  const all = kind === "short" || points.length <= most;
  const cuts = all ? [...points] : [...points].filter(() => draws.integer(1, points.length) <= most);
  const end = points.at(-1) ?? 0;
  if (!cuts.includes(end)) cuts.push(end);
  const subsetsAt = (cut: number): number[] => {
    const others = Array.from(
      { length: perCut - 2 },
      (_, index) => 2 + ((cut * (perCut - 2) + index) % (SUBSETS.length - 2)),
    );
    return [0, 1, ...others];
  };
  return { cuts, subsetsAt };
}

/** Where the power may fail with another outcome than before. */
function isCutPoint(event: SimulationEvent): boolean {
  if (event.kind === "durable") return event.changes.length > 0;
  return event.kind === "change" || event.answer === true;
}

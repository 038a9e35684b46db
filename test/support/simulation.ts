/**
 * A whole clone in a simulated machine, whose power is cut wherever it may be, all from one seed.
 *
 *     for each generation:
 *         run            the clone from what is on the media, with clients, to the end of its life; everything is logged
 *         order          the log is held against the order that things must have
 *         reads          each is held against what a plain disk might have answered
 *         crash states   derived from the log: at each cut point several choices of what has landed, and each is looked at
 *         go on          from one of them
 *
 * A crash state is right if the metadata is without fault, and what the clone shows of it is what a plain disk might hold:
 * what was flushed or written with FUA is there, what was not is old or new, sector by sector, and all else is the
 * source's. The destination begins full of other data, so that nothing is right by chance.
 */
import { createHash } from "node:crypto";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { ioError } from "../../src/device/io-error.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { formatFinding } from "../../src/metadata/check-report.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { JitteryDevice } from "./jittery-device.ts";
import { seededRandom } from "./power-loss-device.ts";
import { type SeededRandom, seededRandom as seededDraws } from "./random.ts";
import { runClient, type Seen } from "./sim-clients.ts";
import { DiskAtCut, type LandedMode } from "./sim-crash.ts";
import { SimulatedDisk, type SimulationEvent, SimulationLog } from "./sim-disk.ts";
import { SectorHistory, type WrongBytes } from "./sim-history.ts";
import { ImageDevice, SparseImage } from "./sim-image.ts";
import { type Machine, type Mutation, openMachine } from "./sim-machine.ts";
import { checkOrder } from "./sim-order.ts";
import { drawLife, drawWorld, type Life, type RunKind, type World } from "./sim-scenario.ts";
import { VirtualClock } from "./virtual-clock.ts";

export type { Mutation } from "./sim-machine.ts";

/** What is simulated, and how closely it is looked at. */
export interface SimulationRequest {
  /** From 0 to 2^32 - 1; everything follows from it. */
  seed: number;
  /** Default: as the seed says. */
  kind?: RunKind;
  mutation?: Mutation;
  /** Crash states of each generation that are looked at, about. Default 240; short runs are looked at whole. */
  states?: number;
  /** Which disks answer a flush and make nothing durable. */
  lying?: "destination" | "metadata" | "both";
  /** Look at one crash state only. */
  only?: { generation: number; cut?: number; subset?: number };
}

/** Something that must not be. */
export interface Violation {
  /** One sentence. */
  what: string;
  generation: number;
  /** Of a crash state: after how many events, and which choice of what has landed. */
  cut?: number;
  subset?: number;
  /** What happened last, one line each. */
  account: string[];
}

/** What was found. */
export interface SimulationReport {
  seed: number;
  kind: RunKind;
  violations: Violation[];
  generations: number;
  /** Crash states that were looked at, all of them different, or with other promises to be kept. */
  states: number;
  cuts: number;
  events: number;
  /** Of everything that happened, in order: the same seed, the same digest. */
  digest: string;
}

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
const STATES = 240;
/** Most that is waited for the clone to come to an end, ms of virtual time. */
const LONGEST_LIFE_MS = 3_600_000;
const MOST_VIOLATIONS = 5;
/** Of the crash states one in so many is opened and read as clients would. */
const REOPEN_EVERY = 50;

/** Simulates one run. Never throws for what the clone does. */
export async function simulate(request: SimulationRequest): Promise<SimulationReport> {
  const { seed } = request;
  const world = await drawWorld(seededDraws(mix(seed, 1)), request.kind);
  const hash = createHash("sha256");
  const report: SimulationReport = {
    seed,
    kind: world.kind,
    violations: [],
    generations: 0,
    states: 0,
    cuts: 0,
    events: 0,
    digest: "",
  };
  let { media } = world;
  const first = new CrashLook(world, media);
  let born = first.shown(await opened(media.metadata));
  for (let generation = 0; generation < world.generations; generation++) {
    const drawn = seededDraws(mix(seed, 100 + generation));
    const life = drawLife(drawn, world, generation);
    const run = await liveOnce(request, world, life, { media, born, generation });
    report.generations++;
    report.events += run.log.events.length;
    for (const event of run.log.events)
      hash.update(shownEvent(event)).update(event.kind === "change" ? event.data : "");
    const look = new CrashLook(world, media);
    const wrong = await look.at(request, { ...run, generation }, report);
    report.violations.push(...wrong);
    if (report.violations.length > 0 || look.next === undefined) break;
    ({ media, born } = look.next);
  }
  report.digest = hash.digest("hex");
  return report;
}

/** How to see one violation again, alone. */
export function reproduction({ seed }: SimulationReport, { generation, cut, subset }: Violation): string {
  const state = cut === undefined ? "" : ` --cut ${cut} --subset ${subset}`;
  return `npm run test:sim -- --replay ${seed} --generation ${generation}${state}`;
}

/** The report as text for people. */
export function shownReport(report: SimulationReport): string {
  return report.violations
    .map(
      (violation) => `${violation.what}\n  ${reproduction(report, violation)}\n    ${violation.account.join("\n    ")}`,
    )
    .join("\n");
}

interface Run {
  log: SimulationLog;
  disks: { destination: SimulatedDisk; metadata: SimulatedDisk };
  history: SectorHistory;
  wrong: string[];
  generation: number;
}

/** The clone from being opened to its end. */
async function liveOnce(
  { seed, mutation, lying }: SimulationRequest,
  world: World,
  life: Life,
  { media, born, generation }: { media: World["media"]; born: SparseImage; generation: number },
): Promise<Omit<Run, "generation">> {
  const clock = new VirtualClock();
  const log = new SimulationLog();
  const random = seededRandom(mix(seed, 200 + generation));
  const parts = { log, clock, random };
  const lies = (disk: string) => ({ lies: lying === "both" || lying === disk });
  const disks = {
    destination: new SimulatedDisk(media.destination, {
      ...parts,
      name: "destination",
      size: world.exactSize,
      habits: { ...life.habits.destination, ...lies("destination") },
    }),
    metadata: new SimulatedDisk(media.metadata, {
      ...parts,
      name: "metadata",
      habits: { ...life.habits.metadata, ...lies("metadata") },
    }),
  };
  const history = new SectorHistory(born, () => log.moment());
  const source = new SimulatedSource(world, clock, random, life);
  const seen: Seen = { reads: [], wrong: [], failures: 0 };
  const undo = mutation?.patch?.();
  const over = new AbortController();
  try {
    const machine = await openMachine({ ...disks, ...parts, source: source.device }, life.options, mutation);
    const lived = live(machine, life, history, source, disks, seen).then(() => undefined);
    const hung = clock.sleep(LONGEST_LIFE_MS, over.signal).then(() => {
      if (!over.signal.aborted) throw new Error(`no end after ${LONGEST_LIFE_MS} ms`);
    });
    await Promise.race([lived, hung]);
  } catch (error) {
    seen.wrong.push((error as Error).stack ?? String(error));
  } finally {
    over.abort();
    undo?.();
  }
  const wrong = [...seen.wrong];
  for (const read of seen.reads) {
    const answer = history.checkRead(read);
    if (answer !== undefined) wrong.push(`${read.what}, from ${read.begunAt} to ${read.endedAt}: ${answer.what}`);
    if (wrong.length >= MOST_VIOLATIONS) break;
  }
  wrong.push(...(await checkOrder(log.events, disks)));
  return { log, disks, history, wrong };
}

async function live(
  machine: Machine,
  life: Life,
  history: SectorHistory,
  source: SimulatedSource,
  disks: Run["disks"],
  seen: Seen,
): Promise<void> {
  const { hydrator, periodic, governor, device, commits, log } = machine;
  const stop = new AbortController();
  if (life.paused) hydrator.pause();
  if (life.options.governed) governor.start();
  periodic.start();
  let end: string | undefined;
  const hydrating = hydrator.run(stop.signal).then(
    (how) => {
      end = how;
    },
    (error: Error) => {
      if (commits.failure === undefined) seen.wrong.push(`hydration: ${error.stack ?? error.message}`);
    },
  );
  const clients = life.clients.map((requests, index) => runClient(machine, history, requests, `client ${index}`, seen));
  await Promise.all(clients);
  if (life.ending === "complete") {
    source.heal();
    for (const disk of [disks.destination, disks.metadata])
      disk.habits = { ...disk.habits, failWrite: 0, failFlush: 0 };
    governor.rate = null;
    hydrator.tune({ threshold: null, batchSize: null });
    hydrator.resume();
    await hydrating;
    if (commits.failure === undefined) {
      if (end !== "complete") seen.wrong.push(`hydration ended ${end}`);
      log.note("complete");
      const askedAt = log.moment();
      await device.flush();
      history.flushed(askedAt);
      log.note("flushed at the end: done", { answer: true });
      await device.drain();
      if (!device.becomeLinear()) seen.wrong.push("a complete clone does not become linear");
      await runClient(machine, history, life.clients[0]?.slice(0, 5) ?? [], "linear", seen);
    }
  }
  stop.abort();
  await hydrating;
  await periodic.stop();
  await governor.stop();
  await device.drain();
  if (life.ending !== "abrupt" && commits.failure === undefined) {
    await commits.commit();
    log.note("stopped: done", { answer: true });
  }
}

/** The source behind a network that takes its time, and parts of which cannot be read. */
class SimulatedSource {
  readonly device: JitteryDevice;
  readonly #unreadable: World["unreadable"];

  constructor(world: World, clock: VirtualClock, random: () => number, { habits }: Life) {
    const unreadable = [...world.unreadable];
    this.#unreadable = unreadable;
    const bytes = new ImageDevice(world.source, "source");
    this.device = new JitteryDevice(new UnreadableParts(bytes, unreadable), clock, random, { ...habits.source });
  }

  /** From now on everything can be read. */
  heal(): void {
    this.#unreadable.length = 0;
    this.device.jitter.failRead = 0;
  }
}

class UnreadableParts extends FilterDevice {
  readonly #parts: readonly { offset: number; length: number }[];

  constructor(inner: ImageDevice, parts: readonly { offset: number; length: number }[]) {
    super(inner);
    this.#parts = parts;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    const end = offset + buffer.length;
    if (this.#parts.some((part) => part.offset < end && offset < part.offset + part.length)) {
      throw ioError({ verb: "read", name: this.name, offset, length: buffer.length, errno: "EIO" });
    }
    await super.read(offset, buffer);
  }
}

/** What some metadata says. */
interface Verdict {
  wrong?: string;
  metadata?: CloneMetadata;
}

/** Looks at the crash states of one generation. */
class CrashLook {
  /** What the next generation begins with. */
  next: { media: World["media"]; born: SparseImage } | undefined;
  readonly #world: World;
  readonly #media: World["media"];
  /** By what is on the metadata disk. */
  readonly #verdicts = new Map<string, Verdict>();

  constructor(world: World, media: World["media"]) {
    this.#world = world;
    this.#media = media;
  }

  async at(request: SimulationRequest, run: Run, report: SimulationReport): Promise<Violation[]> {
    const { generation, log, disks, history } = run;
    const violations: Violation[] = run.wrong
      .slice(0, MOST_VIOLATIONS)
      .map((what) => ({ what, generation, account: this.#accountOf(log.events, log.events.length) }));
    const { only } = request;
    const draws = seededDraws(mix(request.seed, 300 + generation));
    const points = log.events.flatMap((event, index) => (isCutPoint(event) ? [index + 1] : []));
    const chosen = choosePoints(points, request.states ?? STATES, this.#world.kind, draws);
    const goOn = chosen.cuts.at(draws.integer(0, chosen.cuts.length - 1)) ?? 0;
    if (only?.generation === generation && only.cut !== undefined) chosen.cuts.push(only.cut);
    const wanted = new Set([0, ...chosen.cuts]);
    const destination = new DiskAtCut(disks.destination);
    const metadata = new DiskAtCut(disks.metadata);
    for (let cut = 0; cut <= log.events.length && violations.length < MOST_VIOLATIONS; cut++) {
      const event = log.events[cut - 1];
      if (event !== undefined) for (const disk of [destination, metadata]) disk.play(event);
      if (!wanted.has(cut)) continue;
      report.cuts++;
      const seen = new Set<string>();
      const at = event?.at ?? 0;
      for (const subset of chosen.subsetsAt(cut)) {
        const isOnly =
          only === undefined ||
          (only.generation === generation && (only.cut ?? cut) === cut && (only.subset ?? subset) === subset);
        const goesOn = cut === goOn && subset === 1;
        if (!isOnly && !goesOn) continue;
        const random = seededRandom(mix(request.seed, generation * 0x100_0000 + cut * 16 + subset + 1000));
        const [landed, noted] = SUBSETS[subset] as (typeof SUBSETS)[number];
        await destination.withLanded(landed, random, (bytes) =>
          metadata.withLanded(noted, random, async (blocks) => {
            const name = `${bytes}/${blocks}`;
            if (seen.has(name) && !goesOn) return;
            seen.add(name);
            report.states++;
            const reopens = goesOn || report.states % REOPEN_EVERY === 0;
            const wrong = await this.#look(destination.image, metadata, blocks, history, at, reopens);
            if (wrong !== undefined) {
              const { what } = wrong;
              violations.push({
                what,
                generation,
                cut,
                subset,
                account: this.#accountOf(log.events, cut, wrong.offset),
              });
            } else if (goesOn) {
              const media = { destination: destination.image.copy(), metadata: metadata.image.copy() };
              this.next = { media, born: this.shown(await opened(media.metadata), media.destination) };
            }
          }),
        );
        if (violations.length > 0) break;
      }
    }
    return violations;
  }

  /** What is wrong with one crash state, a sentence. */
  async #look(
    destination: SparseImage,
    { image }: DiskAtCut,
    name: string,
    history: SectorHistory,
    at: number,
    reopens: boolean,
  ): Promise<{ what: string; offset?: number } | undefined> {
    let verdict = this.#verdicts.get(name);
    if (verdict === undefined) {
      if (this.#verdicts.size > 20) this.#verdicts.clear();
      verdict = await judge(image);
      this.#verdicts.set(name, verdict);
    }
    const { metadata, wrong } = verdict;
    if (metadata === undefined) return { what: wrong ?? "" };
    const { regionSize } = this.#world.geometry;
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
  const { verdict, fatal, warnings } = await checkMetadata(new ImageDevice(image, "metadata"));
  if (verdict !== "clean") {
    const findings = [...fatal, ...warnings].slice(0, 3).map(formatFinding);
    return { wrong: `the metadata is ${verdict}: ${findings.join("; ")}` };
  }
  try {
    return { metadata: await opened(image) };
  } catch (error) {
    return { wrong: `the metadata is clean, and cannot be opened: ${(error as Error).message}` };
  }
}

async function opened(image: SparseImage): Promise<CloneMetadata> {
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
  return event.kind !== "note" || event.answer === true;
}

function shownEvent(event: SimulationEvent): string {
  if (event.kind === "note") return `${event.at} ${event.what}`;
  const { at, disk } = event;
  if (event.kind === "durable") {
    return `${at} ${disk.name} ${event.flush ? "flush" : "FUA"} of ${event.askedAt}: ${event.changes.length} changes`;
  }
  return `${at} ${disk.name} ${event.verb} ${event.firstSector * 512}+${event.data.length}`;
}

/** A seed of its own for each use of one seed (the finalizer of MurmurHash3). */
export function mix(seed: number, use: number): number {
  let mixed = (seed ^ Math.imul(use, 0x9e37_79b1)) >>> 0;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85eb_ca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2_ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}

/** One life of a simulated clone, from being opened to its end: clients, hydration, and what comes after. */
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { ioError } from "../../src/device/io-error.ts";
import { JitteryDevice } from "./jittery-device.ts";
import { LossyLinkDevice } from "./lossy-link-device.ts";
import { seededRandom } from "./power-loss-device.ts";
import { runClient, type Seen } from "./sim-clients.ts";
import { SimulatedDisk, SimulationLog } from "./sim-disk.ts";
import { SectorHistory } from "./sim-history.ts";
import { ImageDevice, type SparseImage } from "./sim-image.ts";
import { type Machine, type MachineDevices, type Mutation, openMachine } from "./sim-machine.ts";
import type { Notebook } from "./sim-notebook.ts";
import { type OfflineMachine, openOffline } from "./sim-offline.ts";
import { checkOrder } from "./sim-order.ts";
import type { Life, SimRequest, World } from "./sim-scenario.ts";
import { VirtualClock } from "./virtual-clock.ts";

/** What a life leaves to be looked at. */
export interface Lived {
  log: SimulationLog;
  disks: { destination: SimulatedDisk; metadata: SimulatedDisk };
  history: SectorHistory;
  /** Sentences. */
  wrong: string[];
  /** The descriptor, where it has one. */
  notebook: Notebook | undefined;
  /** From this moment on every region is hydrated, whatever happens; or Infinity. */
  completeAt: number;
}

/** Most that is waited for the clone to come to an end, ms of virtual time. */
const LONGEST_LIFE_MS = 3_600_000;
const MOST_WRONG = 5;

/** Everything that one life needs. */
export interface LifeRequest {
  world: World;
  life: Life;
  media: World["media"];
  /** What the clone shows at first. */
  born: SparseImage;
  /** Of all that is left to chance while it lives. */
  seed: number;
  mutation?: Mutation | undefined;
  lying?: "destination" | "metadata" | "both" | undefined;
}

/** Opens the clone that is on the media and lives. Never throws for what the clone does. */
export async function liveOnce({ world, life, media, born, seed, mutation, lying }: LifeRequest): Promise<Lived> {
  const clock = new VirtualClock();
  const log = new SimulationLog();
  const random = seededRandom(seed);
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
  const link =
    life.link &&
    new LossyLinkDevice(disks.destination.asServer(), "destination", {
      ...life.link,
      clock,
      random,
      latencyMs: life.habits.destination.latencyMs,
      onBreak: () => log.note("the connection breaks"),
    });
  const history = new SectorHistory(born, () => log.moment());
  const source = new SimulatedSource(world, clock, random, life);
  const devices = {
    ...parts,
    source: source.device,
    destination: link ?? disks.destination,
    metadata: disks.metadata,
    link,
  };
  const heal = (): void => {
    source.heal();
    for (const disk of [disks.destination, disks.metadata])
      disk.habits = { ...disk.habits, failWrite: 0, failFlush: 0 };
    if (link !== undefined) link.options = { ...link.options, chance: 0, patienceMs: Infinity };
  };
  const seen: Seen = { reads: [], wrong: [], failures: [], forgiving: link !== undefined };
  const scene: Scene = { life, history, heal, seen, notebook: undefined, completeAt: Infinity };
  const undo = mutation?.patch?.();
  const over = new AbortController();
  try {
    const lived = (world.kind === "offline" ? hydrateOffline : serve)(devices, scene, mutation);
    const hung = clock.sleep(LONGEST_LIFE_MS, over.signal).then(() => {
      if (!over.signal.aborted) throw new Error(`no end after ${LONGEST_LIFE_MS} ms`);
    });
    await Promise.race([lived, hung]);
  } catch (error) {
    seen.wrong.push((error as Error).stack ?? String(error));
  } finally {
    over.abort();
    undo?.();
    log.close();
  }
  // Where every device does as it should, nothing may fail.
  const isWell = world.kind !== "faulty" && link === undefined && world.unreadable.length === 0;
  const wrong = isWell ? [...seen.wrong, ...seen.failures] : [...seen.wrong];
  for (const read of seen.reads) {
    const answer = history.checkRead(read);
    if (answer !== undefined) wrong.push(`${read.what}, from ${read.begunAt} to ${read.endedAt}: ${answer.what}`);
    if (wrong.length >= MOST_WRONG) break;
  }
  wrong.push(...(await checkOrder(log.events, disks)));
  return { log, disks, history, wrong, notebook: scene.notebook, completeAt: scene.completeAt };
}

interface Scene {
  life: Life;
  history: SectorHistory;
  /** From now on all devices are well. */
  heal: () => void;
  seen: Seen;
  notebook: Notebook | undefined;
  completeAt: number;
}

/** Clients beside hydration. */
async function serve(devices: MachineDevices, scene: Scene, mutation: Mutation | undefined): Promise<void> {
  const { life, history, seen } = scene;
  const machine = await openMachine(devices, life.options, mutation);
  const { hydrator, periodic, governor, device, commits, log } = machine;
  scene.notebook = machine.notebook;
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
  await Promise.all(
    life.clients.map((requests, index) => runClient(machine, history, requests, `client ${index}`, seen)),
  );
  if (life.ending === "complete") {
    scene.heal();
    governor.rate = null;
    hydrator.tune({ threshold: null, batchSize: null });
    hydrator.resume();
    await hydrating;
    if (commits.failure === undefined && end !== "complete") seen.wrong.push(`hydration ended ${end}`);
    if (commits.failure === undefined) await standAlone(machine, scene);
  }
  stop.abort();
  await hydrating;
  await periodic.stop();
  await governor.stop();
  await device.drain();
  if (life.ending !== "abrupt" && commits.failure === undefined) {
    // Who cannot reach the destination is told so, and promised nothing.
    const error = await commits.commit().then(
      () => undefined,
      (reason: Error) => reason,
    );
    log.note(`stopped: ${error?.message ?? "done"}`, { answer: true });
  }
}

/** From completion on everything goes straight to the destination. */
async function standAlone(machine: Machine, scene: Scene): Promise<void> {
  const { device, log } = machine;
  const { history, seen, life } = scene;
  scene.completeAt = log.moment();
  const askedAt = log.moment();
  try {
    await device.flush();
    history.flushed(askedAt);
    log.note("flushed at the end: done", { answer: true });
  } catch (error) {
    seen.failures.push(`the last flush: ${(error as Error).message}`);
  }
  await device.drain();
  if (machine.commits.failure !== undefined) return;
  if (!device.becomeLinear()) seen.wrong.push("a complete clone does not become linear");
  await runClient(machine, history, life.clients[0]?.slice(0, 5) ?? [], "linear", seen);
}

/** Hydration alone, as `clone hydrate` runs it; the first client's requests steer it. */
async function hydrateOffline(devices: MachineDevices, scene: Scene, mutation: Mutation | undefined): Promise<void> {
  const { life, seen } = scene;
  for (let attempt = 1; ; attempt++) {
    const machine = await openOffline(devices, life.options, mutation);
    const { commits, log } = machine;
    const stop = new AbortController();
    const running = machine.run(stop.signal).then(
      ({ end }) => end,
      (error: Error) => error,
    );
    if (attempt === 1) {
      await steer(machine, life.clients[0] ?? []);
      if (life.ending !== "complete") stop.abort();
    }
    machine.pace.paused = false;
    machine.pace.tune({ threshold: null, batchSize: null });
    machine.throttle.bytesPerSecond = null;
    const end = await running;
    scene.notebook ??= machine.notebook;
    log.note(`hydration ended: ${end}`, { answer: true });
    if (end instanceof Error) seen.failures.push(`hydration: ${end.message}`);
    if (end === "complete") {
      scene.completeAt = log.moment();
      log.note("complete: done", { answer: true });
    }
    if (end === "complete" || life.ending !== "complete" || attempt === 3) {
      if (life.ending === "complete" && end !== "complete") seen.wrong.push(`hydration ended ${end}`);
      return;
    }
    // With what is in memory of a failed clone nothing goes on.
    if (commits.failure !== undefined) return;
    scene.heal();
  }
}

async function steer(machine: OfflineMachine, requests: readonly SimRequest[]): Promise<void> {
  const { clock, pace, throttle, commits } = machine;
  for (const request of requests) {
    await clock.sleep(request.pauseMs);
    if (request.kind === "pause") pace.paused = true;
    if (request.kind === "resume") pace.paused = false;
    if (request.kind === "commit") await commits.commit().catch(() => undefined); // which ends the run
    if (request.kind === "tune") {
      pace.tune({ threshold: request.threshold, batchSize: request.batchSize });
      throttle.bytesPerSecond = request.rate;
    }
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

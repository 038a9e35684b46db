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
import { seededRandom as seededDraws } from "./random.ts";
import { shownEvent } from "./sim-disk.ts";
import { type Lived, liveOnce } from "./sim-life.ts";
import { CrashLook, type OnlyState, opened, type Violation } from "./sim-look.ts";
import type { Mutation } from "./sim-machine.ts";
import { drawLife, drawWorld, type RunKind } from "./sim-scenario.ts";
import { mix } from "./sim-seed.ts";

export type { Violation } from "./sim-look.ts";
export type { Mutation } from "./sim-machine.ts";
export type { RunKind } from "./sim-scenario.ts";
export { mix } from "./sim-seed.ts";

/** What is simulated, and how closely it is looked at. */
export interface SimulationRequest {
  /** From 0 to 2^32 - 1; everything follows from it. */
  seed: number;
  /** Default: as the seed says. */
  kind?: RunKind;
  mutation?: Mutation;
  /** Crash states of each generation that are looked at, about. Default 60; short runs are looked at whole. */
  states?: number;
  /** Which disks answer a flush and make nothing durable. */
  lying?: "destination" | "metadata" | "both";
  /** Look at one crash state only. */
  only?: OnlyState;
}

/** What was found. */
export interface SimulationReport {
  seed: number;
  kind: RunKind;
  violations: Violation[];
  generations: number;
  /** Crash states that were looked at: no two of a generation have the same bytes on both disks and the same promises to keep. */
  states: number;
  /** Cut points that any of them is of. */
  cuts: number;
  events: number;
  /** What happened in it, so that nobody takes a run for a proof in which nothing did. */
  tally: { commits: number; failed: number; breaks: number; completed: number; answers: number };
  /** Of everything that happened, in order: the same seed, the same digest. */
  digest: string;
}

/** More of them would show less than other runs do. */
const STATES = 60;

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
    tally: { commits: 0, failed: 0, breaks: 0, completed: 0, answers: 0 },
    digest: "",
  };
  let { media } = world;
  const first = new CrashLook(world, media);
  let born = first.shown(await opened(media.metadata));
  for (let generation = 0; generation < world.generations; generation++) {
    const life = drawLife(seededDraws(mix(seed, 100 + generation)), world, generation);
    const { mutation, lying } = request;
    const lived = await liveOnce({ world, life, media, born, mutation, lying, seed: mix(seed, 200 + generation) });
    const { events } = lived.log;
    report.generations++;
    report.events += events.length;
    for (const event of events) hash.update(shownEvent(event)).update(event.kind === "change" ? event.data : "");
    count(report.tally, lived);
    const look = new CrashLook(world, media);
    const { states = STATES, only } = request;
    report.violations.push(...(await look.at({ lived, generation, seed, states, only, counts: report })));
    if (report.violations.length > 0 || look.next === undefined) break;
    ({ media, born } = look.next);
  }
  report.digest = hash.digest("hex");
  return report;
}

function count(tally: SimulationReport["tally"], { log, completeAt }: Lived): void {
  if (completeAt < Infinity) tally.completed++;
  for (const event of log.events) {
    if (event.kind !== "note") continue;
    if (event.committed !== undefined) tally.commits++;
    else if (event.answer === true) tally.answers++;
    if (event.what.startsWith("failed: ")) tally.failed++;
    if (event.what === "the connection breaks") tally.breaks++;
  }
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

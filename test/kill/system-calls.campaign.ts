// Every command is killed at each call by which it changes anything on a disk: before that call, and so after the one before.
// Nothing half-made may be seen then, and the same command, given again, ends well. strace finds the calls and kills there.
// By default a sample of the points is taken, another one for each seed; `--all-points` takes all of them.
import { afterAll, expect } from "vitest";
import { testWith } from "../support/needs.ts";
import { seededRandom } from "../support/random.ts";
import { scratchDirectory } from "../support/scratch.ts";
import type { KilledCommand } from "./command-surroundings.ts";
import { killCampaign, Tally } from "./kill-campaign.ts";
import { KILLED_COMMANDS } from "./killed-commands.ts";
import { KILLED_REPAIRS } from "./killed-repairs.ts";
import { type CallPoint, findCallPoints, runUntil } from "./system-call-trace.ts";

const campaign = killCampaign("points");
const tally = new Tally();
const { wanted, only } = campaign;
const takesAll = wanted > 0 && campaign.option("all-points") > 0;
/** Where so many are found, that is enough to begin with. */
const MOST_VIOLATIONS = 20;

afterAll(() => campaign.report(tally.figures()));

testWith(
  { programs: ["strace"], machine: wanted === 0 ? "none is asked for" : undefined },
  "whatever call a command is killed at, nothing half-made is left, and the next one ends well",
  async () => {
    const all: Kill[] = [];
    for (const [number, command] of commands()) {
      await using place = await scratchDirectory();
      await command.prepare(place.path);
      for (const [index, point] of (await findCallPoints(command.args, place.path)).entries()) {
        const again = campaign.again(index + 1, `--command ${number}`);
        all.push({ command, point, again });
      }
    }
    const violations: string[] = [];
    for (const { command, point, again } of drawn(all)) {
      await killedAt(command, point).catch((error: Error) => {
        const told = `clone ${command.args.join(" ")}, killed at ${point.call} ${point.nth} (${again})`;
        violations.push(`${told}: ${error.message}`);
      });
      if (violations.length === MOST_VIOLATIONS) break;
    }
    tally.add("violations", violations.length);
    if (violations.length > 0) throw new Error(violations.join("\n"));
  },
);

interface Kill {
  command: KilledCommand;
  point: CallPoint;
  /** The words that do it again, alone. */
  again: string;
}

/** This shard's commands, by their numbers from 1: to find the points of one is to run it. Or the one asked for. */
function commands(): [number: number, command: KilledCommand][] {
  const numbered = [...KILLED_COMMANDS, ...KILLED_REPAIRS].map((each, index): [number, KilledCommand] => [
    index + 1,
    each,
  ]);
  const asked = campaign.option("command");
  if (only === undefined) return numbered.filter(([number]) => (number - 1) % campaign.shards === campaign.shard);
  const found = numbered.filter(([number]) => number === asked);
  if (found.length === 0) throw new RangeError(`--command ${asked}: there are commands 1 to ${numbered.length}`);
  return found;
}

async function killedAt(command: KilledCommand, point: CallPoint): Promise<void> {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const bytes = await command.prepare(cwd);
  const { code, signal, stderr } = await runUntil(point, command.args, cwd);
  // Calls whose number depends on the time may not have been made as often.
  if (signal === null) expect(code, stderr).toBe(0);
  else tally.add("kills at system calls");
  await command.settle(cwd, bytes);
}

/** All of them, or as many as were asked for, drawn by the seed; or the one asked for. */
function drawn<T>(all: readonly T[]): T[] {
  if (only !== undefined) {
    const one = all[only - 1];
    if (one === undefined) throw new RangeError(`--point ${only}: the command has points 1 to ${all.length}`);
    return [one];
  }
  if (takesAll) return [...all];
  const random = seededRandom(campaign.seed);
  const left = [...all];
  const points: T[] = [];
  while (left.length > 0 && points.length < wanted) points.push(...left.splice(random.integer(0, left.length - 1), 1));
  return points;
}

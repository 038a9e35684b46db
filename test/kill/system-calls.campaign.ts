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

const campaign = killCampaign();
const tally = new Tally();
const wanted = campaign.share("points");
const takesAll = campaign.option("all-points") > 0;
/** Where so many are found, that is enough to begin with. */
const MOST_VIOLATIONS = 20;

afterAll(() => campaign.report(tally.figures()));

testWith(
  { programs: ["strace"], machine: wanted === 0 && !takesAll ? "none is asked for" : undefined },
  "whatever call a command is killed at, nothing half-made is left, and the next one ends well",
  async () => {
    const all: { command: KilledCommand; point: CallPoint }[] = [];
    // Each shard has commands of its own: to find the points of one is to run it.
    const commands = [...KILLED_COMMANDS, ...KILLED_REPAIRS].filter(
      (_, index) => index % campaign.shards === campaign.shard,
    );
    for (const command of commands) {
      await using place = await scratchDirectory();
      await command.prepare(place.path);
      for (const point of await findCallPoints(command.args, place.path)) all.push({ command, point });
    }
    const violations: string[] = [];
    for (const { command, point } of drawn(all)) {
      await killedAt(command, point).catch((error: Error) => {
        violations.push(`clone ${command.args.join(" ")}, killed at ${point.call} ${point.nth}: ${error.message}`);
      });
      if (violations.length === MOST_VIOLATIONS) break;
    }
    tally.add("violations", violations.length);
    if (violations.length > 0) throw new Error(violations.join("\n"));
  },
);

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

/** All of them, or as many as were asked for, drawn by the seed. */
function drawn<T>(all: readonly T[]): T[] {
  if (takesAll) return [...all];
  const random = seededRandom(campaign.seed);
  const left = [...all];
  const points: T[] = [];
  while (left.length > 0 && points.length < wanted) points.push(...left.splice(random.integer(0, left.length - 1), 1));
  return points;
}

// Whole clones in simulated machines, whose power is cut wherever it may be (test/support/simulation.ts says how):
//
//     npm run test:sim -- --states 1000000
//
// Runs follow one another, each with a seed of its own, until as many crash states have been looked at as are asked for. What is
// wrong is printed with what shows it again, alone: --replay SEED [--generation N [--cut N --subset N]].
import { expect, test } from "vitest";
import { campaign } from "../support/campaign.ts";
import { mix, shownReport, simulate } from "../support/simulation.ts";
import { Watchdog } from "../support/watchdog.ts";
import { NONE, OPTIONS } from "./options.ts";

const { seed, shard, share, option, report } = campaign(OPTIONS);
/** After so many runs that go wrong the rest would not tell more. */
const MOST_WRONG = 5;

test.runIf(option("replay") === NONE)("No crash of any run loses or invents a sector", async () => {
  const wrong: string[] = [];
  await using watchdog = await Watchdog.start(
    "sim: VIOLATION: a run does not end. Again, alone: npm run test:sim -- --replay %0",
  );
  const sum = { "crash states": 0, "cut points": 0, runs: 0, generations: 0, violations: 0 };
  for (let run = 0; sum["crash states"] < share("states") && wrong.length < MOST_WRONG; run++) {
    watchdog.begins(mix(seed, run));
    const found = await simulate({ seed: mix(seed, run) });
    sum["crash states"] += found.states;
    sum["cut points"] += found.cuts;
    sum.runs++;
    sum.generations += found.generations;
    sum.violations += found.violations.length;
    if (found.violations.length > 0) wrong.push(shownReport(found));
  }
  report(sum);
  expect(wrong.join("\n\n")).toBe("");
});

test.runIf(option("replay") !== NONE && shard === 0)("The run that is replayed is without fault", async () => {
  const given = (name: string): number | undefined => (option(name) === NONE ? undefined : option(name));
  const generation = given("generation");
  const [cut, subset] = [given("cut"), given("subset")];
  const only =
    generation === undefined
      ? {}
      : { only: { generation, ...(cut !== undefined && { cut }), ...(subset !== undefined && { subset }) } };
  const found = await simulate({ seed: option("replay"), ...only });
  report({ "crash states": found.states, "cut points": found.cuts, runs: 1, violations: found.violations.length });
  expect(shownReport(found)).toBe("");
});

// A few short runs of the simulation, for it to be tried whenever anything changes; `npm run test:sim` is the search. And what
// the search is worth: the same seed makes the same run, disks that lie are found out, and so is a missing flush.
import { describe, expect, test } from "vitest";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { type Mutation, mix, type SimulationRequest, shownReport, simulate } from "../support/simulation.ts";

const KINDS = ["short", "long", "faulty", "sparse", "offline", "lossy", "kernel"] as const;

test.for(KINDS)("No crash of a few %s runs loses or invents a sector", async (kind) => {
  const tally = { states: 0, commits: 0, breaks: 0 };
  for (let run = 0; run < 3; run++) {
    const report = await simulate({ seed: mix(20_260, run), kind, states: 60 });
    expect(shownReport(report)).toBe("");
    tally.states += report.states;
    tally.commits += report.tally.commits;
    tally.breaks += report.tally.breaks;
  }
  expect(tally.states).toBeGreaterThan(100);
  expect(tally.commits).toBeGreaterThan(0);
  if (kind === "lossy") expect(tally.breaks).toBeGreaterThan(0);
});

test("The same seed makes the same run, whatever was simulated before, and another seed another", async () => {
  for (const kind of ["faulty", "offline", "lossy"] as const) {
    const first = await simulate({ seed: 7, kind, states: 20 });
    const another = await simulate({ seed: 8, kind, states: 20 });
    expect(await simulate({ seed: 7, kind, states: 20 })).toEqual(first);
    expect(another.digest).not.toBe(first.digest);
  }
});

test("What is wrong is found again, alone, by what is printed with it", async () => {
  const request = { seed: 3, kind: "long", lying: "destination" } as const;
  const [violation] = (await simulate(request)).violations;
  if (violation?.cut === undefined || violation.subset === undefined) throw new Error("nothing was found");
  const { what, generation, cut, subset } = violation;
  const again = await simulate({ ...request, only: { generation, cut, subset } });
  expect(again.violations.map((found) => found.what)).toEqual([what]);
  expect(again.states).toBeLessThan(5);
});

/** The first thing that is wrong in many runs. */
async function firstWrong(request: Omit<SimulationRequest, "seed">): Promise<string | undefined> {
  for (let run = 0; run < 30; run++) {
    const { violations } = await simulate({ ...request, seed: mix(1, run), states: 60 });
    if (violations[0] !== undefined) return violations[0].what;
  }
  return undefined;
}

describe("The simulation finds", () => {
  test("a destination that answers flushes without being durable", async () => {
    expect(await firstWrong({ kind: "long", lying: "destination" })).toMatch(/^bytes \d+ to \d+ begin with/);
  });

  test("a metadata device that answers flushes without being durable", async () => {
    expect(await firstWrong({ kind: "long", lying: "metadata" })).toMatch(/^the metadata is |were committed$/);
  });

  test("an engine that does not flush the destination, in the log and on the disks", async () => {
    class NeverFlushes extends FilterDevice {
      override async flush(): Promise<void> {}
    }
    const mutation: Mutation = { destination: (device) => new NeverFlushes(device) };
    const report = await simulate({ seed: 5, kind: "long", states: 60, mutation });
    expect(report.violations.map(({ what }) => what).join("\n")).toMatch(/whose data no flush has covered/);
  });
});

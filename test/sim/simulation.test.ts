// A few short runs of the simulation, for it to be tried whenever anything changes; `npm run test:sim` is the search. And what
// the search is worth: the same seed makes the same run, disks that lie are found out, and so is a missing flush.
import { describe, expect, test } from "vitest";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { type Mutation, mix, type SimulationRequest, shownReport, simulate } from "../support/simulation.ts";

const KINDS = ["short", "long", "faulty"] as const;

test.for(KINDS)("No crash of a few %s runs loses or invents a sector", async (kind) => {
  for (let run = 0; run < 3; run++) {
    const report = await simulate({ seed: mix(20_260, run), kind, states: 60 });
    expect(shownReport(report)).toBe("");
    expect(report.states).toBeGreaterThan(20);
  }
});

test("The same seed makes the same run, whatever was simulated before, and another seed another", async () => {
  for (const kind of KINDS) {
    const first = await simulate({ seed: 7, kind, states: 20 });
    await simulate({ seed: 8, kind, states: 20 });
    const again = await simulate({ seed: 7, kind, states: 20 });
    expect(again).toEqual(first);
    expect((await simulate({ seed: 9, kind, states: 20 })).digest).not.toBe(first.digest);
  }
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
    expect(await firstWrong({ kind: "long", lying: "metadata" })).toMatch(/^the metadata is |^bytes \d+/);
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

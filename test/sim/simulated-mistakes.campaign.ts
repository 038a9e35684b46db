// The search is as good as what it finds. Each mistake here is one of `mistakes.ts` that corrupts data; it is made in a copy of the
// sources, and the same search as ever, by chance and knowing nothing of it, has to come upon what it does.
import { afterAll, beforeAll, expect, test } from "vitest";
import { campaign } from "../support/campaign.ts";
import { withMutations } from "../support/mutant.ts";
import type { RunKind, SimulationReport, SimulationRequest } from "../support/simulation.ts";
import { MISTAKES } from "./mistakes.ts";
import { NONE, OPTIONS } from "./options.ts";

const { seed, shard, shards, option, report } = campaign(OPTIONS);

/** Runs that it may take; in thirty tries none took more than 38. */
const MOST_RUNS = 400;
/** What is looked for, and in which kind of run where only one has it. */
const FOUND_BY_CHANCE: readonly { mistake: string; kind?: RunKind }[] = [
  { mistake: "Committing before the flush, so that data nobody touched is lost," },
  { mistake: "Committing the bits of the next transaction" },
  { mistake: "Committing whole words of the region map" },
  { mistake: "Writing the superblock before the tree that it points to is durable" },
  { mistake: "Using blocks again that were freed in the same transaction" },
  { mistake: "Changing regions that a discard does not cover" },
  { mistake: "Marking regions by a discard while they are being copied" },
  { mistake: "Skipping zeros where only a hole was, once" },
  { mistake: "Writing what was read behind a write that came meanwhile" },
  { mistake: "Taking the short last region for covered by a write of its end" },
  { mistake: "Copying the short last region at a whole region's length" },
  { mistake: "Dropping a discard of a part of a hydrated region" },
  { mistake: "Running out of metadata space in a commit" },
  { mistake: "Searching for a free block to the end only" },
  { mistake: "Forgetting writes that were answered when a commit fails", kind: "faulty" },
];

interface Search {
  simulate(request: SimulationRequest): Promise<SimulationReport>;
  mix(seed: number, use: number): number;
}

const mine = FOUND_BY_CHANCE.filter((_, index) => option("replay") === NONE && index % shards === shard);

// What is wrong with a clone may leave a promise that nobody looks at any more: a mutant's is no error of this test.
const listeners = process.listeners("unhandledRejection");
beforeAll(() => {
  process.removeAllListeners("unhandledRejection");
  process.on("unhandledRejection", () => {});
});
afterAll(() => {
  process.removeAllListeners("unhandledRejection");
  for (const listener of listeners) process.on("unhandledRejection", listener);
});

test.for(mine)("$mistake is found by chance", async ({ mistake, kind }) => {
  const known = MISTAKES.find((one) => one.mistake === mistake);
  if (known === undefined) throw new Error(`"${mistake}" is no known mistake`);
  const runs = await withMutations(known.without, async (load) => {
    const { simulate, mix } = (await load("test/support/simulation.ts")) as Search;
    for (let run = 1; run <= MOST_RUNS; run++) {
      const { violations } = await simulate({ seed: mix(seed, run), ...(kind && { kind }) });
      if (violations.length > 0) return run;
    }
    return undefined;
  });
  expect(runs, `runs from seed ${seed}`).toBeDefined();
  report({ "mistakes found by chance": 1, "runs to find them": runs ?? 0 });
});

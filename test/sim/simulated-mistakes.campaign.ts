// The search is as good as what it finds. Each mistake here is one of `mistakes.ts` that corrupts data; it is made in a copy of the
// sources, and the same search as ever, by chance and knowing nothing of it, has to come upon what it does.
import { afterAll, beforeAll, expect, test } from "vitest";
import { campaign } from "../support/campaign.ts";
import { withMutations } from "../support/mutant.ts";
import type { RunKind, SimulationReport, SimulationRequest } from "../support/simulation.ts";
import { MISTAKES } from "./mistakes.ts";
import { NONE, OPTIONS } from "./options.ts";

const { seed, shard, shards, option, report } = campaign(OPTIONS);

/** Runs that it may take. */
const MOST_RUNS = 400;
/** What a crash has left, or a client was given, is not what it may be. */
const WRONG_BYTES = /bytes? \d+ (to \d+ begin with|is) /;
/** So it is, or the order of things was not kept, which the log tells before any disk does. */
const TOO_EARLY = /bytes? \d+ (to \d+ begin with|is) |whose data no flush has covered/;
const BROKEN = /the metadata is not clean|cannot be opened|the superblock/;
const FULL = /No block is free/;

/**
 * What is looked for, what of it must be found, and in which kind of run where only one has it. A discard during a copy is not
 * here: nearly always an assertion ends the mistaken program before it corrupts anything.
 */
const FOUND_BY_CHANCE: readonly { mistake: string; finds: RegExp; kind?: RunKind }[] = [
  { mistake: "Committing before the flush, so that data nobody touched is lost,", finds: TOO_EARLY },
  { mistake: "Going on where the destination could not flush", finds: TOO_EARLY, kind: "faulty" },
  { mistake: "Writing the descriptor over the only one there is", finds: /the descriptor is of turn/ },
  { mistake: "Committing the bits of the next transaction", finds: TOO_EARLY },
  { mistake: "Committing whole words of the region map", finds: TOO_EARLY },
  { mistake: "Writing the superblock before the tree that it points to is durable", finds: BROKEN },
  { mistake: "Using blocks again that were freed in the same transaction", finds: BROKEN },
  { mistake: "Changing regions that a discard does not cover", finds: WRONG_BYTES },
  { mistake: "Skipping zeros where only a hole was, once", finds: WRONG_BYTES },
  { mistake: "Writing what was read behind a write that came meanwhile", finds: WRONG_BYTES },
  { mistake: "Taking the short last region for covered by a write of its end", finds: WRONG_BYTES },
  { mistake: "Copying the short last region at a whole region's length", finds: /outside|beyond|RangeError/ },
  { mistake: "Dropping a discard of a part of a hydrated region", finds: WRONG_BYTES },
  { mistake: "Running out of metadata space in a commit", finds: FULL },
  { mistake: "Searching for a free block to the end only", finds: FULL },
  {
    mistake: "Forgetting writes that were answered when a commit fails",
    finds: WRONG_BYTES,
    kind: "faulty",
  },
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

test.for(mine)("$mistake is found by chance", async ({ mistake, finds, kind }) => {
  const known = MISTAKES.find((one) => one.mistake === mistake);
  if (known === undefined) throw new Error(`"${mistake}" is no known mistake`);
  const others: string[] = [];
  const runs = await withMutations(known.without, async (load) => {
    const { simulate, mix } = (await load("test/support/simulation.ts")) as Search;
    for (let run = 1; run <= MOST_RUNS; run++) {
      const { violations } = await simulate({ seed: mix(seed, run), ...(kind && { kind }) });
      others.push(...violations.map(({ what }) => what.split("\n", 1)[0] as string));
      // A hang or a check of its own may tell of it too, but is not what it is about.
      if (violations.some(({ what }) => finds.test(what))) return run;
    }
    return undefined;
  });
  const instead = [...new Set(others)].slice(0, 5).join("; ");
  expect(runs, `found in ${MOST_RUNS} runs from seed ${seed}; instead: ${instead || "nothing"}`).toBeDefined();
  report({ "mistakes found by chance": 1, "runs to find them": runs ?? 0 });
});

// Each row is a mistake that dm-clone made, or that is easily made, as a scene in which it shows. The program as it is plays the
// scene without fault; then its defence is taken out, in a copy of the sources, and the same scene must find what goes wrong.
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { campaign } from "../support/campaign.ts";
import { type Mutation, withMutations } from "../support/mutant.ts";
import { MISTAKES } from "./mistakes.ts";
import { NONE, OPTIONS } from "./options.ts";

const { shard, shards, option, report } = campaign(OPTIONS);
/** One run of the simulation is looked at, and nothing else. */
const isReplay = option("replay") !== NONE;

/** What a scene of the program, or of a mutated one, finds. */
async function play(
  load: (path: string) => Promise<unknown>,
  [file, name]: readonly [string, string],
): Promise<string[]> {
  const scenes = (await load(`test/sim/scenarios/${file}.ts`)) as Record<string, () => Promise<string[]>>;
  const scene = scenes[name];
  if (scene === undefined) throw new Error(`no scene ${name} in ${file}.ts`);
  return await scene();
}

const here = (path: string): Promise<unknown> => import(/* @vite-ignore */ join(import.meta.dirname, "../..", path));

describe.for(MISTAKES.filter((_, index) => !isReplay && index % shards === shard))(
  "$mistake",
  ({ scene, without, finds }) => {
    test("does not happen", async () => {
      expect(await play(here, scene)).toEqual([]);
    });

    test("is found where its defence is taken out", async () => {
      const mutations: readonly Mutation[] = without;
      const found = await withMutations(mutations, (load) => play(load, scene));
      expect(found.join("\n")).toMatch(finds);
      report({ "mutations caught": 1 });
    });
  },
);

// Messages that were once read as they should not be are read again; and every target is given a few new ones, by a seed that
// is printed where it fails (CLONE_TEST_SEED takes it back). The campaign, fuzz.campaign.ts, gives them a hundred thousand.
import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { testSeed } from "../support/random.ts";
import { fuzz, replay } from "./fuzz.ts";
import type { FuzzTarget } from "./target.ts";
import { TARGETS } from "./targets.ts";

const FOLDER = new URL("regressions/", import.meta.url);
/** Messages for each target here. */
const FEW = 25;

const kept = readdirSync(FOLDER).filter((file) => file.endsWith(".bin"));

test.each(kept)("%s is read as it should be", async (file) => {
  const target = TARGETS.find(({ name }) => file.startsWith(`${name}-`)) as FuzzTarget;
  await replay(target, readFileSync(new URL(file, FOLDER)));
});

describe("A few messages", () => {
  const seed = testSeed();
  const messages = Array.from({ length: FEW }, (_, index) => index + 1);
  test.each(TARGETS.map((target, index) => ({ target, number: index + 1, name: target.name })))(
    "of target $number, $name, are read as they should be",
    async ({ target, number }) => {
      const { accepted, refused, violations } = await fuzz(target, { seed, number, messages });
      expect(violations.join("\n\n")).toBe("");
      expect(accepted + refused).toBe(FEW);
    },
  );
});

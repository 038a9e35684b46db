// Images of the campaign in test/damage on which something went wrong once, each judged again as it is there.
import { test } from "vitest";
import { ImageJudge } from "../damage/image-judge.ts";

const once: readonly [number, string][] = [
  [2286757965, "believed an index block of an older commit, after the root of the tree was lost"],
  [508581748, "believed a bitmap of another clone, of a device with more blocks, against the tree"],
];

test.for(once)("image %d is judged well, of which a repair once %s", async ([number]) => {
  await new ImageJudge().judge(number, () => {});
});

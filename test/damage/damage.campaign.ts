// Images are damaged in every way that disks, cables and other programs have, and shown to all that reads metadata; judge.ts says
// what must hold. Each image follows from one number, which is printed with a violation: that image alone is judged by
//
//     npm run test:damage -- --images 1 --shards 1 --seed NUMBER
import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, test } from "vitest";
import { campaign } from "../support/campaign.ts";
import { Watchdog } from "../support/watchdog.ts";
import { BLOWS } from "./blows.ts";
import { blowOf, ImageJudge } from "./image-judge.ts";
import { OUTCOMES } from "./judge.ts";
import { DECISIONS, REPAIR_OUTCOMES } from "./judge-repair.ts";

const { seed, option, share, report } = campaign({ images: 100_000 });

/** MiB by which what is in use may be more than when a tenth was done. A leak of 4 KiB an image is more in 100,000. */
const GROWTH = 96;

/** Images of which some lead to each decision, and enough to see memory grow. */
const ENOUGH = 500;

if (option("images") === 0) throw new RangeError("--images takes at least 1: none prove nothing");

const judge = new ImageJudge();

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

/** MiB in use, garbage not counted. What buffers held is swept beside the program: the second collection waits for that of the first. */
async function inUse(): Promise<number> {
  collectGarbage();
  await sleep(100);
  collectGarbage();
  const { heapUsed, external } = process.memoryUsage();
  return (heapUsed + external) / 2 ** 20;
}

test(`damaged images from seed ${seed} are recognised, and never believed`, async () => {
  await using watchdog = await Watchdog.start(
    "damage: VIOLATION: an image does not end. Again, alone: npm run test:damage -- --images 1 --shards 1 --seed %0",
  );
  const words = ["damaged images", ...OUTCOMES, ...REPAIR_OUTCOMES, ...Object.keys(DECISIONS), ...BLOWS];
  const figures: Record<string, number> = Object.fromEntries(words.map((word) => [word, 0]));
  const count = (what: string) => {
    figures[what] = (figures[what] ?? 0) + 1;
  };
  const violations: string[] = [];
  const images = share("images");
  let early = 0;
  const idle = () => ["repaired exactly", ...Object.keys(DECISIONS)].filter((what) => figures[what] === 0);
  // On until each decision was met: the rarest is come to by some in a thousand, which are of few families.
  const isDone = (image: number) => image >= images && (images < ENOUGH || idle().length === 0 || image >= 5 * images);
  for (let image = 0; !isDone(image); image++) {
    const number = (seed + image) % 2 ** 32;
    watchdog.begins(number);
    count("damaged images");
    count(blowOf(number));
    try {
      await judge.judge(number, count);
    } catch (error) {
      violations.push(`${number}: ${error}\n${error instanceof Error ? error.stack : ""}`);
      if (violations.length >= 20) break;
    }
    if (image === Math.floor(images / 10)) early = await inUse();
  }
  watchdog.rests();
  const { "damaged images": total, ...parts } = figures;
  report({ "damaged images": total ?? 0, violations: violations.length, ...parts });
  judge.forget();
  expect(violations.map((violation) => `reproduce with --images 1 --shards 1 --seed ${violation}`)).toEqual([]);
  if (images < ENOUGH) return;
  expect(idle(), "what no image has brought a repair to").toEqual([]);
  expect((await inUse()) - early, "MiB more in use than after a tenth of the images").toBeLessThan(GROWTH);
});

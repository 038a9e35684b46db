// An outside witness: qemu logs every write and flush of the disk that a clone lives on, destination and metadata in one. The
// log alone, judged after the end (test/support/log-judge.ts), has to prove that nothing is vouched for before it is
// durable, and that the power might have failed anywhere. In turn all flushes are in it, only the destination's, and only the
// metadata's. Of each life some doctored logs are judged too, which have to be found to lie.
import { expect } from "vitest";
import { campaign } from "../support/campaign.ts";
import { countLies } from "../support/doctored-log.ts";
import { judgeLog } from "../support/log-judge.ts";
import { liveOnLoggedDisk } from "../support/logged-clone.ts";
import type { Flushes } from "../support/logged-disk.ts";
import { noNbdLoop } from "../support/nbd-loop.ts";
import { testWith } from "../support/needs.ts";
import { seededRandom } from "../support/random.ts";
import { OPTIONS } from "./options.ts";

const { seed, share, option, report } = campaign(OPTIONS);
const FLUSHES: Flushes[] = ["destination", "metadata", "both"];
const DOCTORED = 2;

testWith(
  { programs: ["qemu-storage-daemon", "nbdkit", "nbdfuse"], machine: noNbdLoop },
  "the log of a clone's disk shows no state that lies",
  async () => {
    let found = 0;
    for (let life = 0; life < share("lives"); life++) {
      const random = seededRandom(seed + life);
      const flushes = FLUSHES[(seed + life) % FLUSHES.length] as Flushes;
      const told = await liveOnLoggedDisk({ flushes, rounds: option("rounds") }, random);
      const { wrong, states, superblocks, vouched } = await judgeLog(told, random);
      report({
        "logged lives": 1,
        "logged requests": told.requests.length,
        superblocks,
        "regions vouched for": vouched,
        "states of the log": states,
      });
      expect(wrong, `--lives 1 --shards 1 --seed ${seed + life}: flushes of ${flushes}`).toEqual([]);
      const doctoring = flushes === "destination" ? "lost write" : "late flush";
      if (flushes !== "both") {
        const lies = await countLies(told, doctoring, { logs: DOCTORED, seed: seed + life });
        report({ "doctored logs": DOCTORED, "of them found to lie": lies });
        found += lies;
      }
    }
    expect(found > 0 || share("lives") < FLUSHES.length, "the judge finds no lie").toBe(true);
  },
);

// qemu logs every write and flush of a disk with a clone on it, and the log alone has to prove that no state of it lies
// (test/support/log-judge.ts). That the judge can find a lie is shown by logs that are doctored afterwards. Here it is one
// short life, in whose log no flush but the destination's is; `npm run test:faults` has many, of all kinds.
import { expect } from "vitest";
import { countLies } from "../support/doctored-log.ts";
import { judgeLog } from "../support/log-judge.ts";
import { liveOnLoggedDisk } from "../support/logged-clone.ts";
import { noNbdLoop } from "../support/nbd-loop.ts";
import { testWith } from "../support/needs.ts";
import { seededRandom, testSeed } from "../support/random.ts";

/** Doctored logs of a kind that are looked at: that none of so many lies is no chance. */
const MOST_LOGS = 40;

testWith(
  { programs: ["qemu-storage-daemon", "nbdkit", "nbdfuse"], machine: noNbdLoop },
  "the destination is flushed before a superblock vouches for it, by the log that somebody else has kept",
  async () => {
    const seed = testSeed();
    const random = seededRandom(seed);
    const told = await liveOnLoggedDisk({ flushes: "destination", rounds: 3 }, random);
    const { wrong, vouched } = await judgeLog(told, random);
    expect(wrong, `CLONE_TEST_SEED=${seed}`).toEqual([]);
    expect(vouched).toBeGreaterThan(0);
    for (const doctoring of ["late flush", "lost write"] as const) {
      // Not every doctored log lies: one is looked at after the other, until one does.
      let lies = 0;
      for (let look = 0; look < MOST_LOGS && lies === 0; look++) {
        lies = await countLies(told, doctoring, { logs: 1, seed: seed + look });
      }
      expect(lies, `${doctoring}, CLONE_TEST_SEED=${seed}`).toBe(1);
    }
  },
  120_000, // a machine with much else to do
);

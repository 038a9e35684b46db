// Clones live under kill -9, generation after generation: created, hydrated, served to clients that write, finalized, copied,
// deleted, each killed at random moments, begun again, until they are whole or given up. After each kill the clone is looked at
// as it lies on the disk (killed-clone.ts), and whoever comes next finds it so, too. At the end the destination alone holds what the model
// says, and nothing else of the clone is left.
import { existsSync } from "node:fs";
import { readdir, readFile, rm } from "node:fs/promises";
import { afterAll, expect, test } from "vitest";
import type { SeededRandom } from "../support/random.ts";
import { plainFiles } from "./disks.ts";
import { drawKind, generation, isUnderLoad, killAfter } from "./generations.ts";
import { eachLife, killCampaign, Tally } from "./kill-campaign.ts";
import { KilledClone } from "./killed-clone.ts";

const MIB = 1024 * 1024;
const UNDER_LOAD = "kills under load";
const OTHERS = "other kills";
const campaign = killCampaign("kills");
const tally = new Tally();
const { wanted, only } = campaign;
/** What is asked for are kills under load; those before and after come on top. A life that is run alone is run to its end. */
const enough = (): boolean => only === undefined && tally.get(UNDER_LOAD) >= wanted;

afterAll(() => campaign.report(tally.figures()));

test.skipIf(wanted === 0)("clones keep what was flushed, whichever of their processes is killed, and whenever", () =>
  eachLife(campaign, tally, enough, async (random) => {
    const sizes = [random.integer(1, 12) * MIB, 5 * MIB + 512 * random.integer(1, 500), 34 * MIB];
    const size = random.pick([...sizes.slice(0, 2), ...sizes]);
    await using clone = await KilledClone.begin({ random, tally, disks: plainFiles, size });
    tally.add("lives");
    if (random.oneIn(8)) await copied(clone, random);
    else {
      await created(clone, random);
      await served(clone, random);
      if (random.oneIn(8)) await deleted(clone, random);
      else await ended(clone, random);
    }
  }),
);

/** Counts a kill, and looks at what it has left. */
async function after(clone: KilledClone, what: string, killed: boolean): Promise<void> {
  if (killed) {
    tally.add(isUnderLoad(what) ? UNDER_LOAD : OTHERS);
    tally.add(`of ${what}`);
  }
  await clone.look(`after ${what} was ${killed ? "killed" : "done"}`);
}

async function created(clone: KilledClone, random: SeededRandom): Promise<void> {
  for (let left = random.pick([0, 0, 0, 1, 2]); left > 0 && clone.state === "new" && !enough(); left--) {
    await after(clone, "a creation", await killAfter(clone.start(clone.createArgs()), random.integer(60, 260)));
  }
  if (clone.state === "new") await clone.ok(clone.createArgs());
  await clone.look("after the creation");
  expect(clone.state).toBe("unfinished");
}

async function served(clone: KilledClone, random: SeededRandom): Promise<void> {
  for (let left = random.integer(6, 16); left > 0 && !enough(); left--) {
    if (clone.state === "gone" || clone.state === "finalized") return;
    const kind = drawKind(clone, random);
    tally.add("generations");
    await after(clone, kind, await generation(clone, kind, random));
  }
}

/** Hydrated and finalized, with kills on the way. */
async function ended(clone: KilledClone, random: SeededRandom): Promise<void> {
  if (clone.state === "unfinished") await clone.ok(["hydrate", "copy.img", "--progress", "none"]);
  const finalize = ["finalize", "copy.img", "--progress", "none"];
  for (let left = random.integer(0, 2); left > 0 && clone.state !== "gone" && !enough(); left--) {
    tally.add("generations");
    await after(clone, "a finalization", await killAfter(clone.start(finalize), random.integer(60, 320)));
  }
  if (clone.state !== "gone") await clone.ok(finalize);
  await clone.look("at the end");
  await standsAlone(clone);
}

/** `clone copy`, again and again until it is done. */
async function copied(clone: KilledClone, random: SeededRandom): Promise<void> {
  const copy = ["copy", "disk.img", "copy.img", "--progress", "none", "--region-size", `${clone.regionSize}`];
  for (let left = random.integer(2, 7); left > 0 && clone.state !== "gone" && !enough(); left--) {
    const rate = random.pick(["8M", "max"]);
    tally.add("generations");
    await after(clone, "a copy", await killAfter(clone.start([...copy, "--rate", rate]), random.integer(60, 500)));
  }
  if (clone.state !== "gone") await clone.ok(copy);
  await clone.look("at the end");
  await standsAlone(clone);
}

/** Given up: the metadata goes, sooner or later, and the destination stays as it was. */
async function deleted(clone: KilledClone, random: SeededRandom): Promise<void> {
  const before = await readFile(clone.path("copy.img"));
  for (let left = random.integer(1, 3); left > 0 && existsSync(clone.path("copy.img.clone")) && !enough(); left--) {
    tally.add("generations");
    const killed = await killAfter(clone.start(["delete", "copy.img", "--yes"]), random.integer(60, 220));
    if (killed) {
      tally.add(OTHERS);
      tally.add("of a deletion");
    }
    if (existsSync(clone.path("copy.img.clone"))) await clone.ok(["check", "copy.img.clone"]);
  }
  if (existsSync(clone.path("copy.img.clone"))) await clone.ok(["delete", "copy.img", "--yes"]);
  expect(Buffer.compare(before, await readFile(clone.path("copy.img"))), "the destination").toBe(0);
  await standsAlone(clone);
}

/** Nothing of ours is there any more, but sockets and pid files of servers that were killed, and nobody has followed. */
async function standsAlone(clone: KilledClone): Promise<void> {
  expect(existsSync(clone.path("copy.img.clone"))).toBe(false);
  for (const name of await readdir(clone.cwd)) {
    if (name.endsWith(".sock") || /^serve\d+\.pid$/.test(name)) await rm(clone.path(name));
  }
  expect((await readdir(clone.cwd)).sort()).toEqual(["copy.img", "disk.img", "tmp"]);
}

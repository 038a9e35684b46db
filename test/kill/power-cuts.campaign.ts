// The power of the real program fails: destination and metadata are disks with a volatile cache (nbdkit's, which loses what was
// not flushed when it is killed), and the program and both disks go at once. After each cut the clone is looked at as it lies in
// the files behind the caches (killed-clone.ts). That the caches lose something is shown by a destination that lies about
// flushes: there the same looking finds what is missing.
import { truncate, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect } from "vitest";
import { randomFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { type SeededRandom, seededRandom } from "../support/random.ts";
import type { StartedClone } from "../support/run-clone.ts";
import { startServe } from "../support/serve.ts";
import { CACHED_DISK_PROGRAMS, cachedDisks, noCachedDisks } from "./disks.ts";
import { eachLife, killCampaign, Tally } from "./kill-campaign.ts";
import { KilledClone } from "./killed-clone.ts";

const MIB = 1024 * 1024;
const QUIET = ["--progress", "none"] as const;
const campaign = killCampaign("cuts");
const tally = new Tally();
const { wanted } = campaign;
const needs = { programs: CACHED_DISK_PROGRAMS, machine: wanted === 0 ? "none is asked for" : noCachedDisks };

afterAll(() => campaign.report(tally.figures()));

testWith(needs, "clones keep what was flushed when the disks lose what was not", () => {
  // One that is run alone is run to its end.
  const enough = (): boolean => campaign.only === undefined && tally.get("power cuts") >= wanted;
  return eachLife(campaign, tally, enough, (random) => live(random, { flushes: "truly", tally }));
});

testWith(needs, "of a clone on a disk that lies about flushes something is lost, and that is found", async () => {
  // One cut may lose nothing that was promised, five lives do not.
  for (let life = 1; life <= 5; life++) {
    const random = seededRandom(campaign.seed + life);
    const found = await live(random, { flushes: "falsely", tally: new Tally() }).catch((error: Error) => error);
    if (found !== undefined) return expect(found.message).toMatch(/^sector \d+ holds /);
  }
  expect.fail("nothing was missed");
});

/** The life of one clone, in which the power fails a few times. */
async function live(
  random: SeededRandom,
  { flushes, tally }: { flushes: "truly" | "falsely"; tally: Tally },
): Promise<void> {
  const size = random.integer(2, 10) * MIB - 512 * random.integer(0, 200);
  await using clone = await KilledClone.begin({ random, tally, disks: (cwd) => cachedDisks(cwd, flushes), size });
  const { disks } = clone;
  await made(clone, random);
  for (let left = random.integer(2, 6); left > 0 && clone.state === "unfinished"; left--) {
    await disks.on();
    const isCut = random.oneIn(3) ? await hydrated(clone, random) : await served(clone, random);
    await disks.off();
    if (isCut) tally.add("power cuts");
    await clone.look(isCut ? "after a power cut" : "after a stop in order");
  }
  await disks.on();
  await clone.ok(["hydrate", disks.metadata, ...QUIET]);
  await clone.ok(["finalize", disks.metadata, "--keep-metadata", ...QUIET]);
  await disks.off();
  expect(await clone.look("at the end")).toBe("finalized");
}

/** A clone to a disk of zeros, or of somebody's earlier data. */
async function made(clone: KilledClone, random: SeededRandom): Promise<void> {
  const { disks } = clone;
  if (random.oneIn(2)) await randomFile(disks.destinationFile, clone.size);
  else {
    await writeFile(disks.destinationFile, "");
    await truncate(disks.destinationFile, clone.size);
  }
  await disks.on();
  const words = ["--force", "--metadata", disks.metadataFile, "--region-size", `${clone.regionSize}`];
  await clone.ok(["create", "disk.img", disks.destination, ...words]);
  await disks.off();
  expect(await clone.look("after the creation")).toBe("unfinished");
}

/** Resolves to whether the power was cut in it. */
async function hydrated(clone: KilledClone, random: SeededRandom): Promise<boolean> {
  const rate = random.pick(["2M", "8M", "max"]);
  const running = clone.start(["hydrate", clone.disks.metadata, "--rate", rate, ...QUIET]);
  await Promise.race([running.done, sleep(random.integer(150, 1500))]);
  const isCut = await cutPower(clone, running);
  if (isCut) clone.model.crashed();
  return isCut;
}

async function served(clone: KilledClone, random: SeededRandom): Promise<boolean> {
  const { clients, model, disks } = clone;
  const args = [...random.pick([["--no-hydrate"], ["--rate", "4M"], ["--rate", "max"]])];
  const request = { clone: disks.metadata, cwd: clone.cwd, env: clone.env, socket: "nbd.sock", args };
  await using server = await startServe(request);
  if (random.oneIn(2)) await clients.settle(server.socket);
  await clients.connect(server.socket);
  const running = clients.run(Number.MAX_SAFE_INTEGER);
  // Longer than a commit takes to come by itself, some of the time.
  await Promise.race([running, sleep(random.integer(1, random.pick([200, 1500])))]);
  clients.expectEnd();
  clients.note(0, model.sectors, "the power fails");
  await running;
  const isCut = !random.oneIn(5);
  if (isCut) await cutPower(clone, server.process);
  else expect((await server.stop()).code).toBe(0);
  await clients.disconnect();
  if (isCut) model.crashed();
  else model.stopped();
  return isCut;
}

/** Stops the program wherever it is, takes the disks away, and then the program. Resolves to whether it was still at work. */
async function cutPower(clone: KilledClone, { child, done }: StartedClone): Promise<boolean> {
  child.kill("SIGSTOP");
  await clone.disks.cut();
  child.kill("SIGKILL");
  const { code, signal, stderr } = await done;
  if (signal === null) expect(code, stderr).toBe(0);
  return signal !== null;
}

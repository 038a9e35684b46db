// Servers and hydrations are stopped (SIGSTOP) in the middle of their work, as by a debugger or a machine that sleeps, and go on
// (SIGCONT) after a while: `--stop-seconds`. Meanwhile nobody else gets the clone, nobody who asks for it waits for ever, and
// clients only wait. Afterwards clients go on on the connections that they have, commits go on, and a kill -9 then shows that what
// was flushed is there. A hydration comes to its end, and the copy is what it must be.
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import { type SeededRandom, seededRandom } from "../support/random.ts";
import { cloneOk, eventually, expectFailure, oneJson, clone as runClone } from "../support/run-clone.ts";
import { startServe } from "../support/serve.ts";
import { plainFiles } from "./disks.ts";
import { killCampaign, Tally } from "./kill-campaign.ts";
import { KilledClone } from "./killed-clone.ts";

const MIB = 1024 * 1024;
const campaign = killCampaign("stops");
const tally = new Tally();
const { wanted } = campaign;
/** Servers have odd numbers, hydrations even ones: the first of each shard are not all the same. */
const first = campaign.only ?? 1 + (campaign.shard % 2);
const seconds = campaign.option("stop-seconds");

afterAll(() => campaign.report(tally.figures()));

test.skipIf(wanted === 0)(`clones that are stopped for ${seconds} seconds go on, and have lost nothing`, async () => {
  for (let stop = first; stop < first + wanted; stop++) {
    try {
      await stopped(stop);
    } catch (error) {
      tally.add("violations");
      const again = campaign.again(stop, `--stop-seconds ${seconds}`);
      throw new Error(`stop ${stop} (${again}): ${(error as Error).message}`, { cause: error });
    }
  }
});

async function stopped(stop: number): Promise<void> {
  const random = seededRandom(campaign.seed + stop * 0x9e37);
  await using clone = await KilledClone.begin({ random, tally, disks: plainFiles, size: 24 * MIB });
  await clone.ok(clone.createArgs());
  if (stop % 2 === 1) await stoppedServer(clone, random);
  else await stoppedHydration(clone);
  await clone.ok(["hydrate", "copy.img", "--progress", "none"]);
  await clone.ok(["finalize", "copy.img", "--progress", "none"]);
  expect(await clone.look("at the end")).toBe("gone");
}

async function stoppedServer(clone: KilledClone, random: SeededRandom): Promise<void> {
  const request = { clone: "copy.img", cwd: clone.cwd, env: clone.env, socket: "nbd.sock", args: ["--rate", "1M"] };
  await using server = await startServe(request);
  const { clients } = clone;
  await clients.connect(server.socket);
  const running = clients.run(Number.MAX_SAFE_INTEGER);
  await Promise.race([running, sleep(random.integer(200, 1500))]);
  process.kill(server.pid, "SIGSTOP");
  await whileStopped(clone, server.pid);
  const before = await committed(clone);
  process.kill(server.pid, "SIGCONT");
  tally.add("stops of a server");
  await eventually("commits go on", () => isFurther(clone, before));
  await Promise.race([running, sleep(random.integer(200, 1500))]);
  clients.expectEnd();
  await server.kill9();
  await running;
  await clients.disconnect();
  clone.model.crashed();
  await clone.look("after it was stopped, went on, and was killed");
}

async function stoppedHydration(clone: KilledClone): Promise<void> {
  const running = clone.start(["hydrate", "copy.img", "--rate", "2M", "--progress", "none"]);
  await eventually("it has committed something", () => isFurther(clone, 0));
  process.kill(running.pid, "SIGSTOP");
  await whileStopped(clone, running.pid);
  const before = await committed(clone);
  process.kill(running.pid, "SIGCONT");
  tally.add("stops of a hydration");
  await eventually("commits go on", () => isFurther(clone, before));
  await clone.ok(["tune", "copy.img", "--rate", "max"]);
  const { code, stderr } = await running.done;
  expect(code, stderr).toBe(0);
  expect(await clone.look("after it was stopped and went on")).toBe("hydrated");
}

/** Asks for the clone in every way; what is refused says by whom. */
async function whileStopped(clone: KilledClone, pid: number): Promise<void> {
  const over = sleep(seconds * 1000);
  const options = { cwd: clone.cwd, env: clone.env };
  for (const words of [
    ["check", "copy.img.clone"],
    ["finalize", "copy.img"],
    ["delete", "copy.img", "--yes"],
    ["hydrate", "copy.img"],
  ]) {
    expectFailure(await runClone(words, options), 4, new RegExp(`process ${pid}\\b`));
  }
  const status = oneJson<{ lockedBy: number }>(await cloneOk(["status", "copy.img", "--json"], options));
  expect(status.lockedBy).toBe(pid);
  await over;
}

/** Whether more is committed than so many regions, or all there is: clients may have written the last of it before the stop. */
async function isFurther(clone: KilledClone, before: number): Promise<boolean> {
  const { committedRegions, regions } = await status(clone);
  return committedRegions > before || committedRegions === regions;
}

async function committed(clone: KilledClone): Promise<number> {
  return (await status(clone)).committedRegions;
}

async function status(clone: KilledClone): Promise<{ committedRegions: number; regions: number }> {
  return oneJson(await cloneOk(["status", "copy.img", "--json"], { cwd: clone.cwd, env: clone.env }));
}

// A machine that dies in the middle of it: several clones are hydrated and written to by the kernel at once, and its guest is
// killed without a warning. What it leaves must be clean to `check`; every write that was flushed is there, every other one
// is there or not, sector by sector; and this program goes on with it to the end.
//
//     npm run test:kernel -- --kills 20
//     npm run test:kernel -- --kill N        kill N alone, with the seed that was printed: the same clones, the same requests
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { seededRandom } from "../support/random.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { KernelGuest } from "./kernel-guest.ts";
import { durableCounts, KernelSession } from "./kernel-session.ts";
import { kernelCampaign } from "./options.ts";
import { RelayedClone } from "./relayed-clone.ts";
import { disjointWrites } from "./requests.ts";
import { SHAPES } from "./round-trips.ts";

const { seed, option, report, isAll, only, again } = kernelCampaign();
const numbers = Array.from({ length: isAll ? Math.max(10, option("kills")) : option("kills") }, (_, kill) => kill);
const kills = only === undefined ? numbers : [only.kill].filter((kill) => kill !== undefined);

test.runIf(kills.length === 0)("no guest is killed where none is asked for", () => {});

test.for(kills)("kill %i", async (kill) => {
  const random = seededRandom(seed + 1000 + kill);
  await using place = await scratchDirectory();
  await mkdir(join(place.path, "guest"));
  await using guest = await KernelGuest.boot(join(place.path, "guest"));
  report({ "guest boots": 1 });

  const began = [];
  for (const [index, shape] of Object.values(SHAPES).entries()) {
    const cwd = join(place.path, `${index}`);
    await mkdir(cwd);
    const clone = await RelayedClone.prepare(cwd, shape, random);
    // One half was begun by this program.
    const isOurs = random.oneIn(2);
    await (isOurs ? clone.create() : clone.makeForKernel());
    const session = await KernelSession.attach(guest, clone);
    await session.open("1 no_hydration 4 hydration_threshold 4 hydration_batch_size 2");
    const writes = Math.min(60, Math.floor(shape.sectors / 16));
    began.push({ clone, session, requests: disjointWrites(random, clone.expected.geometry, writes) });
  }
  const job = guest.start(
    `${began.map(({ session, requests }) => `(${session.script(requests)}\n) &`).join("\n")}\nwait`,
  );
  const flushes = began.flatMap(({ requests }) => requests.filter(({ kind }) => kind === "flush")).length;
  const enough = random.integer(1, Math.floor(flushes * 0.9));
  await Promise.all([
    expect(job.done).rejects.toThrow("died"),
    job.until(() => job.lines.length >= enough).then(() => guest.kill9()),
  ]);

  const durable = durableCounts(job);
  for (const [index, { clone, session, requests }] of began.entries()) {
    try {
      clone.takeCrash(requests, durable.get(session.name) ?? 0);
      await clone.inspect();
      expect(clone.expected.settle(await clone.read())).toBeUndefined();
      await clone.hydrate();
      await clone.finalize();
    } catch (error) {
      report({ violations: 1 });
      throw new Error(`kill ${kill}, clone ${index} (${again("kill", kill)})`, { cause: error });
    } finally {
      report({ "round trips": 1, states: 1, violations: 0 });
    }
  }
});

// Processes race to the same clone, two to ten of them at once: to create, hydrate, serve, finalize, copy, repair or delete it, or any of
// that. One at most has it at a time: who comes second is refused in one line that names a racer, or, where the first one has done
// and gone, told so. Whoever wins: what it did is whole, and nothing else is there.
import { existsSync } from "node:fs";
import { open, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { holds, randomFile } from "../support/files.ts";
import { type SeededRandom, seededRandom } from "../support/random.ts";
import { type CloneRun, cloneOk, eventually, oneJson, type StartedClone, startClone } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { killCampaign, Tally } from "./kill-campaign.ts";

const KIB = 1024;
const QUIET = ["--progress", "none"] as const;
const campaign = killCampaign("races");
const tally = new Tally();
const { wanted, only = 1 } = campaign;

afterAll(() => campaign.report(tally.figures()));

/** A race in a directory with a source of these bytes. */
type Race = (cwd: string, bytes: Buffer, random: SeededRandom) => Promise<void>;
const RACES: readonly Race[] = [
  creations,
  creationsOfOneMetadata,
  owners,
  servers,
  finalizations,
  copies,
  deletions,
  repairs,
  anything,
];

test.skipIf(wanted === 0)("of processes that race to a clone one wins, and nothing is harmed", async () => {
  for (let number = only; number < only + wanted; number++) {
    const random = seededRandom(campaign.seed + number * 0x9e37);
    const race = random.pick(RACES);
    try {
      await using place = await scratchDirectory();
      const bytes = await randomFile(join(place.path, "disk.img"), random.integer(1, 8) * 256 * KIB + 100);
      await race(place.path, bytes, random);
    } catch (error) {
      tally.add("violations");
      const told = `${race.name}, race ${number} (${campaign.again(number)})`;
      throw new Error(`${told}: ${(error as Error).message}`, { cause: error });
    }
    tally.add("races");
  }
});

/** Starts two to ten processes at once. */
function start(cwd: string, random: SeededRandom, words: (number: number) => readonly string[]): StartedClone[] {
  const count = random.pick([2, 2, 3, 5, 10]);
  tally.add("racers", count);
  return Array.from({ length: count }, (_, number) => startClone(words(number), { cwd, longestMs: 120_000 }));
}

/** Holds each that did not win against the contract. `gone`: how it may end where the winner had ended before it came. */
function expectRefusals(runs: readonly CloneRun[], racers: readonly StartedClone[], gone: readonly number[]): void {
  for (const { code, signal, stderr } of runs) {
    expect(signal, stderr).toBeNull();
    if (code === 0) continue;
    expect([4, ...gone], stderr).toContain(code);
    const lines = stderr
      .trimEnd()
      .split("\n")
      .filter((line) => !line.startsWith("clone: Warning: "));
    expect(lines.length, stderr).toBeLessThanOrEqual(2); // one, and a hint
    expect(lines[0]).toMatch(/^clone: Cannot \S.*: \S/);
    if (code !== 4) continue;
    const [, pid] = /process (\d+)/.exec(stderr) ?? [];
    // Who has ended meanwhile cannot be named any more.
    if (pid === undefined) expect(stderr).toMatch(/in use by another process|somebody else has just/);
    else
      expect(
        racers.map((racer) => racer.pid),
        stderr,
      ).toContain(Number(pid));
  }
}

async function expectNames(cwd: string, ...names: string[]): Promise<void> {
  expect((await readdir(cwd)).sort()).toEqual([...names].sort());
}

async function expectWhole(cwd: string, bytes: Buffer, name = "copy.img"): Promise<void> {
  expect(oneJson(await cloneOk(["check", `${name}.clone`, "--json"], { cwd }))).toEqual({
    ok: true,
    fatal: [],
    warnings: [],
  });
  // What a server was tuned to by a hydration that followed it holds for the next one, too.
  await cloneOk(["hydrate", name, "--rate", "max", ...QUIET], { cwd });
  expect(await holds(join(cwd, name), bytes), "the copy").toBe(true);
}

const winners = (runs: readonly CloneRun[]): number => runs.filter(({ code }) => code === 0).length;

async function creations(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  const racers = start(cwd, random, () => ["create", "disk.img", "copy.img"]);
  const runs = await Promise.all(racers.map(({ done }) => done));
  expect(winners(runs)).toBe(1);
  expectRefusals(runs, racers, [2]);
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone");
  await expectWhole(cwd, bytes);
}

/** Other destinations, and one place for the metadata: what the losers made is gone. */
async function creationsOfOneMetadata(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  const racers = start(cwd, random, (number) => ["create", "disk.img", `copy${number}.img`, "--metadata", "one.clone"]);
  const runs = await Promise.all(racers.map(({ done }) => done));
  expect(winners(runs)).toBe(1);
  expectRefusals(runs, racers, [2]);
  const winner = runs.findIndex(({ code }) => code === 0);
  await expectNames(cwd, "disk.img", `copy${winner}.img`, "one.clone");
  await cloneOk(["hydrate", "one.clone", ...QUIET], { cwd });
  expect(await holds(join(cwd, `copy${winner}.img`), bytes)).toBe(true);
}

/** Hydrations and servers: who has it keeps it, hydrations follow a server that has, all others are refused. */
async function owners(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const racers = start(cwd, random, (number) =>
    random.oneIn(2)
      ? ["serve", "copy.img", "--socket", `nbd${number}.sock`, "--rate", "1"]
      : ["hydrate", "copy.img", "--rate", "1", ...QUIET],
  );
  await settleOwners(cwd, racers, 143);
  await expectWhole(cwd, bytes);
}

/** Servers that want the same socket, too. */
async function servers(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const racers = start(cwd, random, () => ["serve", "copy.img", "--socket", "nbd.sock", "--rate", "1"]);
  await settleOwners(cwd, racers, 0);
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone");
  await expectWhole(cwd, bytes);
}

/** Waits until one has the clone and all others are refused, or follow; ends them, and holds their ends against the contract. */
async function settleOwners(cwd: string, racers: readonly StartedClone[], endsWith: number): Promise<void> {
  const runs = racers.map(() => undefined as CloneRun | undefined);
  for (const [index, { done }] of racers.entries()) {
    void done.then((run) => {
      runs[index] = run;
    });
  }
  const left = (): number => runs.filter((run) => run === undefined).length;
  type Status = { lockedBy: number | null; server: { pid: number } | null };
  let status: Status = { lockedBy: null, server: null };
  await eventually("one has it and the others are told", async () => {
    status = oneJson<Status>(await cloneOk(["status", "copy.img", "--json"], { cwd }));
    const isOurs = racers.some(({ pid }, index) => pid === status.lockedBy && runs[index] === undefined);
    // Followers of a server stay: then there is no telling whether somebody is still on the way.
    return isOurs && (left() === 1 || status.server !== null);
  });
  for (const { child } of racers) child.kill("SIGTERM");
  const ended = await Promise.all(racers.map(({ done }) => done));
  for (const [index, run] of ended.entries()) {
    const isOwner = racers[index]?.pid === status.lockedBy;
    if (isOwner) expect([0, endsWith], run.stderr).toContain(run.code);
    // Told to end before it listened, or while it followed; its server may have ended first.
    else if (run.code === 1) expect(run.stderr).toContain(`its server, process ${status.lockedBy}, is gone`);
    else if (run.signal === null) expect([0, 4, 143], run.stderr).toContain(run.code);
  }
  expectRefusals(
    ended.filter(({ code }) => code === 4),
    racers,
    [],
  );
}

async function hydrated(cwd: string): Promise<void> {
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img", ...QUIET], { cwd });
}

async function finalizations(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  await hydrated(cwd);
  const racers = start(cwd, random, () => ["finalize", "copy.img", ...QUIET]);
  const runs = await Promise.all(racers.map(({ done }) => done));
  expect(winners(runs)).toBe(1);
  expectRefusals(runs, racers, [1, 3]);
  await expectNames(cwd, "disk.img", "copy.img");
  expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
}

async function copies(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  const racers = start(cwd, random, () => ["copy", "disk.img", "copy.img", ...QUIET]);
  const runs = await Promise.all(racers.map(({ done }) => done));
  expect(winners(runs)).toBe(1);
  expectRefusals(runs, racers, [1, 2]);
  await expectNames(cwd, "disk.img", "copy.img");
  expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
}

async function deletions(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  await hydrated(cwd);
  const racers = start(cwd, random, () => ["delete", "copy.img", "--yes"]);
  const runs = await Promise.all(racers.map(({ done }) => done));
  expect(winners(runs)).toBe(1);
  expectRefusals(runs, racers, [1, 3]);
  await expectNames(cwd, "disk.img", "copy.img");
  expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
}

/** Repairs in place: one does it, and keeps what stood there; whoever comes later finds nothing wrong. */
async function repairs(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  await hydrated(cwd);
  const metadata = join(cwd, "copy.img.clone");
  const file = await open(metadata, "r+");
  await file.write(Buffer.alloc(4096), 0, 4096, 0); // the superblock is lost; what is behind it tells what it was
  await file.close();
  const before = await readFile(metadata);
  const racers = start(cwd, random, () => ["repair", "copy.img.clone", "--in-place"]);
  const runs = await Promise.all(racers.map(({ done }) => done));
  expect(winners(runs)).toBeGreaterThan(0);
  expectRefusals(runs, racers, [1, 2]);
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone", "copy.img.clone.backup");
  expect(Buffer.compare(await readFile(`${metadata}.backup`), before), "the backup").toBe(0);
  await expectWhole(cwd, bytes);
}

/** Everything at once: whatever becomes of the clone, no byte of the copy is another than the source's. */
async function anything(cwd: string, bytes: Buffer, random: SeededRandom): Promise<void> {
  await hydrated(cwd);
  const racers = start(cwd, random, (number) =>
    random.pick([
      ["hydrate", "copy.img", ...QUIET],
      ["serve", "copy.img", "--socket", `nbd${number}.sock`, "--exit-when-hydrated"],
      ["finalize", "copy.img", ...QUIET],
      ["delete", "copy.img", "--yes"],
      ["check", "copy.img.clone"],
      ["verify", "copy.img", ...QUIET],
      ["create", "disk.img", "copy.img", "--force"],
      ["copy", "disk.img", "copy.img", ...QUIET],
    ]),
  );
  const runs = await Promise.all(racers.map(({ done }) => done));
  expectRefusals(runs, racers, [1, 2, 3]);
  const names = (await readdir(cwd)).filter((name) => !["disk.img", "copy.img", "copy.img.clone"].includes(name));
  expect(names).toEqual([]);
  const copy = await readFile(join(cwd, "copy.img"));
  expect(Buffer.compare(copy, bytes), "the copy").toBe(0);
  if (existsSync(join(cwd, "copy.img.clone"))) await expectWhole(cwd, bytes);
}

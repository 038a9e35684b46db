// Several clients do 10,000 random things to clones that hydrate, are tuned, stopped, killed and served again; every byte they
// read is held against a plain disk in memory. After a kill what was flushed must be there, and the rest be old or new.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { DiskModel } from "../support/disk-model.ts";
import { testWith } from "../support/needs.ts";
import { type SeededRandom, seededRandom, testSeed } from "../support/random.ts";
import { RandomClients } from "../support/random-clients.ts";
import { cloneOk } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";
import { SECTOR, stampSectors, ZEROS } from "../support/stamped-sectors.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
/** Stamps of what is there before any client writes. */
const SOURCE = 1;
const EARLIER_LIFE = 2;
const FIRST_WRITE = 16;
const CLONES = 6;
const { CLONE_TEST_OPERATIONS = "10000" } = process.env;
const OPERATIONS = Number.parseInt(CLONE_TEST_OPERATIONS, 10);

testWith(
  { programs: [] },
  `clients that do ${OPERATIONS} random things to clones that are killed find nothing that a disk would not show`,
  async () => {
    const seed = testSeed();
    const random = seededRandom(seed);
    try {
      for (let clone = 0; clone < CLONES; clone++) await oneClone(random, Math.ceil(OPERATIONS / CLONES));
    } catch (error) {
      throw new Error(`CLONE_TEST_SEED=${seed}: ${(error as Error).message}`, { cause: error });
    }
  },
  120_000 + OPERATIONS * 20,
);

/** The life of one clone, from create to finalize. */
async function oneClone(random: SeededRandom, operations: number): Promise<void> {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const regionSize = random.pick([4 * KIB, 64 * KIB, 64 * KIB, 256 * KIB]);
  // The last region is a short one, mostly.
  const sectors = (random.pick([4, 16, 24]) * MIB) / SECTOR + random.pick([0, 8, 72, 129]);
  const content = await makeSource(join(cwd, "disk.img"), sectors, random);
  // What a reused destination held must never be seen.
  const reused = random.oneIn(2);
  if (reused) {
    await writeFile(join(cwd, "copy.img"), stampSectors(Buffer.alloc(sectors * SECTOR), 0, EARLIER_LIFE));
  }
  const created = ["create", "disk.img", "copy.img", "--region-size", String(regionSize)];
  await cloneOk([...created, ...(reused ? ["--force"] : [])], { cwd });

  const model = new DiskModel(content);
  const clients = new RandomClients(model, random, FIRST_WRITE);
  const lives = random.integer(2, 4);
  for (let life = 0; life < lives; life++)
    await oneServer(cwd, { random, model, clients, operations: operations / lives, isFirst: life === 0 });
  await cloneOk(["hydrate", "copy.img", "--progress", "none"], { cwd });
  await cloneOk(["finalize", "copy.img"], { cwd });
  clients.hold(model.settle(await readFile(join(cwd, "copy.img"))), "on the destination at the end");
}

interface Life {
  random: SeededRandom;
  model: DiskModel;
  clients: RandomClients;
  operations: number;
  isFirst: boolean;
}

/** The life of one server of the clone, which ends by SIGTERM or SIGKILL, with requests in flight or without. */
async function oneServer(cwd: string, { random, model, clients, operations, isFirst }: Life): Promise<void> {
  const rate = random.pick(["512K", "2M", "8M", "max"]);
  const args = ["--hydrate-on-read", random.pick(["auto", "on", "off", "off"]), "--rate", rate];
  if (random.oneIn(3)) args.push("--no-hydrate");
  if (random.oneIn(4)) args.push("--no-discard-passdown");
  await using server = await startServe({ clone: "copy.img", cwd, args });
  clients.note(0, model.sectors, `served with ${args.join(" ")}`);
  if (!isFirst) await clients.settle(server.socket);
  await clients.connect(server.socket);
  const [before, after] = [Math.ceil(operations / 3), Math.ceil((operations * 2) / 3)];
  const changed = random.pick([["--pause"], ["--resume"], ["--rate", "2M"], ["--rate", "max"], ["--threshold", "3"]]);
  await clients.run(before);
  // The clients go on meanwhile.
  const tuned = server.tune(...changed);
  await clients.run(after);
  await tuned;

  const [killed, inOrder] = [random.oneIn(2), random.oneIn(2)];
  clients.note(0, model.sectors, `${killed ? "killed" : "stopped"}${inOrder ? " at rest" : ""}`);
  if (inOrder) await clients.disconnect();
  else clients.expectEnd();
  if (killed) await server.kill9();
  else await stopServe(server);
  if (!inOrder) await clients.disconnect();
  if (killed) model.crashed();
  else model.stopped();
  if (inOrder) expect(server.process.output().stderr).not.toMatch(/failed|error/i);
}

/** A source with data and holes; resolves to the stamp of each sector. */
async function makeSource(path: string, sectors: number, random: SeededRandom): Promise<number[]> {
  const bytes = Buffer.alloc(sectors * SECTOR);
  const content: number[] = new Array(sectors).fill(ZEROS);
  for (let start = 0; start < sectors; ) {
    const end = Math.min(sectors, start + random.pick([8, 100, 1024, 4096]));
    if (!random.oneIn(3)) {
      stampSectors(bytes.subarray(start * SECTOR, end * SECTOR), start, SOURCE);
      content.fill(SOURCE, start, end);
    }
    start = end;
  }
  await writeFile(path, bytes);
  return content;
}

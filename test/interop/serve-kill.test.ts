// A server is killed again and again while clients write and the clone hydrates as fast as it can. Whatever a client was told
// is flushed is there afterwards, and what was not flushed is old or new; at the end the destination alone says the same. Here it
// is a few times, and with qemu-io and fio; hundreds of times, and at other moments, in the campaign (test/kill).
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect } from "vitest";
import { DiskModel } from "../support/disk-model.ts";
import { randomFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { type SeededRandom, seededRandom, testSeed } from "../support/random.ts";
import { RandomClients } from "../support/random-clients.ts";
import { cloneOk } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { type Server, startServe } from "../support/serve.ts";
import { SECTOR, stampSectors } from "../support/stamped-sectors.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const { CLONE_TEST_KILLS = "3" } = process.env;
const KILLS = Number.parseInt(CLONE_TEST_KILLS, 10);
const KILLS_OF_ONE = 3;

describe("a server that is killed at any moment", () => {
  const name = `keeps what three clients have flushed, ${KILLS} times`;
  testWith(
    { programs: [] },
    name,
    async () => {
      const seed = testSeed();
      const random = seededRandom(seed);
      try {
        // What is hydrated once stays so: only a young clone has something to lose.
        for (let kills = 0; kills < KILLS; kills += KILLS_OF_ONE) await killAgainAndAgain(random);
      } catch (error) {
        throw new Error(`CLONE_TEST_SEED=${seed}: ${(error as Error).message}`, { cause: error });
      }
    },
    60_000 + KILLS * 10_000,
  );

  testWith(
    { programs: ["qemu-io", "fio"] },
    "keeps what qemu-io has flushed while fio writes beside it",
    async () => {
      const seed = testSeed();
      const random = seededRandom(seed);
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "disk.img"), 32 * MIB);
      await cloneOk(["create", "disk.img", "copy.img"], { cwd });
      // The first half is qemu-io's: blocks of 4 KiB of one byte, and what each must hold.
      const blocks = new Map<number, number>();
      for (let round = 0; round < 2; round++) {
        await using server = await startServe({ clone: "copy.img", cwd, args: rateOf(random) });
        const wanted = [...blocks].flatMap(([block, byte]) => ["-c", `read -P ${byte} ${block * 4 * KIB} 4096`]);
        if (wanted.length > 0) {
          const said = await run("qemu-io", "-f", "raw", "-r", ...wanted, server.uri);
          expect(said, `round ${round}, seed ${seed}`).not.toMatch(/verification failed|error/i);
        }
        await writeUntilKilled(server, random, blocks);
      }
      await cloneOk(["hydrate", "copy.img", "--progress", "none"], { cwd });
      await cloneOk(["finalize", "copy.img"], { cwd });
      const copy = await readFile(join(cwd, "copy.img"));
      for (const [block, byte] of blocks) bytes.fill(byte, block * 4 * KIB, (block + 1) * 4 * KIB);
      const half = bytes.length / 2;
      expect(Buffer.compare(copy.subarray(0, half), bytes.subarray(0, half)), `seed ${seed}`).toBe(0);
    },
    120_000,
  );
});

/** The life of one clone, whose servers are all killed. */
async function killAgainAndAgain(random: SeededRandom): Promise<void> {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const sectors = (32 * MIB) / SECTOR;
  await writeFile(join(cwd, "disk.img"), stampSectors(Buffer.alloc(sectors * SECTOR), 0, 1));
  await cloneOk(["create", "disk.img", "copy.img", "--region-size", random.pick(["4K", "16K", "64K"])], { cwd });
  const model = new DiskModel(new Array(sectors).fill(1));
  const clients = new RandomClients(model, random, 2);
  for (let kill = 0; kill < KILLS_OF_ONE; kill++) {
    const args = random.pick([["--no-hydrate"], ["--rate", "4M"], ["--rate", "max"]]);
    await using server = await startServe({ clone: "copy.img", cwd, args: [...args, "--hydrate-on-read", "off"] });
    if (kill > 0) await clients.settle(server.socket);
    await clients.connect(server.socket);
    const running = clients.run(Number.MAX_SAFE_INTEGER);
    await Promise.race([running, sleep(random.integer(1, 500))]);
    clients.expectEnd();
    clients.note(0, sectors, `killed, served with ${args.join(" ")}`);
    await server.kill9();
    await running;
    await clients.disconnect();
    model.crashed();
    await cloneOk(["check", "copy.img.clone"], { cwd });
  }
  await cloneOk(["hydrate", "copy.img", "--progress", "none"], { cwd });
  await cloneOk(["finalize", "copy.img"], { cwd });
  clients.hold(model.settle(await readFile(join(cwd, "copy.img"))), "on the destination at the end");
}

function rateOf(random: SeededRandom): string[] {
  return ["--rate", random.pick(["2M", "16M", "max"]), "--hydrate-on-read", random.pick(["on", "off"])];
}

/**
 * Writes blocks with qemu-io, flushes, and kills the server some time after the flush is answered. fio writes to the other
 * half meanwhile, and fails in the end.
 */
async function writeUntilKilled(server: Server, random: SeededRandom, blocks: Map<number, number>): Promise<void> {
  const fio = spawn(
    "fio",
    [
      ...[
        "--name=load",
        "--thread", // a job that is a process would outlive the kill
        "--ioengine=nbd",
        `--uri=${server.uri}`,
        "--rw=randwrite",
        "--bsrange=4k-128k",
        "--iodepth=16",
      ],
      ...["--offset=16m", "--size=16m", "--time_based", "--runtime=60", "--fsync=50", "--output=/dev/null"],
    ],
    { stdio: "ignore" },
  );
  const fioEnded = once(fio, "exit");
  const qemuIo = spawn("qemu-io", ["-f", "raw", "-t", "none", server.uri], { stdio: ["pipe", "pipe", "inherit"] });
  const qemuIoEnded = once(qemuIo, "exit");
  const prompts = promptsOf(qemuIo.stdout);
  await prompts.next();
  // It takes one line at a time.
  const command = async (line: string) => {
    qemuIo.stdin.write(`${line}\n`);
    const { value: said } = await prompts.next();
    expect(said, line).not.toMatch(/failed|error/i);
  };
  const commands: string[] = [];
  for (let write = 0; write < 60; write++) {
    const block = random.integer(0, 4095);
    const byte = random.integer(1, 255);
    blocks.set(block, byte);
    commands.push(`write -P ${byte} ${block * 4 * KIB} 4096`);
  }
  for (const line of commands) await command(line);
  await command("flush");
  // It may be killed in the middle of a write that changes nothing.
  const [last = ""] = commands.slice(-1);
  if (random.oneIn(2)) qemuIo.stdin.write(`${last}\n`);
  else await sleep(random.integer(0, 100));
  await server.kill9();
  qemuIo.kill("SIGKILL");
  fio.kill("SIGKILL");
  await Promise.all([qemuIoEnded, fioEnded]);
}

/** What a program has said each time that it prompts for a command. */
async function* promptsOf(output: Readable): AsyncGenerator<string, void> {
  let said = "";
  for await (const text of output.setEncoding("utf8")) {
    said += text;
    if (!said.endsWith("qemu-io> ")) continue;
    yield said;
    said = "";
  }
}

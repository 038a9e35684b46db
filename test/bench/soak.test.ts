// A server under load for a long time: an hour, or as many seconds as CLONE_SOAK_SECONDS says. What it must not do is grow.
// Clients come and go, read, write, zero and discard with requests of all sizes, over several connections at once.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "vitest";
import { randomFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { cloneOk } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const { CLONE_TEST_SOAK: asked, CLONE_SOAK_SECONDS } = process.env;
const MIB = 2 ** 20;
const SIZE = 512 * MIB;
const soakMs = 1000 * Number(CLONE_SOAK_SECONDS ?? 3600);
/** The heap and its pools have found their size by then. */
const warmUpMs = Math.min(soakMs / 3, 120_000);
/** What a run may be above the largest of the warm-up: V8 collects when it likes. */
const SLACK = 24 * MIB;
/** "How good" of the server: resident under load. */
const MOST = 200 * MIB;

/** Then the clients come anew. */
const JOB_SECONDS = 10;

/** fio jobs that run at the same time, each over a connection of its own, for some seconds. */
const JOBS = [
  ["--rw=randrw", "--bssplit=4k/70:64k/25:1m/5", "--iodepth=16"],
  ["--rw=randrw", "--bssplit=512/10:4k/60:256k/30", "--iodepth=8", "--fsync=64"],
  ["--rw=randtrim", "--bs=64k", "--iodepth=4", "--rate_iops=200"],
  ["--rw=rw", "--bs=4m", "--iodepth=4", "--rate=200m"],
];

testWith(
  { programs: ["fio"], machine: asked === "1" ? undefined : "only with CLONE_TEST_SOAK=1" },
  `clone serve does not grow under ${soakMs / 1000} seconds of load`,
  async () => {
    await using scratch = await scratchDirectory(existsSync("/dev/shm") ? "/dev/shm" : tmpdir());
    const [source, clone] = [join(scratch.path, "source.img"), join(scratch.path, "disk.img")];
    await randomFile(source, SIZE);
    await cloneOk(["create", source, clone]);
    const args = ["--hydrate-on-read", "on", "--rate", "2M"];
    await using server = await startServe({ clone, cwd: scratch.path, args, longestMs: soakMs + 120_000 });
    const idle = residentOf(server.pid);

    const samples: { at: number; resident: number }[] = [];
    const started = performance.now();
    const sampling = setInterval(() => {
      samples.push({ at: performance.now() - started, resident: residentOf(server.pid) });
    }, 500);
    try {
      while (performance.now() - started < soakMs) {
        await Promise.all(JOBS.map((job) => fio([`--uri=${server.uri}`, ...job])));
      }
    } finally {
      clearInterval(sampling);
    }
    const most = (among: typeof samples) => Math.max(...among.map(({ resident }) => resident));
    const early = most(samples.filter(({ at }) => at <= warmUpMs));
    const late = most(samples.filter(({ at }) => at > warmUpMs));
    const figures = { idle, early, late, afterwards: residentOf(server.pid) };
    for (const [name, bytes] of Object.entries(figures)) console.log(`${name}: ${Math.round(bytes / MIB)} MiB`);
    expect(late).toBeLessThanOrEqual(early + SLACK);
    expect(Math.max(early, late)).toBeLessThanOrEqual(MOST);

    expect((await server.status()).state).not.toBe("failed");
    await stopServe(server);
  },
  soakMs + 180_000,
);

/** Bytes; 0 once it has ended, which whoever waits for it reports. */
function residentOf(pid: number): number {
  try {
    return 1024 * Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
  } catch (error) {
    if (["ENOENT", "ESRCH"].includes((error as NodeJS.ErrnoException).code ?? "")) return 0;
    throw error;
  }
}

/** Runs a job of some seconds to its end, and rejects with what it said where a request failed. */
async function fio(job: readonly string[]): Promise<void> {
  const args = ["--name=soak", "--ioengine=nbd", `--size=${SIZE}`, "--time_based", `--runtime=${JOB_SECONDS}`, ...job];
  const child = spawn("fio", args, { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output = (output + text).slice(-4000);
    });
  }
  const code = await new Promise<number | null>((resolve, reject) => child.on("error", reject).on("close", resolve));
  expect(code, `fio ${args.join(" ")}\n${output}`).toBe(0);
}

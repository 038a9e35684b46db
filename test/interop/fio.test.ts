// fio writes and verifies through several connections while the clone hydrates: every block it reads back has the checksum
// it was written with, and what it never wrote to is the source's.
import { join } from "node:path";
import { describe, expect } from "vitest";
import { randomFile, readRange } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { testSeed } from "../support/random.ts";
import { cloneOk } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const MIB = 1024 * 1024;
const SIZE = 60 * MIB;
const JOBS = 4;
/** Each job has its own part of the disk; the last part is nobody's. */
const PART = SIZE / (JOBS + 1);

interface FioReport {
  jobs: { jobname: string; error: number; read: { io_bytes: number }; write: { io_bytes: number } }[];
}

/** Runs fio's nbd engine on every part but the last: one connection a job. */
async function fio(uri: string, ...options: (readonly string[])[]): Promise<FioReport> {
  const told = await run(
    "fio",
    "--output-format=json",
    "--ioengine=nbd",
    `--uri=${uri}`,
    "--thread",
    `--numjobs=${JOBS}`,
    `--size=${PART}`,
    `--offset_increment=${PART}`,
    "--group_reporting=0",
    "--name=clone",
    "--verify=crc32c",
    "--verify_state_save=0",
    "--verify_fatal=1",
    ...options.flat(),
  );
  const report: FioReport = JSON.parse(told.slice(told.indexOf("{")));
  expect(report.jobs).toHaveLength(JOBS);
  for (const job of report.jobs) expect(job.error, told).toBe(0);
  return report;
}

describe("fio", () => {
  const programs = ["fio"] as const;
  const BLOCKS = { "4K blocks": ["--bs=4k", "--iodepth=16"], "blocks of 512 bytes to 256K": ["--bsrange=512-256k"] };

  for (const [what, size] of Object.entries(BLOCKS)) {
    const name = `verifies ${what} that it reads and writes over ${JOBS} connections while the clone hydrates`;
    testWith({ programs }, name, async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const seed = testSeed();
      const source = await randomFile(join(cwd, "disk.img"), SIZE);
      await cloneOk(["create", "disk.img", "copy.img"], { cwd });
      {
        await using server = await startServe({ clone: "copy.img", cwd, args: ["--rate", "12M"] });
        // It reads what it wrote a little later, and all of it in the end.
        const report = await fio(
          server.uri,
          ["--rw=randrw", "--io_size=8m", "--verify_backlog=64", "--fsync=64", `--randseed=${seed}`, "--iodepth=8"],
          size,
        );
        for (const job of report.jobs) expect(job.write.io_bytes, `seed ${seed}`).toBeGreaterThan(MIB);
        await server.hydrated();
        await stopServe(server);
      }
      await cloneOk(["finalize", "copy.img"], { cwd });
      const untouched = await readRange(join(cwd, "copy.img"), JOBS * PART, PART);
      expect(Buffer.compare(untouched, source.subarray(JOBS * PART, SIZE))).toBe(0);
    });
  }

  testWith(
    { programs },
    "verifies after a restart what it wrote before, and then while a reader hydrates",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const seed = testSeed();
      await randomFile(join(cwd, "disk.img"), SIZE);
      await cloneOk(["create", "disk.img", "copy.img"], { cwd });
      const writing = ["--rw=randwrite", "--bs=8k", "--iodepth=16", `--randseed=${seed}`, "--io_size=6m"];
      {
        await using server = await startServe({ clone: "copy.img", cwd, args: ["--no-hydrate"] });
        await fio(server.uri, ["--do_verify=0", "--end_fsync=1"], writing);
        await stopServe(server);
      }
      const options = ["--rate", "12M", "--hydrate-on-read", "on"];
      await using server = await startServe({ clone: "copy.img", cwd, args: options });
      const report = await fio(server.uri, ["--verify_only=1"], writing);
      for (const job of report.jobs) expect(job.read.io_bytes, `seed ${seed}`).toBeGreaterThan(4 * MIB);
      await stopServe(server);
    },
  );
});

// Ctrl-C, SIGTERM and SIGKILL at any time: what is committed stays, and the same command goes on.
//
// One test interrupts the hydration of one image by SIGINT and by SIGKILL in turn, spread over its length. After each, `clone
// check` is clean and every region that `clone dump` calls hydrated holds the source's bytes on the destination, read from
// the file itself. A fast run takes 64 MiB and four interruptions; CLONE_TEST_KILL_SIZE (as 2G) makes the image larger, and
// it twenty. The image is an ext4 file system with files in it where mkfs.ext4 is installed. Kills at random moments by the
// hundred, and at each system call, are the campaign's (test/kill).
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { mkdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { parseSize } from "../../src/base/units.ts";
import { holds, randomFile, snapshot } from "../support/files.ts";
import { cloneOk, eventually, oneJson, type StartedClone, startClone } from "../support/run-clone.ts";
import { hasProgram, run, scratchDirectory } from "../support/scratch.ts";

const MIB = 1024 * 1024;
const { CLONE_TEST_KILL_SIZE: killSize = "64M" } = process.env;
const ROUNDS = process.env.CLONE_TEST_KILL_SIZE === undefined ? 4 : 20;

async function committedRegions(cwd: string): Promise<number> {
  return oneJson<{ committedRegions: number }>(await cloneOk(["status", "copy.img", "--json"], { cwd }))
    .committedRegions;
}

/** A throttled hydration of 16 MiB that has copied something already. */
async function throttledHydration(cwd: string): Promise<{ running: StartedClone; bytes: Buffer }> {
  const bytes = await randomFile(join(cwd, "disk.img"), 16 * MIB);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const running = startClone(["hydrate", "copy.img", "--rate", "4M", "--progress", "json"], { cwd });
  await eventually("it has copied something", () => /"moved":[1-9]/.test(running.output().stderr));
  return { running, bytes };
}

describe.each([
  ["SIGINT", 130],
  ["SIGTERM", 143],
] as const)("%s during a hydration", (signal, code) => {
  test(`stops it, commits, says how to go on, and exits ${code}; the same command ends it`, async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const { running, bytes } = await throttledHydration(cwd);
    running.child.kill(signal);
    const run = await running.done;
    expect(run).toMatchObject({ code, signal: null });
    expect(run.stderr).toMatch(/clone hydrate copy\.img.* goes on/);
    const stopped = /(\d+) of 256 regions hydrated/.exec(run.stdout);
    expect(stopped, run.stdout).not.toBeNull();
    expect(await committedRegions(cwd)).toBe(Number(stopped?.[1])); // all that it had copied is committed
    expect(Number(stopped?.[1])).toBeGreaterThan(0);
    await cloneOk(["check", "copy.img.clone"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  });

  test("that waits for its rate ends it at once", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    // At one byte per second the next region would take most of a day.
    const running = startClone(["hydrate", "copy.img", "--rate", "1", "--progress", "json"], { cwd });
    await eventually("it has begun", () => running.output().stderr.includes('"done"'));
    running.child.kill(signal);
    expect(await running.done).toMatchObject({ code, signal: null });
    await cloneOk(["check", "copy.img.clone"], { cwd });
  });
});

test("SIGINT during a copy exits 130, says how to go on, and keeps what there is", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const bytes = await randomFile(join(cwd, "disk.img"), 16 * MIB);
  const running = startClone(["copy", "disk.img", "copy.img", "--rate", "4M", "--progress", "json"], { cwd });
  await eventually("it has copied something", () => /"moved":[1-9]/.test(running.output().stderr));
  running.child.kill("SIGINT");
  const stopped = await running.done;
  expect(stopped.code).toBe(130);
  expect(stopped.stderr).toMatch(/clone (copy|hydrate) .*goes on/);
  expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "copy.img.clone", "disk.img"]);
  await cloneOk(["copy", "disk.img", "copy.img"], { cwd });
  expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "disk.img"]);
});

test("SIGINT during a verify exits 130 and changes nothing", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await writeFile(join(cwd, "disk.img"), "x");
  await truncate(join(cwd, "disk.img"), 64 * 1024 * MIB);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img"], { cwd });
  const metadata = await readFile(join(cwd, "copy.img.clone"));
  const running = startClone(["verify", "copy.img", "--progress", "json"], { cwd });
  await eventually("it has begun", () => running.output().stderr.includes('"done"'));
  running.child.kill("SIGINT");
  expect(await running.done).toMatchObject({ code: 130, signal: null, stdout: "" });
  expect(await holds(join(cwd, "copy.img.clone"), metadata)).toBe(true);
});

describe("SIGKILL during create", () => {
  test("leaves nothing that stops the next one", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), MIB);
    for (const delayMs of [80, 160]) {
      const running = startClone(["create", "disk.img", "copy.img"], { cwd });
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      running.child.kill("SIGKILL");
      await running.done;
      const names = Object.keys(await snapshot(cwd));
      if (names.includes("copy.img.clone")) {
        await cloneOk(["check", "copy.img.clone"], { cwd }); // whole, or not there
        await cloneOk(["delete", "copy.img", "--yes"], { cwd });
      }
      await cloneOk(["copy", "disk.img", "copy.img"], { cwd });
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
      await run("rm", join(cwd, "copy.img"));
      expect(Object.keys(await snapshot(cwd))).toEqual(["disk.img"]);
    }
  });
});

test(`a ${killSize} image interrupted ${ROUNDS} times, by SIGINT and SIGKILL in turn, never lies, and ends byte-identical`, {
  timeout: 1_800_000,
}, async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const size = parseSize(killSize);
  const isExt4 = await makeImage(cwd, size);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const regions = Math.ceil(size / 65536);
  const rate = String(Math.ceil(size / 32)); // all runs together are shorter than that
  const seen: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const running = startClone(["hydrate", "copy.img", "--rate", rate, "--progress", "none"], { cwd });
    if (round % 4 === 3) await committedMore(cwd, seen.at(-1) ?? 0);
    else await new Promise((resolve) => setTimeout(resolve, 150 + 25 * round));
    running.child.kill(round % 2 === 0 ? "SIGINT" : "SIGKILL");
    const { code, signal } = await running.done;
    if (round % 2 === 1) expect(signal).toBe("SIGKILL");
    else expect(signal ?? code).toBe(signal === null ? 130 : "SIGINT"); // killed by it where it did not listen yet
    seen.push(await checkAfterInterruption(cwd));
  }
  expect(seen.at(-1)).toBeLessThan(regions); // all of them landed in the middle
  expect(seen).toEqual([...seen].sort((a, b) => a - b)); // what was committed was never lost
  await cloneOk(["hydrate", "copy.img"], { cwd });
  expect(await checkAfterInterruption(cwd)).toBe(regions);
  await cloneOk(["finalize", "copy.img"], { cwd });
  expect(sameBytes(join(cwd, "disk.img"), join(cwd, "copy.img"), [[0, size]])).toBe(true);
  expect(statSync(join(cwd, "copy.img")).size).toBe(size);
  if (isExt4) await run("e2fsck", "-fn", join(cwd, "copy.img"));
});

/** An ext4 file system full of files, or random bytes. Resolves to which. */
async function makeImage(cwd: string, size: number): Promise<boolean> {
  if (!hasProgram("mkfs.ext4")) {
    await randomFile(join(cwd, "disk.img"), size);
    return false;
  }
  const files = join(cwd, "files");
  await mkdir(files);
  const each = Math.floor((size * 0.85) / 16);
  for (let number = 0; number < 16; number++) await randomFile(join(files, `file-${number}`), each);
  await run("mkfs.ext4", "-q", "-d", files, join(cwd, "disk.img"), String(size / 1024));
  await run("rm", "-r", files);
  return true;
}

/** Waits until a hydration has committed something, seen in the metadata as anybody sees it. */
async function committedMore(cwd: string, before: number): Promise<void> {
  await eventually("more regions are committed", async () => (await committedRegions(cwd)) > before);
}

/** `check` is clean, and whatever `dump` calls hydrated equals the source. Resolves to the number of hydrated regions. */
async function checkAfterInterruption(cwd: string): Promise<number> {
  expect(oneJson(await cloneOk(["check", "copy.img.clone", "--json"], { cwd }))).toEqual({
    ok: true,
    fatal: [],
    warnings: [],
  });
  const dump = oneJson<{ hydrated: [number, number][]; size: number }>(
    await cloneOk(["dump", "copy.img.clone", "--json"], { cwd }),
  );
  const ranges = dump.hydrated.map(([start, end]): [number, number] => [
    start * 65536,
    Math.min(end * 65536, dump.size),
  ]);
  expect(sameBytes(join(cwd, "disk.img"), join(cwd, "copy.img"), ranges)).toBe(true);
  return dump.hydrated.reduce((sum, [start, end]) => sum + end - start, 0);
}

/** Whether two files are equal in some byte ranges. */
function sameBytes(one: string, other: string, ranges: [start: number, end: number][]): boolean {
  const [a, b] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
  const [fdA, fdB] = [openSync(one, "r"), openSync(other, "r")];
  try {
    return ranges.every(([start, end]) => {
      for (let offset = start; offset < end; offset += MIB) {
        const length = Math.min(MIB, end - offset);
        if (readSync(fdA, a, 0, length, offset) !== length || readSync(fdB, b, 0, length, offset) !== length)
          return false;
        if (Buffer.compare(a.subarray(0, length), b.subarray(0, length)) !== 0) return false;
      }
      return true;
    });
  } finally {
    closeSync(fdA);
    closeSync(fdB);
  }
}

// The Ceph of the tests leaves nothing behind, whoever is killed. Each of these has one of its own, beside the one that all share.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { eventually } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

const LAB = fileURLToPath(new URL("lab", import.meta.url));
const DAEMONS = ["ceph-mgr", "ceph-mon", "ceph-osd", "radosgw"];

async function startLab(directory: string): Promise<ChildProcess> {
  const lab = spawn(LAB, [directory], { stdio: ["pipe", "pipe", "inherit"], detached: true });
  const [said] = await Promise.race([once(lab.stdout, "data"), once(lab, "exit")]);
  expect(String(said)).toMatch(/^ready /);
  expect(daemonsOf(directory)).toEqual(DAEMONS);
  return lab;
}

/** The programs that have something in a directory among their arguments. */
function daemonsOf(directory: string): string[] {
  const processes = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  const commands = processes.map((pid) => argumentsOf(pid)).filter((words) => DAEMONS.includes(words[0] ?? ""));
  return commands
    .filter((words) => words.includes(join(directory, "ceph.conf")))
    .map((words) => words[0] as string)
    .sort();
}

function argumentsOf(pid: string): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  } catch (error) {
    if (["ENOENT", "ESRCH"].includes((error as NodeJS.ErrnoException).code ?? "")) return [];
    throw error;
  }
}

describe("the Ceph of the tests", () => {
  test.concurrent("ends when whoever started it is gone, and leaves its logs alone", async () => {
    await using scratch = await scratchDirectory();
    const lab = await startLab(scratch.path);
    lab.stdin?.destroy();
    await once(lab, "exit");
    expect(daemonsOf(scratch.path)).toEqual([]);
    expect(await readdir(scratch.path)).toEqual(["log"]);
  });

  test.concurrent("ends with its script, even where that is killed", async () => {
    await using scratch = await scratchDirectory();
    const lab = await startLab(scratch.path);
    lab.kill("SIGKILL");
    await eventually("all have ended", () => daemonsOf(scratch.path).length === 0);
  });
});

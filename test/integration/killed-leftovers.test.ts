// What a process leaves that is killed while it opens its control socket: a socket under another name, which nobody answers. The
// next process takes its place, and with the clone it goes.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { lstat, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { cloneOk, eventually, startClone } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

const LEFTOVER = "copy.img.clone.soc~";
const MIB = 1024 * 1024;

/** A clone of some MiB, and beside it a socket of a process that was killed. */
async function cloneWithLeftover(cwd: string): Promise<void> {
  await randomFile(join(cwd, "disk.img"), 4 * MIB);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const script = `require("node:net").createServer().listen(${JSON.stringify(LEFTOVER)}, () => process.kill(process.pid, 9))`;
  await once(spawn(process.execPath, ["-e", script], { cwd, stdio: "ignore" }), "exit");
  expect((await lstat(join(cwd, LEFTOVER))).isSocket()).toBe(true);
}

test("clone hydrate takes the place of a control socket that was never opened, and leaves nothing", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await cloneWithLeftover(cwd);
  const running = startClone(["hydrate", "copy.img", "--rate", "1M", "--progress", "none"], { cwd });
  await eventually("its control socket is there", async () => (await readdir(cwd)).includes("copy.img.clone.sock"));
  expect(await readdir(cwd)).not.toContain(LEFTOVER);
  running.child.kill("SIGTERM");
  expect((await running.done).code).toBe(143);
  expect((await readdir(cwd)).sort()).toEqual(["copy.img", "copy.img.clone", "disk.img"]);
});

test("clone delete removes it with the clone, but nothing else that stands there", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await cloneWithLeftover(cwd);
  await cloneOk(["delete", "copy.img", "--yes"], { cwd });
  expect((await readdir(cwd)).sort()).toEqual(["copy.img", "disk.img"]);
  await cloneOk(["create", "disk.img", "other.img"], { cwd });
  await writeFile(join(cwd, "other.img.clone.soc~"), "a file of somebody's");
  await cloneOk(["hydrate", "other.img", "--progress", "none"], { cwd });
  await cloneOk(["delete", "other.img", "--yes"], { cwd });
  expect(await readdir(cwd)).toContain("other.img.clone.soc~");
});

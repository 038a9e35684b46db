// What a process that is started gets of us: its three streams, the descriptors that it is meant to have, and nothing of the
// clone's own files, sockets and keys. It tells itself what it finds in /proc.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { clone, cloneOk } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

/** Writes which descriptors it has, and what service managers have said, to a file. */
const CONFESS = `
const fs = require("node:fs");
const open = fs.readdirSync("/proc/self/fd").map(Number);
const names = open.flatMap((fd) => { try { return [[fd, fs.readlinkSync("/proc/self/fd/" + fd)]]; } catch { return []; } });
const told = Object.keys(process.env).filter((name) => /^(NOTIFY_SOCKET|WATCHDOG_|LISTEN_)/.test(name)).sort();
fs.writeFileSync(process.argv[2], JSON.stringify({ names, told }));
`;

interface Confession {
  names: [number, string][];
  told: string[];
}

/** Of what Node itself opens, nothing is anybody's: event queues, its own pipes, and the directory that is being read. */
function foreign({ names }: Confession, allowed: readonly number[]): [number, string][] {
  return names.filter(([fd, name]) => !allowed.includes(fd) && !/^(anon_inode:|pipe:|\/dev\/null|\/proc\/)/.test(name));
}

test("The command of --run has nothing of the clone's but its URI", async () => {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  await randomFile(join(cwd, "source.img"), 65536);
  await cloneOk(["create", "source.img", "copy.img", "-q"], { cwd });
  await writeFile(join(cwd, "confess.cjs"), CONFESS);
  // A name that a shell would run, if anybody put it into its words.
  const exportName = "$(touch pwned); `touch pwned`";
  const args = ["--export", exportName, "--record-trace", "trace", "--run"];
  const env = { NOTIFY_SOCKET: join(cwd, "nobody.sock"), WATCHDOG_USEC: "1000000" };
  const command = `"${process.execPath}" confess.cjs heard && printf %s "$exportname" > name`;
  const run = await clone(["serve", "copy.img", "--no-hydrate", ...args, command], { cwd, env });
  expect(run.code, run.stderr).toBe(0);
  const heard = JSON.parse(await readFile(join(cwd, "heard"), "utf8")) as Confession;
  expect(foreign(heard, [0, 1, 2])).toEqual([]);
  expect(heard.told).toEqual([]);
  expect(await readFile(join(cwd, "name"), "utf8")).toBe(exportName);
  await expect(readFile(join(cwd, "pwned"))).rejects.toThrow("ENOENT");
});

test("The command of a source has the socket that it serves on, and nothing else", async () => {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  await writeFile(join(cwd, "confess.cjs"), CONFESS);
  // It serves nothing: it tells what it has, and ends.
  const source = ["[", process.execPath, join(cwd, "confess.cjs"), join(cwd, "heard"), "$(touch pwned)", "]"];
  const run = await clone(["create", ...source, "copy.img", "--metadata", "x.clone"], { cwd });
  expect(run.code).toBe(1);
  const heard = JSON.parse(await readFile(join(cwd, "heard"), "utf8")) as Confession;
  expect(heard.names.find(([fd]) => fd === 3)?.[1]).toMatch(/^socket:/);
  expect(foreign(heard, [0, 1, 2, 3])).toEqual([]);
  expect(heard.told).toEqual(["LISTEN_FDS", "LISTEN_PID"]);
  await expect(readFile(join(cwd, "pwned"))).rejects.toThrow("ENOENT");
});

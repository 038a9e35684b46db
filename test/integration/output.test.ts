// What goes to standard output and what to standard error, without a terminal: results and nothing else on the one.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { CLONE, clone, cloneOk, oneJson } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

const MIB = 1024 * 1024;
const ESCAPE = "\u001b";

/** Runs a clone through its life and hands over all that was printed. */
async function life(cwd: string, flags: string[], env: Record<string, string | undefined> = {}) {
  await randomFile(join(cwd, "disk.img"), MIB);
  const runs = [];
  for (const args of [
    ["create", "disk.img", "copy.img"],
    ["hydrate", "copy.img"],
    ["status", "copy.img"],
    ["check", "copy.img.clone"],
    ["verify", "copy.img"],
    ["finalize", "copy.img"],
    ["copy", "disk.img", "second.img"],
  ]) {
    const run = await clone([...args, ...flags], { cwd, env });
    expect(run.code, run.stderr).toBe(0);
    runs.push({ args, ...run });
  }
  return runs;
}

describe("without a terminal", () => {
  test("nothing is coloured or redrawn, and progress is plain lines on standard error", async () => {
    await using place = await scratchDirectory();
    for (const { args, stdout, stderr } of await life(place.path, [])) {
      expect(`${stdout}${stderr}`).not.toContain(ESCAPE);
      expect(`${stdout}${stderr}`).not.toContain("\r");
      expect(stdout).not.toBe("");
      if (args[0] === "hydrate") expect(stderr).toMatch(/^Hydrating: 100\.0 %, 1\.00 MiB of 1\.00 MiB$/m);
    }
  });

  test("--json prints exactly one JSON object on standard output", async () => {
    await using place = await scratchDirectory();
    for (const { stdout } of await life(place.path, ["--json"])) oneJson(stdout);
  });

  test("--quiet prints results only", async () => {
    await using place = await scratchDirectory();
    for (const { stdout, stderr } of await life(place.path, ["--quiet"])) {
      expect(stderr).toBe("");
      expect(stdout).not.toBe("");
    }
  });

  test("--progress none is silent about progress, --progress json prints one object a line", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), 2 * MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    const none = await clone(["hydrate", "copy.img", "--limit", "64K", "--progress", "none"], { cwd });
    expect(none.stderr).not.toContain("Hydrating:");
    const run = await clone(["hydrate", "copy.img", "--progress", "json", "--json"], { cwd });
    expect(run.code).toBe(0);
    expect(run.stderr).toBe("");
    const lines = run.stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(lines.length).toBeGreaterThanOrEqual(2);
    for (const line of lines.slice(0, -1)) {
      for (const field of ["done", "total", "moved", "regionsInFlight", "bytesPerSecond"]) {
        expect(typeof line[field], field).toBe("number");
      }
      expect(line.total).toBe(2 * MIB);
    }
    expect(lines.at(-2)).toMatchObject({ done: 2 * MIB, etaSeconds: 0 });
    expect(lines.at(-1)).toMatchObject({ state: "hydrated" });
  });

  test("FORCE_COLOR colours, and NO_COLOR forbids even that", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    const forced = await clone(["status", "copy.img"], { cwd, env: { FORCE_COLOR: "1" } });
    expect(forced.stdout).toContain(ESCAPE);
    const none = await clone(["status", "copy.img"], { cwd, env: { FORCE_COLOR: "1", NO_COLOR: "1" } });
    expect(none.stdout).not.toContain(ESCAPE);
    const error = await clone(["status", "none.img"], { cwd, env: { FORCE_COLOR: "1", NO_COLOR: "1" } });
    expect(error.stderr).not.toContain(ESCAPE);
  });
});

describe("an error", () => {
  test("is the same with --quiet and --json, and nothing is on standard output", async () => {
    await using place = await scratchDirectory();
    for (const flag of ["--quiet", "--json", "--verbose"]) {
      const run = await clone(["status", "none.img", flag], { cwd: place.path });
      expect(run).toMatchObject({ code: 1, stdout: "" });
      expect(run.stderr).toMatch(/^clone: Cannot open the clone "none\.img": .*\n$/);
    }
  });

  test("shows where it came from with DEBUG=clone, and only then", async () => {
    await using place = await scratchDirectory();
    const plain = await clone(["status", "none.img"], { cwd: place.path });
    expect(plain.stderr).not.toContain("    at ");
    const run = await clone(["status", "none.img"], { cwd: place.path, env: { DEBUG: "clone" } });
    expect(run.stderr).toMatch(/^ {4}at /m);
    expect(run.code).toBe(1);
  });
});

describe("clone --help", () => {
  test("lists every command, and each command's own help its options", async () => {
    const help = await cloneOk(["--help"]);
    for (const command of ["create", "hydrate", "status", "check", "dump", "verify", "finalize", "copy", "delete"]) {
      expect(help).toMatch(new RegExp(`clone ${command} `));
      const own = await cloneOk([command, "--help"]);
      expect(own).toMatch(new RegExp(`clone ${command} `));
      expect(own).toContain("--quiet");
    }
    expect(help).toContain("completion");
    expect(await cloneOk(["hydrate", "--help"])).toMatch(/--no-extents/);
    expect(await cloneOk(["-h"])).toBe(help);
  });

  test("clone --version prints the version and nothing else", async () => {
    const { default: manifest } = await import("../../package.json", { with: { type: "json" } });
    expect(await cloneOk(["--version"])).toBe(`${manifest.version}\n`);
    expect(await cloneOk(["-V"])).toBe(`${manifest.version}\n`);
  });
});

describe("clone completion", () => {
  test("prints a script that a shell takes", async () => {
    const script = await cloneOk(["completion"], { env: { SHELL: "/bin/bash" } });
    expect(script).toContain("clone");
    const { status, stderr } = spawnSync("bash", ["-n"], { input: script, encoding: "utf8" });
    expect(stderr).toBe("");
    expect(status).toBe(0);
  });

  test("the script completes commands and options", async () => {
    const run = await clone(["--get-yargs-completions", "clone", "hy"]);
    expect(run.stdout).toContain("hydrate");
    const options = await clone(["--get-yargs-completions", "clone", "hydrate", "--ra"]);
    expect(options.stdout).toContain("--rate");
  });
});

test("a reader that goes away ends the output without an error", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), MIB);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const script = 'set -o pipefail; "$0" "$1" status copy.img --watch 1 | head -1';
  const { status, stderr, stdout } = spawnSync("bash", ["-c", script, process.execPath, CLONE], {
    cwd,
    encoding: "utf8",
    timeout: 50_000,
  });
  expect(stdout).toMatch(/^state +idle\n$/);
  expect(stderr).toBe("");
  expect(status).toBe(0);
});

test("the program works where PATH lacks /usr/sbin, and where it is empty", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), MIB);
  await cloneOk(["copy", "disk.img", "copy.img"], { cwd, env: { PATH: "/usr/bin:/bin" } });
  await cloneOk(["copy", "disk.img", "second.img"], { cwd, env: { PATH: undefined } });
});

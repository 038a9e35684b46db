/** Runs bin/clone.js as a user would: a process of its own, no terminal, output caught. */
import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";

/** The program; another one, as one that is installed, where the environment names it. */
export const CLONE = process.env.CLONE_TEST_PROGRAM ?? fileURLToPath(new URL("../../bin/clone.js", import.meta.url));

/** Ends a run that hangs, so that the test can say what it printed until then. */
const LONGEST_RUN_MS = 50_000;

/** How a run ended and what it printed. */
export interface CloneRun {
  /** Null where a signal ended it. */
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** How to run it. */
export interface CloneOptions {
  cwd?: string;
  /** Added to the environment; undefined takes a variable away. */
  env?: Record<string, string | undefined>;
  /** User and group to run as; needs root. */
  uid?: number;
  /** Another entry than bin/clone.js. */
  program?: string;
  /** Ends a run that hangs; less than a minute by default. */
  longestMs?: number;
}

/** A run that goes on. */
export interface StartedClone {
  child: ChildProcess;
  pid: number;
  /** What it has printed so far. */
  output(): { stdout: string; stderr: string };
  /** Resolves when it has ended. */
  done: Promise<CloneRun>;
}

/** Starts `clone ARGS…`. */
export function startClone(args: readonly string[], options: CloneOptions = {}): StartedClone {
  const { DEBUG: _, NO_COLOR: __, FORCE_COLOR: ___, ...inherited } = process.env;
  const child = spawn(process.execPath, [options.program ?? CLONE, ...args], {
    cwd: options.cwd,
    env: { ...inherited, ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
    ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.uid }),
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const hang = setTimeout(() => child.kill("SIGKILL"), options.longestMs ?? LONGEST_RUN_MS);
  const done = new Promise<CloneRun>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => {
      clearTimeout(hang);
      resolve({ code, signal, stdout, stderr });
    });
  });
  if (child.pid === undefined) throw new Error("the program could not be started");
  return { child, pid: child.pid, output: () => ({ stdout, stderr }), done };
}

/** Runs `clone ARGS…` to its end. */
export function clone(args: readonly string[], options: CloneOptions = {}): Promise<CloneRun> {
  return startClone(args, options).done;
}

/** Runs `clone ARGS…`, which has to succeed, and resolves to what it printed on standard output. */
export async function cloneOk(args: readonly string[], options: CloneOptions = {}): Promise<string> {
  const run = await clone(args, options);
  expect(run.code, `clone ${args.join(" ")}: ${run.stderr}`).toBe(0);
  return run.stdout;
}

/** The one JSON object on standard output; fails where there is anything else. */
export function oneJson<T = Record<string, unknown>>(stdout: string): T {
  expect(stdout.endsWith("\n")).toBe(true);
  expect(stdout.trimEnd().split("\n")).toHaveLength(1);
  return JSON.parse(stdout);
}

/**
 * Holds a failed run against the contract: this exit code, nothing on standard output, and on standard error one line
 * `clone: Cannot X: Y` that matches, then at most one more with a hint. Warnings may come before.
 */
export function expectFailure(run: CloneRun, code: number, message: RegExp, hint?: RegExp): void {
  const said = `${run.stdout}${run.stderr}`;
  expect(run.signal, said).toBeNull();
  const lines = run.stderr
    .trimEnd()
    .split("\n")
    .filter((line) => !line.startsWith("clone: Warning: "));
  expect(lines[0], said).toMatch(/^clone: Cannot \S.*: \S.*$/);
  expect(lines[0]).toMatch(message);
  expect(lines.length, said).toBeLessThanOrEqual(2);
  if (hint !== undefined) expect(lines[1] ?? "").toMatch(hint);
  expect(run.stdout).toBe("");
  expect(run.code, said).toBe(code);
}

/** Waits until `condition` holds, looking every few milliseconds; fails after a long time. */
export async function eventually(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  const giveUp = performance.now() + 30_000;
  while (!(await condition())) {
    if (performance.now() > giveUp) throw new Error(`in vain waited until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Has what slowly hydrates copy.img in a directory go on as fast as it can, as soon as it takes commands. */
export async function hurry(cwd: string): Promise<void> {
  await eventually("it takes commands", async () => {
    return (await clone(["tune", "copy.img", "--rate", "max"], { cwd })).code === 0;
  });
}

/**
 * Where a command changes the file system, found by strace(1), and its death there: SIGKILL at the entry of the Nth call of a
 * name, which is then not carried out. strace counts the calls of each thread for itself; so the program gets one thread in its pool,
 * and goes the same way each time.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CLONE } from "../support/run-clone.ts";

/** The calls by which something becomes another on a disk. Of `openat` and `write` only some are. */
const CALLS = [
  ...["openat", "linkat", "link", "symlink", "unlink", "unlinkat", "rename", "renameat", "renameat2", "mkdir", "rmdir"],
  ...["pwrite64", "pwritev", "pwritev2", "write", "writev", "ftruncate", "truncate", "fallocate", "copy_file_range"],
  ...["fsync", "fdatasync", "syncfs", "sync_file_range", "bind", "listen", "chmod", "fchmod", "ioctl", "fcntl"],
] as const;

/** The Nth call of a name, from 1. */
export interface CallPoint {
  call: string;
  nth: number;
}

/** How a traced run ended. */
export interface TracedRun {
  code: number | null;
  signal: NodeJS.Signals | null;
  stderr: string;
}

/** Runs `clone ARGS…` to its end, and resolves to each place where it can be killed between two changes. */
export async function findCallPoints(args: readonly string[], cwd: string): Promise<CallPoint[]> {
  const folder = await mkdtemp(join(tmpdir(), "clone-trace-"));
  try {
    const log = join(folder, "log");
    const run = await traced(["-o", log, "-e", `trace=${CALLS.join(",")}`], args, cwd);
    if (run.code !== 0) throw new Error(`clone ${args.join(" ")}: exit ${run.code}: ${run.stderr}`);
    return pointsOf(await readFile(log, "utf8"));
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Runs `clone ARGS…` until it makes this call. A run that does not make it ends by itself. */
export async function runUntil({ call, nth }: CallPoint, args: readonly string[], cwd: string): Promise<TracedRun> {
  return await traced(["-o", "/dev/null", "-e", `inject=${call}:signal=KILL:when=${nth}`], args, cwd);
}

async function traced(options: readonly string[], args: readonly string[], cwd: string): Promise<TracedRun> {
  const words = ["-f", "--seccomp-bpf", "-q", ...options, process.execPath, CLONE, ...args];
  const child = spawn("strace", words, {
    cwd,
    env: { ...process.env, UV_THREADPOOL_SIZE: "1", TMPDIR: cwd, XDG_RUNTIME_DIR: cwd },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const hang = setTimeout(() => child.kill("SIGKILL"), 60_000);
  const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
  clearTimeout(hang);
  return { code, signal, stderr };
}

/** Lines of the log: `PID call(arguments) = result`, where a call that is interrupted is resumed in a line of another form. */
function pointsOf(log: string): CallPoint[] {
  const counts = new Map<string, number>();
  const points = new Map<string, CallPoint>();
  for (const line of log.split("\n")) {
    const [, thread, call, words = ""] = /^(\d+) +([a-z0-9_]+)\((.*)$/.exec(line) ?? [];
    if (call === undefined) continue;
    const key = `${thread} ${call}`;
    const nth = (counts.get(key) ?? 0) + 1;
    counts.set(key, nth);
    if (changes(call, words)) points.set(`${call} ${nth}`, { call, nth });
  }
  return [...points.values()];
}

function changes(call: string, words: string): boolean {
  if (call === "openat") return /O_CREAT|O_TMPFILE/.test(words);
  // Wake-ups go through eventfds and pipes, what is printed to descriptors 1 and 2.
  if (call === "write") return !/^\d+, "(\*|\\1\\0|.?")/.test(words) && !/^[12], /.test(words);
  if (call === "ioctl") return /FICLONE|BLK/.test(words);
  if (call === "fcntl") return /OFD_SETLK/.test(words);
  return !/^[12]\)/.test(words);
}

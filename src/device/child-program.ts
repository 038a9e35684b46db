/** A program that serves on a socket of ours, from its start to its end. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:os";
import { basename } from "node:path";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { type Clock, systemClock } from "../base/clock.ts";
import { CloneError, errnoOf } from "../base/errors.ts";
import type { ChildOutput } from "./child-output.ts";
import type { UnnamedSocket } from "./unnamed-socket.ts";

/** Beside src and beside dist: a program of its own, which Node runs as it stands. */
const LAUNCHER = fileURLToPath(new URL("../../bin/child-launcher.cjs", import.meta.url));

/** How long a program that is told to end may take, ms. */
const PATIENCE_MS = 5000;
/** How long after its end it is waited for what it has said, ms: a process of its own may keep the pipe open for ever. */
const LAST_WORDS_MS = 500;

/** What to run. */
export interface ChildCommand {
  /** The program, looked for in PATH, and its arguments. */
  words: readonly string[];
  /** Descriptors of this process that the program has as 4, 5, …; they stay the caller's. */
  inherit?: readonly number[];
  /** Added to the environment, where a variable is not in it already. */
  environment?: Readonly<Record<string, string>>;
}

/** How a program has ended. */
export interface ChildEnd {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** The program could not be run: `errno` tells why, ENOENT where there is none of that name. */
export class LaunchError extends CloneError {
  readonly errno: string;

  constructor(program: string, step: string, errno: string) {
    const why = step === "exec" && errno === "ENOENT" ? "it is not installed" : `${step}: ${errno}`;
    super("failed", `Cannot run ${program}: ${why}`);
    this.errno = errno;
  }
}

/** A program that runs, or has ended. */
export class ChildProgram {
  /** As people call it. */
  readonly program: string;
  /** Settles when it has ended and has said its last words; never rejects. */
  readonly ended: Promise<ChildEnd>;
  readonly #child: ChildProcess;
  readonly #clock: Clock;
  #hasEnded = false;

  private constructor(child: ChildProcess, command: ChildCommand, clock: Clock) {
    this.program = programOf(command);
    this.#child = child;
    this.#clock = clock;
    child.on("error", () => {}); // of a signal that could not be sent: its end is waited for in any case
    this.ended = this.#end();
  }

  /**
   * Runs a program that serves on a socket, as `bin/child-launcher.cjs` describes it. It is in a session of its own, so that a
   * terminal's Ctrl-C, meant for us, leaves it alone until we are done; and it ends when we do.
   * @throws {LaunchError} where it cannot be run
   */
  static async launch(
    command: ChildCommand,
    { socket, output, clock = systemClock }: { socket: UnnamedSocket; output: ChildOutput; clock?: Clock },
  ): Promise<ChildProgram> {
    let running: ChildProgram | undefined;
    try {
      await socket.bind(async (path) => {
        running = new ChildProgram(start(command, path), command, clock);
        await running.#launched(output);
      });
    } catch (error) {
      await running?.end();
      throw error instanceof CloneError
        ? error
        : new LaunchError(programOf(command), "start", errnoOf(error) ?? String(error));
    }
    return running as ChildProgram;
  }

  get hasEnded(): boolean {
    return this.#hasEnded;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Asks it to end, and ends it where it does not in time. Resolves when it has ended. */
  async end(): Promise<void> {
    if (this.#hasEnded) return;
    this.#child.ref();
    const done = new AbortController();
    void this.ended.then(() => done.abort());
    this.#kill("SIGTERM");
    await this.#clock.sleep(PATIENCE_MS, done.signal);
    if (!this.#hasEnded) this.#kill("SIGKILL");
    await this.ended;
  }

  async #launched(output: ChildOutput): Promise<void> {
    const [, stdout, stderr, pipe] = this.#child.stdio as unknown as [null, Readable, Readable, Readable];
    output.take(stdout);
    output.take(stderr);
    let report = "";
    pipe.setEncoding("utf8").on("data", (text: string) => {
      report = (report + text).slice(0, 100);
    });
    const failed = once(this.#child, "error"); // no Node to run, or no process to be had
    const closed = once(pipe, "close");
    const [error] = (await Promise.race([closed.then(() => []), failed])) as [Error?];
    if (error !== undefined) throw new LaunchError(this.program, "spawn", (error as NodeJS.ErrnoException).code ?? "");
    const [step = "", errno] = report.trim().split(" ");
    if (errno !== undefined) throw new LaunchError(this.program, step, errnoName(Number(errno)));
    // Whoever holds a running program disposes of it; one that is forgotten ends with the process, and does not keep it.
    this.#child.unref();
    for (const stream of [stdout, stderr]) (stream as unknown as { unref(): void }).unref();
  }

  async #end(): Promise<ChildEnd> {
    const closed = new AbortController();
    this.#child.once("close", () => closed.abort());
    const end = await new Promise<ChildEnd>((resolve) => {
      this.#child.once("exit", (code, signal) => resolve({ code, signal }));
      this.#child.once("error", () => {
        if (this.#child.pid === undefined) resolve({ code: null, signal: null });
      });
    });
    this.#hasEnded = true;
    this.#kill("SIGKILL"); // what it has started, and left behind
    await this.#clock.sleep(LAST_WORDS_MS, closed.signal);
    return end;
  }

  /** Sends a signal to the program and to what it has started. */
  #kill(signal: NodeJS.Signals): void {
    if (this.#child.pid === undefined) return;
    try {
      process.kill(-this.#child.pid, signal);
    } catch {
      // ESRCH: none of them is there any more
    }
  }
}

function programOf({ words }: ChildCommand): string {
  return basename(words[0] ?? "");
}

function start({ words, inherit = [], environment: added }: ChildCommand, socketPath: string): ChildProcess {
  const environment: NodeJS.ProcessEnv = { ...added, ...process.env };
  // What systemd has given to us is not the program's.
  for (const name of ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"]) {
    delete environment[name];
  }
  return spawn(process.execPath, [LAUNCHER, String(process.pid), socketPath, String(inherit.length), ...words], {
    detached: true,
    stdio: ["ignore", "pipe", "pipe", "pipe", ...inherit],
    env: environment,
  });
}

function errnoName(errno: number): string {
  return Object.entries(constants.errno).find(([, value]) => value === errno)?.[0] ?? `E${errno}`;
}

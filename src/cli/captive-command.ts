/** `--run COMMAND`: a command for whose lifetime a server runs, as nbdkit's captive mode has it. */
import { type ChildProcess, spawn } from "node:child_process";
import { constants } from "node:os";
import { type Clock, systemClock } from "../base/clock.ts";
import { startDeadline } from "../base/deadline.ts";
import { CloneError } from "../base/errors.ts";

/** How long a command that is told to end may take, ms. */
const PATIENCE_MS = 10_000;

/** A command in a shell, running. */
export class CaptiveCommand {
  readonly #child: ChildProcess;
  readonly #clock: Clock;
  #isTold = false;
  /** Its exit status, as a shell tells it: 128 and the signal's number where one ended it. Rejects where no shell starts. */
  readonly ended: Promise<number>;

  constructor(command: string, server: { uris: readonly string[]; exportName: string }, clock: Clock = systemClock) {
    this.#clock = clock;
    const environment: NodeJS.ProcessEnv = { ...process.env, ...variables(server) };
    // NOTIFY_SOCKET is ours: the command is not the service.
    delete environment.NOTIFY_SOCKET;
    this.#child = spawn("/bin/sh", ["-c", command], { stdio: "inherit", env: environment });
    this.ended = new Promise((resolve, reject) => {
      this.#child.once("error", (error) =>
        reject(new CloneError("failed", `Cannot run "${command}": ${error.message}`, { cause: error })),
      );
      this.#child.once("exit", (code, signal) =>
        resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])),
      );
    });
  }

  /** Asks it to end, and ends it where it does not in time: nobody else would. */
  terminate(): void {
    if (!this.#child.kill("SIGTERM") || this.#isTold) return;
    this.#isTold = true;
    const ended = startDeadline(this.#clock, PATIENCE_MS, () => this.#child.kill("SIGKILL"));
    this.#child.once("exit", ended);
  }
}

/** What the command finds in shell variables, under nbdkit's names. */
function variables({ uris, exportName }: { uris: readonly string[]; exportName: string }): Record<string, string> {
  const uri = uris[0] ?? "";
  const parsed = new URL(uri);
  const unixsocket = parsed.searchParams.get("socket") ?? "";
  return { uri, nbd: uri, exportname: exportName, unixsocket, port: parsed.port };
}

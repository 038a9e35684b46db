/** `--run COMMAND`: a command for whose lifetime a server runs, as nbdkit's captive mode has it. */
import { type ChildProcess, spawn } from "node:child_process";
import { constants } from "node:os";
import { CloneError } from "../base/errors.ts";

/** What the command finds in shell variables, under nbdkit's names. */
export interface CaptiveVariables {
  uri: string;
  exportname: string;
  unixsocket: string;
  port: string;
}

/** A command in a shell, running. */
export class CaptiveCommand {
  readonly #child: ChildProcess;
  /** Its exit status, as a shell tells it: 128 and the signal's number where one ended it. Rejects where no shell starts. */
  readonly ended: Promise<number>;

  constructor(command: string, variables: CaptiveVariables) {
    const environment: NodeJS.ProcessEnv = { ...process.env, ...variables, nbd: variables.uri };
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

  /** Asks it to end. */
  terminate(): void {
    this.#child.kill("SIGTERM");
  }
}

/** Ctrl-C and SIGTERM: the first asks to stop between regions, the second stops at once, which is as safe as a power cut. */
import { isIgnored } from "../device/ignored-signals.ts";
import { exitNow } from "../device/libc.ts";
import { ExitCode } from "./exit-codes.ts";

/** Listens from its making until it is disposed of. */
export class Interruption implements Disposable {
  readonly #controller = new AbortController();
  #exitCode: typeof ExitCode.interrupted | typeof ExitCode.terminated = ExitCode.interrupted;
  readonly #onInterrupt = (): void => this.#arrived(ExitCode.interrupted);
  readonly #onTerminate = (): void => this.#arrived(ExitCode.terminated);

  constructor() {
    process.on("SIGINT", this.#onInterrupt);
    process.on("SIGTERM", this.#onTerminate);
  }

  /** A terminal that is closed counts too from now on, unless the process was started to outlive it. */
  heedHangup(): void {
    if (!isIgnored("SIGHUP")) process.on("SIGHUP", this.#onTerminate);
  }

  /** Aborts at the first signal. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** The exit code that tells which signal it was. */
  get exitCode(): typeof ExitCode.interrupted | typeof ExitCode.terminated {
    return this.#exitCode;
  }

  [Symbol.dispose](): void {
    process.off("SIGINT", this.#onInterrupt);
    process.off("SIGTERM", this.#onTerminate);
    process.off("SIGHUP", this.#onTerminate);
  }

  #arrived(exitCode: typeof ExitCode.interrupted | typeof ExitCode.terminated): void {
    // Not process.exit(): that waits for the threads, one of which may hang in a device.
    if (this.#controller.signal.aborted) exitNow(exitCode);
    this.#exitCode = exitCode;
    this.#controller.abort();
  }
}

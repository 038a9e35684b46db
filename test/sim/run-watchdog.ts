/**
 * Notices a run that never ends. What loops in this thread stops its timers too, so another one looks whether runs go on; it says
 * which run it was, and ends the process. Its patience is far beyond what any run takes.
 */
import { once } from "node:events";
import { Worker } from "node:worker_threads";

const PATIENCE_MS = 300_000;

const WATCHING = `
  const { parentPort, workerData } = require("node:worker_threads");
  const { writeSync } = require("node:fs");
  const words = new Int32Array(workerData.shared);
  let [last, since] = [0, Date.now()];
  setInterval(() => {
    const [count, seed] = words;
    if (count !== last) [last, since] = [count, Date.now()];
    if (Date.now() - since < workerData.patienceMs) return;
    writeSync(2, "sim: VIOLATION: a run does not end. Again, alone: npm run test:sim -- --replay " + (seed >>> 0) + "\\n");
    process.kill(process.pid, "SIGKILL");
  }, 1000);
  parentPort.postMessage("watching");
`;

/** Watches from its making until it is disposed of. */
export class RunWatchdog implements AsyncDisposable {
  readonly #words = new Int32Array(new SharedArrayBuffer(8));
  readonly #worker: Worker;

  private constructor(patienceMs: number) {
    this.#worker = new Worker(WATCHING, { eval: true, workerData: { shared: this.#words.buffer, patienceMs } });
  }

  /** Resolves when it watches. */
  static async start(patienceMs = PATIENCE_MS): Promise<RunWatchdog> {
    const watchdog = new RunWatchdog(patienceMs);
    await once(watchdog.#worker, "message");
    watchdog.#worker.unref();
    return watchdog;
  }

  /** The run of a seed begins. */
  begins(seed: number): void {
    this.#words[1] = seed;
    this.#words[0] = (this.#words[0] as number) + 1;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }
}

/**
 * Notices a message that never ends: a loop in this thread would stop every timer too, so another thread looks whether
 * messages go on. It says which message it was and ends the process. Its patience is far beyond what any message takes.
 */
import { once } from "node:events";
import { Worker } from "node:worker_threads";

const PATIENCE_MS = 120_000;
const WORDS = 4;

const WATCHING = `
  const { parentPort, workerData } = require("node:worker_threads");
  const { writeSync } = require("node:fs");
  const words = new Int32Array(workerData.shared);
  let last = -1;
  let since = Date.now();
  setInterval(() => {
    const [count, seed, target, message] = words;
    if (count !== last) [last, since] = [count, Date.now()];
    if (target === 0 || Date.now() - since < workerData.patienceMs) return;
    writeSync(2, "fuzz: VIOLATION: a message does not end. Again, alone: npm run test:fuzz -- --seed " + (seed >>> 0) +
      " --target " + target + " --message " + message + "\\n");
    process.kill(process.pid, "SIGKILL");
  }, 1000);
  parentPort.postMessage("watching");
`;

/** Watches from its making until it is disposed of. */
export class Watchdog implements AsyncDisposable {
  readonly #shared = new Int32Array(new SharedArrayBuffer(4 * WORDS));
  readonly #worker: Worker;

  private constructor(patienceMs: number) {
    this.#worker = new Worker(WATCHING, { eval: true, workerData: { shared: this.#shared.buffer, patienceMs } });
  }

  /** Resolves when it watches. */
  static async start(patienceMs = PATIENCE_MS): Promise<Watchdog> {
    const watchdog = new Watchdog(patienceMs);
    await once(watchdog.#worker, "message");
    watchdog.#worker.unref();
    return watchdog;
  }

  /** A message begins; `target` 0 is none. */
  begins(seed: number, target: number, message: number): void {
    this.#shared[1] = seed;
    this.#shared[2] = target;
    this.#shared[3] = message;
    this.#shared[0] = ((this.#shared[0] as number) + 1) % 2 ** 30;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }
}

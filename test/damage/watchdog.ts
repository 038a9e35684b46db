/**
 * Notices an image that never ends: a loop in this thread would stop every timer too, so another thread looks whether images go
 * on. It says which image it was and ends the process. Its patience is far beyond what any image takes.
 */
import { once } from "node:events";
import { Worker } from "node:worker_threads";

const PATIENCE_MS = 120_000;

const WATCHING = `
  const { parentPort, workerData } = require("node:worker_threads");
  const { writeSync } = require("node:fs");
  const words = new Uint32Array(workerData.shared);
  let last = -1;
  let since = Date.now();
  setInterval(() => {
    const [begun, image, isRunning] = words;
    if (begun !== last) [last, since] = [begun, Date.now()];
    if (isRunning === 0 || Date.now() - since < workerData.patienceMs) return;
    writeSync(2, "damage: VIOLATION: an image does not end. Again, alone: npm run test:damage -- --images 1 --shards 1 --seed " +
      image + "\\n");
    process.kill(process.pid, "SIGKILL");
  }, 1000);
  parentPort.postMessage("watching");
`;

/** Watches from its making until it is disposed of. */
export class Watchdog implements AsyncDisposable {
  readonly #words = new Uint32Array(new SharedArrayBuffer(12));
  readonly #worker: Worker;

  private constructor(patienceMs: number) {
    this.#worker = new Worker(WATCHING, { eval: true, workerData: { shared: this.#words.buffer, patienceMs } });
  }

  /** Resolves when it watches. */
  static async start(patienceMs = PATIENCE_MS): Promise<Watchdog> {
    const watchdog = new Watchdog(patienceMs);
    await once(watchdog.#worker, "message");
    watchdog.#worker.unref();
    return watchdog;
  }

  /** An image begins. */
  begins(image: number): void {
    this.#words[1] = image;
    this.#words[2] = 1;
    this.#words[0] = ((this.#words[0] as number) + 1) % 2 ** 31;
  }

  /** None is under way until the next begins. */
  rests(): void {
    this.#words[2] = 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }
}

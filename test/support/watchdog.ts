/**
 * Notices work that never ends: a loop in this thread would stop every timer too, so another thread looks whether pieces of work
 * go on. It says how the last one is begun again alone, and ends the process. Its patience is far beyond what any piece takes.
 */
import { once } from "node:events";
import { Worker } from "node:worker_threads";

const PATIENCE_MS = 300_000;
/** Words of a piece of work, and how many times work has begun or rested. */
const MOST_WORDS = 4;

const WATCHING = `
  const { parentPort, workerData } = require("node:worker_threads");
  const { writeSync } = require("node:fs");
  const { shared, said, patienceMs } = workerData;
  const [turns, isUnderWay, ...words] = [0, 1, 2, 3, 4, 5].map((i) => new Uint32Array(shared, 4 * i, 1));
  let last = -1;
  let since = Date.now();
  setInterval(() => {
    if (turns[0] !== last) [last, since] = [turns[0], Date.now()];
    if (isUnderWay[0] === 0 || Date.now() - since < patienceMs) return;
    writeSync(2, said.replace(/%(\\d)/g, (_, i) => String(words[i][0])) + "\\n");
    process.kill(process.pid, "SIGKILL");
  }, 1000);
  parentPort.postMessage("watching");
`;

/** Watches from its making until it is disposed of. */
export class Watchdog implements AsyncDisposable {
  readonly #shared = new Uint32Array(new SharedArrayBuffer(4 * (2 + MOST_WORDS)));
  readonly #worker: Worker;

  private constructor(said: string, patienceMs: number) {
    this.#worker = new Worker(WATCHING, { eval: true, workerData: { shared: this.#shared.buffer, said, patienceMs } });
  }

  /**
   * Resolves when it watches.
   * @param said what it says, `%0` … `%3` standing for the words of the work under way
   */
  static async start(said: string, patienceMs = PATIENCE_MS): Promise<Watchdog> {
    const watchdog = new Watchdog(said, patienceMs);
    await once(watchdog.#worker, "message");
    watchdog.#worker.unref();
    return watchdog;
  }

  /** A piece of work begins, which these words name; each is taken as 32 bits without a sign. */
  begins(...words: number[]): void {
    this.#shared.set(words, 2);
    this.#turn(1);
  }

  /** Nothing is under way until the next begins. */
  rests(): void {
    this.#turn(0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }

  #turn(isUnderWay: 0 | 1): void {
    this.#shared[1] = isUnderWay;
    this.#shared[0] = (this.#shared[0] as number) + 1;
  }
}

/**
 * Runs messages through a target and holds what became of each against what must hold of all. A message comes from seed,
 * target and number alone, so that one can be had again without those before it.
 */
import { readdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type SeededRandom, seededRandom } from "../support/random.ts";
import type { Watchdog } from "../support/watchdog.ts";
import { Allocations } from "./allocations.ts";
import type { FuzzSession, FuzzTarget, Outcome } from "./target.ts";

/** Which messages. */
export interface FuzzRun {
  seed: number;
  /** The target's number, from 1. */
  number: number;
  /** Numbers of the messages, from 1. */
  messages: Iterable<number>;
  watchdog?: Watchdog | undefined;
  /** After so many violations there is enough to be mended. Default 5. */
  mostViolations?: number;
}

/** What became of them. `violations` tell all that is needed to have each again. */
export interface FuzzResult {
  accepted: number;
  refused: number;
  violations: string[];
}

/** What waits longer for its end than this has none, ms; the longest takes a few seconds, on a busy machine. */
const ENDLESS_MS = 90_000;
/** A message of more than this is put into a file, bytes. */
const MOST_SHOWN = 2048;
/** How long sockets may take to be closed by both sides, ms. */
const SETTLE_MS = 20_000;

/** The random numbers of one message. */
function randomOf(seed: number, target: number, message: number): SeededRandom {
  // Each multiplied by another odd number (Knuth's, and two of xxHash's): neighbours are far apart.
  return seededRandom(
    Math.imul(seed, 0x9e3779b1) ^ Math.imul(target, 0x85ebca6b) ^ Math.imul(message, 0xc2b2ae35) ^ message,
  );
}

/** Has a target read messages of its own making. */
export async function fuzz(target: FuzzTarget, run: FuzzRun): Promise<FuzzResult> {
  const { seed, number, messages, watchdog, mostViolations = 5 } = run;
  const result: FuzzResult = { accepted: 0, refused: 0, violations: [] };
  const filesBefore = openFiles();
  {
    using reader = new Reader(target);
    await using session = await target.open();
    for (const message of messages) {
      watchdog?.begins(seed, number, message);
      const { bytes, isGood } = session.generate(randomOf(seed, number, message));
      const outcome = await reader.read(session, bytes, isGood);
      if (outcome === "accepted" || outcome === "refused") result[outcome] += 1;
      else result.violations.push(describe(target, { seed, number, message, bytes, error: outcome }));
      if (result.violations.length >= mostViolations) break;
    }
    watchdog?.rests();
    if (result.violations.length === 0) await session.finish?.();
  }
  const left = await filesLeft(filesBefore);
  if (left > 0) result.violations.push(`${target.name}: ${left} file descriptors are left open (--seed ${seed})`);
  return result;
}

/** Has a target read one message that was kept. @throws where it is not read as it should be */
export async function replay(target: FuzzTarget, bytes: Buffer): Promise<void> {
  await using session = await target.open();
  using reader = new Reader(target);
  const outcome = await reader.read(session, bytes, false);
  if (outcome instanceof Error) throw outcome;
  await session.finish?.();
}

/** What nobody has caught: it would end the process. */
const STRAY = ["unhandledRejection", "uncaughtException"] as const;

/** Reads messages, and watches what happens meanwhile, until it is disposed of. */
class Reader implements Disposable {
  readonly #target: FuzzTarget;
  readonly #allocations = new Allocations();
  #stray: unknown;
  readonly #onStray = (error: unknown): void => {
    this.#stray ??= error ?? new Error("nothing was thrown, by somebody");
  };

  constructor(target: FuzzTarget) {
    this.#target = target;
    for (const event of STRAY) process.on(event, this.#onStray);
  }

  /** What became of a message, or what was wrong. */
  async read(session: FuzzSession, bytes: Buffer, isGood: boolean): Promise<Outcome | Error> {
    const { mostBytes } = this.#target;
    this.#allocations.reset();
    this.#stray = undefined;
    try {
      let outcome = session.run(bytes);
      if (outcome instanceof Promise) {
        outcome = await ended(outcome);
        await new Promise(setImmediate); // where rejections that nobody has caught are told
      }
      if (this.#stray !== undefined) {
        return new Error(`nobody has caught: ${String(this.#stray)}`, { cause: this.#stray });
      }
      const { largest } = this.#allocations;
      if (largest > mostBytes) return new Error(`${largest} bytes were asked for at once, ${mostBytes} are allowed`);
      if (isGood && outcome === "refused") return new Error("a good message was refused");
      return outcome;
    } catch (error) {
      return error instanceof Error ? error : new Error(`thrown: ${String(error)}`);
    }
  }

  [Symbol.dispose](): void {
    for (const event of STRAY) process.off(event, this.#onStray);
    this.#allocations[Symbol.dispose]();
  }
}

/** @throws where it does not end */
async function ended<T>(promise: Promise<T>): Promise<T> {
  const giveUp = new AbortController();
  const endless = sleep(ENDLESS_MS, undefined, { signal: giveUp.signal }).then(
    () => {
      throw new Error(`it does not end: ${ENDLESS_MS} ms were not enough`);
    },
    () => new Promise<never>(() => {}),
  );
  try {
    return await Promise.race([promise, endless]);
  } finally {
    giveUp.abort();
  }
}

interface Failure {
  seed: number;
  number: number;
  message: number;
  bytes: Buffer;
  error: Error;
}

function describe({ name }: FuzzTarget, { seed, number, message, bytes, error }: Failure): string {
  let shown = `the message, in hexadecimal: ${bytes.toString("hex")}`;
  if (bytes.length > MOST_SHOWN) {
    const file = join(tmpdir(), `clone-fuzz-${seed}-${number}-${message}.bin`);
    writeFileSync(file, bytes);
    shown = `the message (${bytes.length} bytes) is in ${file}; it begins ${bytes.toString("hex", 0, MOST_SHOWN)}`;
  }
  const cause = error.cause instanceof Error ? `\n  caused by ${ownStack(error.cause)}` : "";
  return [
    `${name}, message ${message} of seed ${seed}: ${ownStack(error)}${cause}`,
    `  again, alone: npm run test:fuzz -- --seed ${seed} --target ${number} --message ${message}`,
    `  ${shown}`,
  ].join("\n");
}

/** An error and where in this repository it comes from. */
function ownStack(error: Error): string {
  const lines = (error.stack ?? String(error)).split("\n");
  return lines.filter((line) => !/^ +at .*(node_modules|node:|fuzz\/fuzz)/.test(line)).join("\n");
}

function openFiles(): number {
  return readdirSync("/proc/self/fd").length;
}

/** How many more files are open than before, once sockets have had their time. */
async function filesLeft(before: number): Promise<number> {
  let left = openFiles() - before;
  for (let waitedMs = 0; left > 0 && waitedMs < SETTLE_MS; waitedMs += 20) {
    await sleep(20);
    left = openFiles() - before;
  }
  return Math.max(0, left);
}

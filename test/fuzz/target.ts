/**
 * What is fuzzed: something that reads what others have written. A target says how a message is made, and what holds of
 * every message: it is understood or refused with one of the documented errors; nothing else is thrown; no more memory is
 * asked for at once than its bound, whatever lengths a message announces; and whatever the target itself checks.
 */
import { readFileSync } from "node:fs";
import { CloneError } from "../../src/base/errors.ts";
import type { SeededRandom } from "../support/random.ts";
import { mutate } from "./mutate.ts";

/** What became of a message. */
export type Outcome = "accepted" | "refused";

/** A message, and whether it is known to be a good one: that must not be refused. */
export interface FuzzMessage {
  bytes: Buffer;
  isGood: boolean;
}

/** A target that is open, with the servers that it needs. */
export interface FuzzSession extends AsyncDisposable {
  /** Draws a message: all of it comes from `random`. */
  generate(random: SeededRandom): FuzzMessage;
  /** Has a message read. Throws where something is not as it must be. */
  run(message: Buffer): Outcome | Promise<Outcome>;
  /** After the last message: nothing is left of them, and others are still served. */
  finish?(): Promise<void>;
}

/** A target. */
export interface FuzzTarget {
  /** What messages are, in a word or two; also the name of its corpus and of its regressions. */
  name: string;
  /** Its part of all messages, relative to the other targets': what is fast has more. */
  weight: number;
  /** The most that may be asked for in one piece of memory, bytes. */
  mostBytes: number;
  open(): FuzzSession | Promise<FuzzSession>;
}

/** Something that must hold does not. */
export class Violation extends Error {}

/** @throws {Violation} where it does not hold */
export function mustHold(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Violation(what);
}

/** The outcome of what may throw CloneErrors, and `others` where they are documented, but nothing else. */
export function outcomeOf(read: () => void, ...others: (abstract new (...args: never[]) => Error)[]): Outcome {
  try {
    read();
    return "accepted";
  } catch (error) {
    return refusal(error, others);
  }
}

/** The same of what takes its time. */
export async function outcomeOfAsync(
  read: () => Promise<void>,
  ...others: (abstract new (
    ...args: never[]
  ) => Error)[]
): Promise<Outcome> {
  try {
    await read();
    return "accepted";
  } catch (error) {
    return refusal(error, others);
  }
}

function refusal(error: unknown, others: (abstract new (...args: never[]) => Error)[]): Outcome {
  if (error instanceof CloneError) {
    mustHold(
      error.message !== "" && !error.message.includes("[object Object]"),
      `an empty message: "${error.message}"`,
    );
    return "refused";
  }
  if (others.some((other) => error instanceof other)) return "refused";
  throw error;
}

/** The good messages of corpus/NAME.txt: each line is one, as a string of JSON. */
export function readCorpus(name: string): Buffer[] {
  const text = readFileSync(new URL(`corpus/${name}.txt`, import.meta.url), "utf8");
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => Buffer.from(JSON.parse(line) as string));
}

/** A target whose messages are texts, of a corpus, or made by its own grammar, and mutated. */
export interface TextTargetOptions {
  name: string;
  weight: number;
  mostBytes?: number;
  /** Default that of corpus/NAME.txt. */
  corpus?: readonly Buffer[];
  dictionary?: readonly string[];
  /** A good text, at random. */
  make?: (random: SeededRandom) => string;
  run: (text: string, bytes: Buffer) => Outcome | Promise<Outcome>;
}

/** More than any parser of a text asks for at once. */
const TEXT_BYTES = 4 * 1024 * 1024;

export function textTarget(options: TextTargetOptions): FuzzTarget {
  const { name, weight, mostBytes = TEXT_BYTES, make, run } = options;
  return {
    name,
    weight,
    mostBytes,
    open() {
      const corpus = options.corpus ?? readCorpus(name);
      const material = { others: corpus, dictionary: options.dictionary ?? [], isText: true };
      return {
        generate(random) {
          const isMade = make !== undefined && (corpus.length === 0 || random.oneIn(2));
          const good = isMade ? Buffer.from(make(random)) : random.pick(corpus);
          return random.oneIn(8)
            ? { bytes: good, isGood: true }
            : { bytes: mutate(good, random, material), isGood: false };
        },
        run: (message) => run(message.toString("utf8"), message),
        async [Symbol.asyncDispose]() {},
      };
    },
  };
}

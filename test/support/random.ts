/** Random numbers that come again from the same seed, for tests that run other programs and cannot be shrunk. */
import { createCipheriv, randomInt } from "node:crypto";

/** The seed of a random test: `CLONE_TEST_SEED` where that is set. A test that fails has to print it. */
export function testSeed(): number {
  const { CLONE_TEST_SEED = "" } = process.env;
  return CLONE_TEST_SEED === "" ? randomInt(2 ** 31) : Number.parseInt(CLONE_TEST_SEED, 10);
}

/** Draws from one sequence. */
export interface SeededRandom {
  /** An integer from `least` to `most`, both included. */
  integer(least: number, most: number): number;
  pick<T>(choices: readonly T[]): T;
  /** True once in `times`. */
  oneIn(times: number): boolean;
}

/** A sequence (Tommy Ettinger's mulberry32) from a 32-bit seed. */
export function seededRandom(seed: number): SeededRandom {
  let state = seed | 0;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const integer = (least: number, most: number) => least + Math.floor(next() * (most - least + 1));
  return {
    integer,
    pick: (choices) => choices[integer(0, choices.length - 1)] as (typeof choices)[number],
    oneIn: (times) => integer(1, times) === 1,
  };
}

/** Bytes of a sequence that nothing compresses: AES-128 in counter mode, under a key drawn from it. */
export function seededBytes(random: SeededRandom, length: number): Buffer {
  const key = Buffer.from(Array.from({ length: 16 }, () => random.integer(0, 255)));
  return createCipheriv("aes-128-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(length));
}

/** Of `contentBytes()` in this process. */
let content: SeededRandom | undefined;

/** Bytes of a disk, other ones each time: from `testSeed()`, so that those on which a test happens to depend come again, too. */
export function contentBytes(length: number): Buffer {
  content ??= seededRandom(~testSeed()); // not the sequence that the test itself may draw from that seed
  return seededBytes(content, length);
}

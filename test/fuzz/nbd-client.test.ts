// What a server sends, cut anywhere and in any order that is allowed: every request gets what it should. What becomes of replies that
// are mutated, and of handshakes, is in targets/nbd-replies.ts.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CloneError } from "../../src/base/errors.ts";
import { seededRandom } from "../support/random.ts";
import { feed, isAnsweredRight, isGuarded, session } from "./targets/nbd-replies.ts";

const seeds = fc.integer();

describe("A client's replies", () => {
  test("are understood however they are cut and mixed", () => {
    fc.assert(
      fc.property(seeds, fc.boolean(), (seed, structured) => {
        const random = seededRandom(seed);
        const { all, pieces } = session(random, structured);
        const requests = [...all.values()];
        expect(feed(Buffer.concat(pieces), all, structured, random)).toBeUndefined();
        expect(all.size).toBe(0);
        for (const asked of requests) {
          expect(isGuarded(asked)).toBe(true);
          expect(isAnsweredRight(asked), `request ${asked.cookie}`).toBe(true);
        }
      }),
      { numRuns: 300 },
    );
  });

  test("of nothing but noise are called a violation", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 40, maxLength: 300 }), seeds, (noise, seed) => {
        const random = seededRandom(seed);
        const { all } = session(random, true);
        expect(feed(Buffer.from(noise), all, true, random)).toBeInstanceOf(CloneError);
      }),
      { numRuns: 300 },
    );
  });
});

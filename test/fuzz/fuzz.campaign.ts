// Every reader of what others have written is given messages, good ones and mutated ones (fuzz.ts says what must hold of
// each). --messages N is shared out among the targets by their weights. --target K is one target alone, and --message I one
// message of it: both are what a violation is reported with.
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { campaign } from "../support/campaign.ts";
import { Watchdog } from "../support/watchdog.ts";
import { fuzz } from "./fuzz.ts";
import { TARGETS } from "./targets.ts";

const { seed: ownSeed, shard, shards, option, report } = campaign({ messages: 100_000, target: 0, message: 0 });
// A message is the same whichever shard reads it: by the campaign's seed, not the shard's.
const seed = (ownSeed + 2 ** 32 - ((shard * 0x1000_0000) % 2 ** 32)) % 2 ** 32;
const only = { target: option("target"), message: option("message") };

const numbered = TARGETS.map((target, index) => ({ target, number: index + 1, name: target.name })).filter(
  ({ number }) => only.target === 0 || number === only.target,
);
const weights = numbered.reduce((sum, { target }) => sum + target.weight, 0);

/** The messages of a target that are this shard's: a share of what is asked for, every `shards`th. */
function* messagesFor(weight: number): Generator<number> {
  if (only.message > 0) {
    if (shard === 0) yield only.message;
    return;
  }
  const count = Math.max(1, Math.round((option("messages") * weight) / weights));
  for (let message = 1 + shard; message <= count; message += shards) yield message;
}

let watchdog: Watchdog;
beforeAll(async () => {
  watchdog = await Watchdog.start(
    "fuzz: VIOLATION: a message does not end. Again, alone: npm run test:fuzz -- --seed %0 --target %1 --message %2",
  );
});
afterAll(() => watchdog[Symbol.asyncDispose]());

describe("Messages", () => {
  test.each(numbered)("of target $number, $name", async ({ target, number }) => {
    const { accepted, refused, violations } = await fuzz(target, {
      ...{ seed, number, watchdog },
      messages: messagesFor(target.weight),
    });
    const messages = accepted + refused + violations.length;
    report({ messages, accepted, refused, violations: violations.length, [target.name]: messages });
    expect(violations.join("\n\n")).toBe("");
  });
});

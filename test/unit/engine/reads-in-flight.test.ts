import { describe, expect, test } from "vitest";
import { type Fetch, ReadsInFlight } from "../../../src/engine/reads-in-flight.ts";
import { noise } from "../../support/layout.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const CONTENT = noise(1000, 1);

/** A source whose answers come when the test lets them. */
function setUp() {
  const reads = new ReadsInFlight();
  const asked: string[] = [];
  const answers = new Map<string, (error?: Error) => void>();
  const ask = (offset: number, bytes: Uint8Array): Promise<void> => {
    const name = `${offset}+${bytes.length}`;
    asked.push(name);
    return new Promise((resolve, reject) => {
      answers.set(name, (error) => {
        if (error !== undefined) return reject(error);
        bytes.set(CONTENT.subarray(offset, offset + bytes.length));
        resolve();
      });
    });
  };
  const answer = async (name: string, error?: Error): Promise<void> => {
    answers.get(name)?.(error);
    await whenIdle();
  };
  const begin = (offset: number, length: number) => {
    const memory = Buffer.alloc(length, 0xee);
    const fetch: Fetch = reads.fetch({ offset, length }, () => memory);
    const state = {
      fetch,
      memory,
      done: fetch.run(ask),
      right: () => memory.equals(CONTENT.subarray(offset, offset + length)),
    };
    state.done.catch(() => {});
    return state;
  };
  return { reads, asked, ask, answer, begin };
}

describe("ReadsInFlight", () => {
  test("asks only for what nobody has asked for, and gives every reader its bytes", async () => {
    const { asked, begin, answer, reads } = setUp();
    const a = begin(100, 100);
    const b = begin(300, 100);
    const c = begin(50, 500);
    expect(asked).toEqual(["100+100", "300+100", "50+50", "200+100", "400+150"]);
    expect(c.fetch.ownBytes).toBe(300);
    for (const name of asked) await answer(name);
    await Promise.all([a.done, b.done, c.done]);
    expect([a.right(), b.right(), c.right()]).toEqual([true, true, true]);
    for (const { fetch } of [a, b, c]) fetch.release();
    expect(reads.count).toBe(0);
  });

  test("gives bytes away in the turn in which they come: their owner may change them in the next", async () => {
    const { begin, answer } = setUp();
    const owner = begin(0, 100);
    const changed = owner.done.then(() => void owner.memory.fill(0));
    const joiner = begin(20, 50);
    await answer("0+100");
    await Promise.all([changed, joiner.done]);
    expect(joiner.right()).toBe(true);
  });

  test("gives what has come to whoever asks later, until it is released", async () => {
    const { asked, begin, answer } = setUp();
    const owner = begin(0, 100);
    await answer("0+100");
    const late = begin(10, 20);
    await late.done;
    expect([late.right(), late.fetch.ownBytes, asked.length]).toEqual([true, 0, 1]);
    late.fetch.release();
    owner.fetch.release();
    begin(10, 20);
    expect(asked).toEqual(["0+100", "10+20"]);
  });

  test("lets who joined a read that failed ask for itself, and fail by itself", async () => {
    const { asked, begin, answer, reads } = setUp();
    const owner = begin(0, 100);
    const lucky = begin(0, 50);
    const unlucky = begin(50, 100);
    await answer("0+100", new Error("first"));
    await expect(owner.done).rejects.toThrow("first");
    expect(asked).toEqual(["0+100", "100+50", "0+50", "50+50"]);
    await answer("100+50");
    await answer("0+50");
    await answer("50+50", new Error("second"));
    await lucky.done;
    await expect(unlucky.done).rejects.toThrow("second");
    expect(lucky.right()).toBe(true);
    for (const { fetch } of [owner, lucky, unlucky]) fetch.release();
    expect(reads.count).toBe(0);
  });

  test("settles only when nothing of a read is under way, though a part has failed before", async () => {
    const { begin, answer } = setUp();
    const middle = begin(40, 20);
    const whole = begin(0, 100);
    let settled = false;
    whole.done.catch(() => {
      settled = true;
    });
    await answer("0+40", new Error("bad"));
    await answer("60+40");
    expect(settled).toBe(false);
    await answer("40+20");
    await expect(whole.done).rejects.toThrow("bad");
    middle.fetch.release();
    whole.fetch.release();
  });

  test("lets who joined a read that was never begun ask for itself", async () => {
    const { asked, reads, begin, answer } = setUp();
    const waiting = reads.fetch({ offset: 0, length: 100 }, () => Buffer.alloc(100));
    const joiner = begin(0, 50);
    expect([asked, joiner.fetch.waitsForTurn]).toEqual([[], true]);
    waiting.release();
    await whenIdle();
    expect(asked).toEqual(["0+50"]);
    await answer("0+50");
    await joiner.done;
    expect(joiner.right()).toBe(true);
  });

  test("takes no memory before bytes come, and gives none to who has left", async () => {
    const { reads, begin, answer } = setUp();
    let taken = 0;
    const memory = (): Buffer => {
      taken++;
      return Buffer.alloc(100, 0xee);
    };
    const owner = begin(0, 100);
    const left = reads.fetch({ offset: 0, length: 100 }, memory);
    left.release();
    await answer("0+100");
    expect([taken, left.taken]).toEqual([0, undefined]);
    const late = reads.fetch({ offset: 0, length: 100 }, memory);
    expect([taken, late.taken?.length]).toEqual([1, 100]);
    owner.fetch.release();
  });
});

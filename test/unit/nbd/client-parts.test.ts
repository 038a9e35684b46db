// The parts of the NBD client that hold no connection, each against a plain model.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Coverage } from "../../../src/nbd/client/coverage.ts";
import { ExtentList } from "../../../src/nbd/client/extent-list.ts";
import { FlushLedger } from "../../../src/nbd/client/flush-ledger.ts";
import { inPieces } from "../../../src/nbd/client/in-pieces.ts";
import { RangeLock } from "../../../src/nbd/client/range-lock.ts";
import { RequestWindow } from "../../../src/nbd/client/request-window.ts";
import { serverWords } from "../../../src/nbd/client/server-words.ts";
import { StatusBudget } from "../../../src/nbd/client/status-budget.ts";
import { ViolationCount } from "../../../src/nbd/client/violation-count.ts";
import { ProtocolError } from "../../../src/nbd/protocol-error.ts";

describe("Coverage", () => {
  test("takes each byte once, in any order, and knows when all have come", () => {
    const length = 60;
    const piece = fc.tuple(fc.nat(length - 1), fc.integer({ min: 1, max: 9 }));
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 60 }), (pieces) => {
        const coverage = new Coverage();
        const come = new Set<number>();
        for (const [start, count] of pieces) {
          const end = Math.min(length, start + count);
          const bytes = Array.from({ length: end - start }, (_, index) => start + index);
          if (bytes.some((byte) => come.has(byte))) {
            expect(() => coverage.add(start, end)).toThrow(ProtocolError);
            return;
          }
          coverage.add(start, end);
          for (const byte of bytes) come.add(byte);
          for (const most of [1, 30, length]) {
            const all = Array.from({ length: most }, (_, index) => index).every((byte) => come.has(byte));
            expect(coverage.isWhole(most)).toBe(all);
          }
        }
      }),
      { numRuns: 2000 },
    );
  });

  test("refuses more pieces than there can be reason for", () => {
    const coverage = new Coverage();
    expect(() => {
      for (let at = 1; at < 100_000; at += 2) coverage.add(at, at + 1);
    }).toThrow(/too many pieces/);
  });
});

describe("FlushLedger", () => {
  test("tells of a loss where something was unflushed or under way, and else not", () => {
    const ledger = new FlushLedger();
    ledger.lose({ underWay: false });
    expect(ledger.hasLost).toBe(false);
    ledger.acknowledge();
    expect(ledger.succeed(ledger.begin())).toBe(true);
    ledger.lose({ underWay: false });
    expect(ledger.hasLost).toBe(false);
    ledger.lose({ underWay: true });
    expect(ledger.hasLost).toBe(true);
    ledger.tell();
    expect(ledger.hasLost).toBe(false);
    ledger.acknowledge();
    const mark = ledger.begin();
    ledger.acknowledge();
    expect(ledger.succeed(mark)).toBe(true);
    ledger.lose({ underWay: false }); // the second was not covered
    expect(ledger.hasLost).toBe(true);
    expect(ledger.succeed(ledger.begin())).toBe(true);
    expect(ledger.succeed(mark)).toBe(false);
  });
});

describe("inPieces()", () => {
  test("covers a range once, in pieces that begin at multiples, so many at a time", async () => {
    const numbers = fc.record({
      offset: fc.nat(50),
      length: fc.nat(200),
      most: fc.integer({ min: 1, max: 40 }),
      parallel: fc.integer({ min: 1, max: 5 }),
    });
    await fc.assert(
      fc.asyncProperty(numbers, async ({ offset, length, most, parallel }) => {
        const seen: number[] = [];
        let [running, peak] = [0, 0];
        await inPieces({ offset, length }, { most, parallel }, async (piece) => {
          peak = Math.max(peak, ++running);
          expect(piece.length).toBeGreaterThan(0);
          expect(piece.length).toBeLessThanOrEqual(most);
          if (piece.offset !== offset) expect(piece.offset % most).toBe(0);
          for (let byte = 0; byte < piece.length; byte++) seen.push(piece.offset + byte);
          await new Promise((resolve) => setImmediate(resolve));
          running -= 1;
        });
        expect(seen.sort((a, b) => a - b)).toEqual(Array.from({ length }, (_, index) => offset + index));
        expect(peak).toBeLessThanOrEqual(parallel);
      }),
    );
  });

  test("ends with the first error once all that was begun has ended, and begins nothing more", async () => {
    let [begun, ended] = [0, 0];
    const failed = inPieces({ offset: 0, length: 100 }, { most: 1, parallel: 4 }, async ({ offset }) => {
      begun += 1;
      if (offset === 1) throw new Error("bad byte");
      await new Promise((resolve) => setImmediate(resolve));
      ended += 1;
    });
    await expect(failed).rejects.toThrow("bad byte");
    expect([begun, ended]).toEqual([4, 3]);
  });
});

describe("RangeLock", () => {
  test("keeps changes of the same bytes apart, in order, and lets others pass", async () => {
    const change = fc.record({
      start: fc.nat(20),
      length: fc.integer({ min: 1, max: 8 }),
      turns: fc.nat(3),
      fails: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(change, { maxLength: 15 }), async (changes) => {
        const lock = new RangeLock();
        const busy = new Map<number, number>();
        const order: number[] = [];
        const all = changes.map(({ start, length, turns, fails }, index) =>
          lock
            .run(start, start + length, async () => {
              order.push(index);
              for (let byte = start; byte < start + length; byte++) {
                expect(busy.has(byte)).toBe(false);
                busy.set(byte, index);
              }
              for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
              for (let byte = start; byte < start + length; byte++) busy.delete(byte);
              if (fails) throw new Error("as told");
            })
            .catch((error) => expect(error.message).toBe("as told")),
        );
        await Promise.all(all);
        for (const [later, { start, length }] of changes.entries()) {
          for (const [earlier, other] of changes.slice(0, later).entries()) {
            const overlap = other.start < start + length && start < other.start + other.length;
            if (overlap) expect(order.indexOf(earlier)).toBeLessThan(order.indexOf(later));
          }
        }
      }),
    );
  });
});

describe("RequestWindow", () => {
  test("is never overfull, lets in whoever came first, and forgets nobody", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.nat(150), { maxLength: 300 }),
        fc.infiniteStream(fc.boolean()),
        async (sizes, coins) => {
          const window = new RequestWindow({ bytes: 100, requests: 5 });
          const inside: number[] = [];
          const entered: number[] = [];
          for (const [index, size] of sizes.entries()) {
            void window.enter(size).then(() => {
              inside.push(size);
              entered.push(index);
            });
            await Promise.resolve();
            await Promise.resolve();
            const bytes = inside.reduce((sum, each) => sum + each, 0);
            expect(inside.length).toBeLessThanOrEqual(5);
            expect(bytes <= 100 || inside.length === 1).toBe(true);
            if (coins.next().value && inside.length > 0) window.leave(inside.shift() as number);
          }
          while (entered.length < sizes.length || inside.length > 0) {
            await new Promise((resolve) => setImmediate(resolve));
            if (inside.length > 0) window.leave(inside.shift() as number);
          }
          expect(entered).toEqual(sizes.map((_, index) => index));
          expect(window.tryEnter(100)).toBe(true);
          expect(window.tryEnter(1)).toBe(false);
        },
      ),
    );
  });
});

describe("ExtentList", () => {
  test("keeps only so many extents, and then says less, but nothing wrong", () => {
    const count = 2 ** 20;
    const most = 1024 + count / 4096;
    const list = new ExtentList(0, count);
    const runs = Array.from({ length: count }, (_, index) => ({ length: 1, flags: index % 2 === 0 ? 3 : 0 }));
    list.append(0, runs);
    const extents = list.finish();
    expect(extents.length).toBe(most);
    expect(extents.at(-1)).toEqual({ offset: most - 1, length: count - most + 1, hole: false, zero: false });
  });

  test("looks at no more than its range", () => {
    let looked = 0;
    const endless = function* () {
      for (;;) {
        looked += 1;
        yield { length: 1000, flags: 3 };
      }
    };
    const list = new ExtentList(500, 4096);
    list.append(0, endless());
    expect(list.finish()).toEqual([{ offset: 500, length: 4096, hole: true, zero: true }]);
    expect(looked).toBe(5);
  });
});

describe("StatusBudget", () => {
  const MIB = 2 ** 20;

  test("takes whatever tells enough, and of what does not only so much", () => {
    const budget = new StatusBudget(512 * MIB);
    for (let i = 0; i < 10_000; i++) budget.spend({ asked: 512 * MIB, told: MIB, descriptors: 1 });
    for (let i = 0; i < 10_000; i++) budget.spend({ asked: 4096, told: 4096, descriptors: 1 });
    expect(budget.isSpent).toBe(false);
    for (let i = 0; i < 64 + 64; i++) {
      expect(budget.isSpent).toBe(false);
      budget.spend({ asked: 512 * MIB, told: MIB - 1, descriptors: 1 });
    }
    expect(budget.isSpent).toBe(true);
  });

  test("is spent by a million descriptors", () => {
    const budget = new StatusBudget(512 * MIB);
    budget.spend({ asked: 512 * MIB, told: 100 * MIB, descriptors: 2 ** 20 - 1 });
    expect(budget.isSpent).toBe(false);
    budget.spend({ asked: 512 * MIB, told: 100 * MIB, descriptors: 1 });
    expect(budget.isSpent).toBe(true);
  });
});

describe("ViolationCount", () => {
  const only = (serial: number) => ({ serial, lastSerial: serial });

  test("says when there were five in its time", () => {
    const count = new ViolationCount(1000);
    expect([0, 250, 500, 750, 1001, 1250].map((now, serial) => count.add(now, only(serial)))).toEqual([
      ...[false, false, false, false, false],
      true,
    ]);
  });

  test("counts those of connections that there were at the same time once", () => {
    const count = new ViolationCount(1000);
    for (let round = 0; round < 5; round++) {
      const answers = [0, 1, 2, 3].map((index) =>
        count.add(round, { serial: round * 4 + index, lastSerial: round * 4 + 3 }),
      );
      expect(answers).toEqual([round === 4, false, false, false]);
    }
  });
});

describe("serverWords()", () => {
  test("shows one line that no terminal obeys", () => {
    expect(serverWords(" no\u001b]0;x\u0007 \r\n way\u202e\u2028! ")).toBe("no ]0;x way !");
    expect(serverWords("x".repeat(5000)).length).toBe(200);
  });
});

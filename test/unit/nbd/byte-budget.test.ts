// The bound on memory: never more than it says, nobody starves, and what was taken comes back.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Allowance, ByteBudget } from "../../../src/nbd/byte-budget.ts";

describe("ByteBudget", () => {
  test("a reserve is always to be had, whatever others hold", () => {
    const budget = new ByteBudget(100);
    const open = () => budget.open({ reserve: 10, most: 1000, onAvailable: () => {} });
    const [greedy, modest] = [open(), open()];
    expect(greedy.tryTake(110)).toBe(true);
    expect(greedy.tryTake(1)).toBe(false);
    expect(modest.tryTake(10)).toBe(true);
    expect(modest.tryTake(1)).toBe(false);
    expect([greedy.held, modest.held, budget.used]).toEqual([110, 10, 100]);
  });

  test("more than one may hold is let in only alone", () => {
    const budget = new ByteBudget(100);
    const allowance = budget.open({ reserve: 0, most: 50, onAvailable: () => {} });
    expect(allowance.tryTake(500)).toBe(true);
    expect(allowance.tryTake(1)).toBe(false);
    allowance.give(500);
    expect(allowance.tryTake(40)).toBe(true);
    expect(allowance.tryTake(11)).toBe(false);
    expect(allowance.tryTake(10)).toBe(true);
  });

  test("who waited longest is first, and who leaves lets the next one in", async () => {
    const budget = new ByteBudget(100);
    const woken: string[] = [];
    const open = (name: string) => budget.open({ reserve: 0, most: 1000, onAvailable: () => woken.push(name) });
    const [holder, large, small] = [open("holder"), open("large"), open("small")];
    holder.tryTake(100);
    expect([large.tryTake(90), small.tryTake(1)]).toEqual([false, false]);
    expect(budget.contended).toBe(true);
    holder.give(50);
    expect(woken).toEqual([]); // never from inside of a call
    await null;
    expect(woken).toEqual(["large"]);
    expect([small.tryTake(1), large.tryTake(90)]).toEqual([false, false]);
    large.leave();
    await null;
    expect(woken).toEqual(["large", "small"]);
    expect(small.tryTake(1)).toBe(true);
    expect(budget.contended).toBe(false);
  });

  test("when more comes back than the first needs, the next is woken as well", async () => {
    const budget = new ByteBudget(100);
    const woken: string[] = [];
    const open = (name: string) => budget.open({ reserve: 0, most: 1000, onAvailable: () => woken.push(name) });
    const [holder, one, two] = [open("holder"), open("one"), open("two")];
    holder.tryTake(100);
    expect([one.tryTake(40), two.tryTake(40)]).toEqual([false, false]);
    holder.give(100);
    await null;
    expect(one.tryTake(40)).toBe(true);
    await null;
    expect(woken).toEqual(["one", "two"]);
    expect(two.tryTake(40)).toBe(true);
  });

  test("never lends more than there is, wakes who waits, and comes out even", async () => {
    const step = fc.record({ who: fc.nat(3), bytes: fc.integer({ min: 1, max: 80 }), give: fc.boolean() });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 200 }), async (steps) => {
        const budget = new ByteBudget(100);
        const woken = new Set<number>();
        const loans: number[][] = [[], [], [], []];
        const allowances: Allowance[] = loans.map((_, index) =>
          budget.open({ reserve: 20, most: 120, onAvailable: () => woken.add(index) }),
        );
        for (const { who, bytes, give } of steps) {
          const [allowance, mine] = [allowances[who] as Allowance, loans[who] as number[]];
          if (give) {
            const loan = mine.shift();
            if (loan !== undefined) allowance.give(loan);
          } else if (allowance.tryTake(bytes)) {
            mine.push(bytes);
          }
          const beyond = allowances.map(({ held }) => Math.max(0, held - 20));
          expect(beyond.reduce((sum, held) => sum + held, 0)).toBe(budget.used);
          expect(budget.used).toBeLessThanOrEqual(100);
        }
        for (const [index, mine] of loans.entries()) for (const loan of mine) allowances[index]?.give(loan);
        await null;
        expect(budget.used).toBe(0);
        if (budget.contended) expect(woken.size).toBeGreaterThan(0);
        // Whoever was woken takes, or leaves; then all have had their turn.
        for (let turn = 0; turn < 8; turn++) {
          for (const index of [...woken]) {
            woken.delete(index);
            allowances[index]?.leave();
          }
          await null;
        }
        expect(budget.contended).toBe(false);
      }),
    );
  });
});

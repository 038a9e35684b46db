import { describe, expect, test } from "vitest";
import { HintQueue } from "../../../src/engine/hint-queue.ts";
import { HydrationOrder } from "../../../src/engine/hydration-order.ts";

const range = (start: number, end: number) => ({ start, end });

/** All that is left, in order. */
function drain(hints: HintQueue): [number, number][] {
  const ranges: [number, number][] = [];
  for (let next = hints.next; next !== undefined; next = hints.next) {
    ranges.push([next.start, next.end]);
    hints.advance(next.end);
  }
  expect(hints.empty).toBe(true);
  return ranges;
}

describe("HintQueue", () => {
  test("has the newest neighbour of a read first, then what was asked for in the order it was", () => {
    const hints = new HintQueue();
    hints.add(range(10, 20), "asked");
    hints.add(range(1, 2), "nearby");
    hints.add(range(30, 40), "asked");
    hints.add(range(5, 6), "nearby");
    expect(hints.empty).toBe(false);
    expect(drain(hints)).toEqual([
      [5, 6],
      [1, 2],
      [10, 20],
      [30, 40],
    ]);
  });

  test("works a long range off in parts, with what is nearer in between", () => {
    const hints = new HintQueue();
    hints.add(range(0, 100), "asked");
    hints.advance(30);
    expect(hints.next).toEqual(range(30, 100));
    hints.add(range(7, 8), "nearby");
    expect(hints.next).toEqual(range(7, 8));
    hints.advance(8);
    expect(hints.next).toEqual(range(30, 100));
    hints.advance(20); // never back
    expect(hints.next).toEqual(range(30, 100));
    expect(drain(hints)).toEqual([[30, 100]]);
  });

  test("takes the same hint twice in a row once, and none that is empty", () => {
    const hints = new HintQueue();
    hints.add(range(5, 5), "asked");
    expect(hints.empty).toBe(true);
    for (let i = 0; i < 3; i++) hints.add(range(10, 20), "nearby");
    hints.add(range(12, 13), "nearby");
    expect(drain(hints)).toEqual([[10, 20]]);
  });

  test.for(["asked", "nearby"] as const)("keeps the newest 1024 that were %s", (kind) => {
    const hints = new HintQueue();
    for (let i = 0; i < 5000; i++) hints.add(range(2 * i, 2 * i + 1), kind);
    const starts = drain(hints).map(([start]) => start);
    expect(starts).toHaveLength(1024);
    expect(Math.min(...starts)).toBe(2 * (5000 - 1024));
  });

  test("changes nothing that the caller owns", () => {
    const hints = new HintQueue();
    const mine = range(0, 10);
    hints.add(mine, "asked");
    hints.advance(5);
    expect(mine).toEqual(range(0, 10));
    hints.advance(10);
    expect(hints.empty).toBe(true);
    hints.advance(3);
  });

  test("has what is ordered after all hints, and again when it is rewound", () => {
    const order = new HydrationOrder();
    for (const start of [40, 3, 70]) order.push(range(start, start + 2));
    const hints = new HintQueue(order);
    expect([hints.empty, hints.isOrdered, hints.next]).toEqual([false, true, range(40, 42)]);
    hints.advance(41);
    hints.add(range(10, 20), "asked");
    hints.add(range(5, 6), "nearby");
    expect([hints.isOrdered, hints.hasOrder]).toEqual([false, true]);
    expect(drain(hints)).toEqual([
      [5, 6],
      [10, 20],
      [41, 42],
      [3, 5],
      [70, 72],
    ]);
    expect(hints.hasOrder).toBe(false);
    hints.rewind();
    expect(drain(hints)).toEqual([
      [40, 42],
      [3, 5],
      [70, 72],
    ]);
  });
});

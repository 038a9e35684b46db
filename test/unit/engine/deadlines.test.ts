import { describe, expect, test } from "vitest";
import { Deadlines, Patience } from "../../../src/engine/deadlines.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

describe("Deadlines", () => {
  test("tells each when its time is up, and not those that have ended", async () => {
    const clock = new VirtualClock();
    const deadlines = new Deadlines(clock, 1000);
    const told: string[] = [];
    const start = (name: string) => deadlines.start(() => told.push(`${name} at ${clock.now()}`));
    start("a");
    await clock.sleep(300);
    const b = start("b");
    start("c");
    await clock.sleep(500);
    start("d");
    deadlines.end(b);
    await clock.sleep(5000);
    expect(told).toEqual(["a at 1000", "c at 1300", "d at 1800"]);
    start("e");
    await clock.sleep(5000);
    expect(told.at(-1)).toBe("e at 6800");
    expect(clock.sleeping).toBe(0);
  });

  test("keeps one sleeper for any number", async () => {
    const clock = new VirtualClock();
    const deadlines = new Deadlines(clock, 1000);
    for (let i = 0; i < 100; i++) deadlines.start(() => {});
    expect(clock.sleeping).toBe(1);
    deadlines.close();
    await clock.sleep(0);
    expect(clock.sleeping).toBe(0);
  });

  test("tells nobody after close(), except who comes later", async () => {
    const clock = new VirtualClock();
    const deadlines = new Deadlines(clock, 1000);
    const told: string[] = [];
    deadlines.start(() => told.push("a"));
    deadlines.close();
    deadlines.start(() => told.push("b"));
    await clock.sleep(5000);
    expect(told).toEqual(["b"]);
  });

  test("of Infinity never sleep", () => {
    const clock = new VirtualClock();
    const deadlines = new Deadlines(clock, Infinity);
    deadlines.end(deadlines.start(() => {}));
    deadlines.start(() => {});
    expect(clock.sleeping).toBe(0);
  });
});

describe("Patience", () => {
  test("begins with the first wait, covers all of them, and ends with the request", async () => {
    const clock = new VirtualClock();
    const deadlines = new Deadlines(clock, 1000);
    const patience = new Patience(deadlines, () => new Error("enough"));
    await clock.sleep(2000);
    expect(await patience.wait(clock.sleep(600).then(() => "first"))).toBe("first");
    const second = patience.wait(clock.sleep(600));
    const third = patience.wait(new Promise(() => {}));
    await expect(second).rejects.toThrow("enough");
    await expect(third).rejects.toBe(patience.error);
    expect(clock.now()).toBe(3000);
    await expect(patience.wait(new Promise(() => {}))).rejects.toThrow("enough");
    patience.end();

    const other = new Patience(deadlines, () => new Error("enough"));
    await other.wait(clock.sleep(10));
    other.end();
    await clock.sleep(5000);
    expect(other.error).toBeUndefined();
  });

  test("hands on what the promise is rejected with", async () => {
    const patience = new Patience(new Deadlines(new VirtualClock(), 1000), () => new Error("enough"));
    await expect(patience.wait(Promise.reject(new Error("theirs")))).rejects.toThrow("theirs");
    patience.end();
  });
});

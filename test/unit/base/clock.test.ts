import { getEventListeners } from "node:events";
import { expect, test, vi } from "vitest";
import { runningClock, systemClock } from "../../../src/base/clock.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

test("systemClock.sleep() resolves once its time has passed", async () => {
  vi.useFakeTimers();
  try {
    let awake = false;
    const sleeping = systemClock.sleep(5000).then(() => {
      awake = true;
    });
    await vi.advanceTimersByTimeAsync(4999);
    expect(awake).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(awake).toBe(true);
    await sleeping;
  } finally {
    vi.useRealTimers();
  }
});

test("systemClock.sleep() sleeps longer than a timer can, without waking in between", async () => {
  vi.useFakeTimers();
  try {
    let awake = false;
    void systemClock.sleep(2 ** 31 + 1000).then(() => {
      awake = true;
    });
    vi.advanceTimersByTime(2 ** 31 + 999); // a beat each second: too many to let promises go on after each
    await Promise.resolve();
    expect(awake).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(awake).toBe(true);
    expect(vi.getTimerCount()).toBe(0);
  } finally {
    vi.useRealTimers();
  }
});

test("systemClock.sleep() ends without an error when its signal aborts, and leaves neither timer nor listener", async () => {
  const controller = new AbortController();
  vi.useFakeTimers();
  try {
    const sleeping = systemClock.sleep(3_600_000, controller.signal);
    controller.abort();
    await sleeping;
    expect(vi.getTimerCount()).toBe(0);
    await systemClock.sleep(3_600_000, controller.signal); // aborted before it began
    const slept = new AbortController().signal;
    const shortSleep = systemClock.sleep(10, slept);
    expect(getEventListeners(slept, "abort")).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(10);
    await shortSleep;
    expect(getEventListeners(slept, "abort")).toHaveLength(0);
  } finally {
    vi.useRealTimers();
  }
});

/** A clock in a process that can be stopped: no timer fires meanwhile, and all that are due do afterwards. */
function stoppable() {
  let stoppedMs = 0;
  const clock = runningClock(() => performance.now() + stoppedMs);
  return {
    clock,
    stop(ms: number) {
      stoppedMs += ms;
    },
  };
}

test("runningClock() leaves out what the process was stopped, but for a second", async () => {
  vi.useFakeTimers();
  try {
    const { clock, stop } = stoppable();
    let awake = false;
    const began = clock.now();
    const sleeping = clock.sleep(30_000).then(() => {
      awake = true;
    });
    await vi.advanceTimersByTimeAsync(2500);
    const before = clock.now();
    stop(60_000);
    // Who is woken first looks at the time, as what handles an answer does.
    expect(clock.now() - before).toBe(1000);
    await vi.advanceTimersByTimeAsync(26_000);
    expect(awake).toBe(false);
    expect(clock.now() - began).toBe(29_500);
    await vi.advanceTimersByTimeAsync(1500);
    expect(awake).toBe(true);
    await sleeping;
    expect(vi.getTimerCount()).toBe(0);
  } finally {
    vi.useRealTimers();
  }
});

test("runningClock() sleeps on where a timer is due before its time has passed", async () => {
  vi.useFakeTimers();
  try {
    const clock = runningClock(() => performance.now() / 2);
    let awake = false;
    void clock.sleep(10_000).then(() => {
      awake = true;
    });
    await vi.advanceTimersByTimeAsync(19_990);
    expect(awake).toBe(false);
    await vi.advanceTimersByTimeAsync(10);
    expect(awake).toBe(true);
  } finally {
    vi.useRealTimers();
  }
});

test("runningClock() takes a late look for a busy machine, and counts it", async () => {
  vi.useFakeTimers();
  try {
    const { clock, stop } = stoppable();
    const over = new AbortController();
    const sleeping = clock.sleep(3_600_000, over.signal);
    await vi.advanceTimersByTimeAsync(1000);
    const before = clock.now();
    stop(2000);
    expect(clock.now() - before).toBe(2000);
    over.abort();
    await sleeping;
  } finally {
    vi.useRealTimers();
  }
});

test("runningClock() counts all time while nobody sleeps, who would have it looked at", async () => {
  vi.useFakeTimers();
  try {
    const { clock, stop } = stoppable();
    const before = clock.now();
    stop(60_000);
    expect(clock.now() - before).toBe(60_000);
    stop(60_000);
    const sleeping = clock.sleep(10);
    expect(clock.now() - before).toBe(120_000);
    await vi.advanceTimersByTimeAsync(10);
    await sleeping;
    expect(clock.now() - before).toBe(120_010);
  } finally {
    vi.useRealTimers();
  }
});

test("systemClock.sleep(0) lets the event loop turn", async () => {
  let hasTurned = false;
  setImmediate(() => {
    hasTurned = true;
  });
  await systemClock.sleep(0);
  await systemClock.sleep(0);
  expect(hasTurned).toBe(true);
});

test("systemClock.now() never goes back", () => {
  let last = systemClock.now();
  for (let i = 0; i < 1000; i++) {
    const now = systemClock.now();
    expect(now).toBeGreaterThanOrEqual(last);
    last = now;
  }
});

test("VirtualClock wakes sleepers in the order of their times and passes time only while all sleep", async () => {
  const clock = new VirtualClock();
  const log: string[] = [];
  const nap = async (name: string, ...times: number[]) => {
    for (const ms of times) {
      await clock.sleep(ms);
      log.push(`${name}@${clock.now()}`);
      for (let i = 0; i < 50; i++) await Promise.resolve();
    }
  };
  const stop = new AbortController();
  const stopped = clock.sleep(10 ** 9, stop.signal).then(() => log.push(`stopped@${clock.now()}`));
  await Promise.all([nap("a", 30, 30), nap("b", 20, 20, 20), nap("c", 60)]);
  expect(log).toEqual(["b@20", "a@30", "b@40", "c@60", "a@60", "b@60"]);
  stop.abort();
  await stopped;
  expect(log.at(-1)).toBe("stopped@60");
  expect(clock.sleeping).toBe(0);
});

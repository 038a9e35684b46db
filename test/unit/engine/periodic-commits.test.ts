import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import { PeriodicCommits } from "../../../src/engine/periodic-commits.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

/** Commits that take `ms` each, of which the n-th (from 1) fails; what is told, and when commits began. */
function makeCommits({ ms = 0, fails = Infinity, lossyUntil = 0 } = {}) {
  const clock = new VirtualClock();
  const begun: number[] = [];
  const ended: number[] = [];
  const failures: unknown[] = [];
  const periodic = new PeriodicCommits({
    clock,
    // Each of the first commits finds that something was lost.
    commits: {
      failure: undefined,
      get losses() {
        return Math.min(begun.length, lossyUntil);
      },
      async commit() {
        begun.push(clock.now());
        const index = begun.length;
        await clock.sleep(ms);
        ended.push(clock.now());
        if (index >= fails) throw new Error(`failure ${index}`);
      },
    },
    onFailure: (error) => void failures.push(error),
  });
  return { clock, periodic, begun, ended, failures };
}

describe("PeriodicCommits", () => {
  test("commits a second after the end of the last commit, from start to stop", async () => {
    const { clock, periodic, begun } = makeCommits({ ms: 100 });
    await clock.sleep(5000);
    expect(begun).toEqual([]);
    periodic.start();
    periodic.start();
    await clock.sleep(3500);
    await periodic.stop();
    await clock.sleep(10_000);
    expect(begun).toEqual([6000, 7100, 8200]);
    expect(clock.sleeping).toBe(0);
  });

  test("has no commit under way any more once it has stopped", async () => {
    const { clock, periodic, begun, ended } = makeCommits({ ms: 300 });
    periodic.start();
    await clock.sleep(1100);
    expect([begun.length, ended.length]).toEqual([1, 0]);
    await periodic.stop();
    expect([ended, clock.now()]).toEqual([[1300], 1300]);
    await periodic.stop();
  });

  test("tells of a failure once, and commits no more", async () => {
    const { clock, periodic, begun, failures } = makeCommits({ fails: 2 });
    periodic.start();
    await clock.sleep(10_000);
    expect(begun).toEqual([1000, 2000]);
    expect(failures).toEqual([new Error("failure 2")]);
    await periodic.stop();
    expect(clock.sleeping).toBe(0);
  });

  test("stops also where it never started", async () => {
    const { clock, periodic, begun } = makeCommits();
    await periodic.stop();
    periodic.start();
    await clock.sleep(5000);
    expect(begun).toEqual([]);
  });

  test("commits sooner where things are lost again and again, and gradually later when they are not", async () => {
    const { clock, periodic, begun } = makeCommits({ lossyUntil: 4 });
    periodic.start();
    await clock.sleep(10_000);
    await periodic.stop();
    const intervals = begun.map((at, index) => at - (begun[index - 1] ?? 0));
    expect(intervals.slice(0, 5)).toEqual([1000, 500, 250, 125, 125]);
    expect(intervals.slice(4)).toEqual(intervals.slice(4).toSorted((a, b) => a - b));
    expect(intervals.at(-1)).toBe(1000);
  });

  test("goes on where a commit only could not be made for now", async () => {
    const clock = new VirtualClock();
    let commits = 0;
    const periodic = new PeriodicCommits({
      clock,
      commits: {
        failure: undefined,
        losses: 0,
        async commit() {
          commits++;
          throw new DeviceError("Cannot flush", { errno: "ETIMEDOUT" });
        },
      },
      onFailure: () => expect.fail("it is no failure"),
    });
    periodic.start();
    await clock.sleep(3500);
    await periodic.stop();
    expect(commits).toBe(3);
  });
});

import { expect, test } from "vitest";
import { FlushQueue } from "../../../src/device/flush-queue.ts";

/** A sync whose every run ends when the test says so. */
function controlled() {
  const runs: { succeed: () => void; fail: (error: Error) => void }[] = [];
  const sync = () => new Promise<void>((succeed, fail) => runs.push({ succeed, fail }));
  return { runs, queue: new FlushQueue(sync) };
}

const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

test("FlushQueue.flush() during another waits for a run of its own, shared with others that wait", async () => {
  const { runs, queue } = controlled();
  const done: string[] = [];
  const first = queue.flush().then(() => done.push("first"));
  await settle();
  const second = queue.flush().then(() => done.push("second"));
  const third = queue.flush().then(() => done.push("third"));
  await settle();
  expect(runs.length).toBe(1); // one at a time
  runs[0]?.succeed();
  await first;
  await settle();
  expect(done).toEqual(["first"]);
  expect(runs.length).toBe(2);
  runs[1]?.succeed();
  await Promise.all([second, third]);
  expect(done).toEqual(["first", "second", "third"]);
  expect(runs.length).toBe(2);
});

test("FlushQueue.flush() that waits for one that fails gets its error, and nothing is synced any more", async () => {
  const { runs, queue } = controlled();
  const first = queue.flush();
  await settle();
  const second = queue.flush();
  const error = new Error("lost");
  runs[0]?.fail(error);
  await expect(first).rejects.toBe(error);
  await expect(second).rejects.toBe(error);
  await expect(queue.flush()).rejects.toBe(error);
  expect(() => queue.check()).toThrow(error);
  expect(runs.length).toBe(1);
});

test("FlushQueue.flush() syncs again each time it is asked", async () => {
  let syncs = 0;
  const queue = new FlushQueue(async () => {
    syncs += 1;
  });
  for (let i = 0; i < 3; i += 1) await queue.flush();
  expect(syncs).toBe(3);
  queue.check();
});

import { expect, test } from "vitest";
import { startDeadline } from "../../../src/base/deadline.ts";
import { ManualClock } from "../../support/manual-clock.ts";

test("A deadline is missed once its time has passed, and only once", async () => {
  const clock = new ManualClock();
  let missed = 0;
  const met = startDeadline(clock, 1000, () => void missed++);
  await clock.advance(999);
  expect(missed).toBe(0);
  await clock.advance(1);
  expect(missed).toBe(1);
  met();
  await clock.advance(10_000);
  expect(missed).toBe(1);
  expect(clock.sleeping).toBe(0);
});

test("A deadline that is met is never missed, even where its time passes in the same turn", async () => {
  const clock = new ManualClock();
  let missed = 0;
  const met = startDeadline(clock, 1000, () => void missed++);
  const moved = clock.advance(1000);
  met();
  await moved;
  met();
  expect(missed).toBe(0);
  expect(clock.sleeping).toBe(0);
});

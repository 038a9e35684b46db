import { expect, test } from "vitest";
import { patientGuard } from "../../../src/clone/patient-guard.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

/** A question whose answers are given by hand. */
function question() {
  const asked: { resolve: (change: Error | undefined) => void; reject: (error: Error) => void }[] = [];
  const ask = () => new Promise<Error | undefined>((resolve, reject) => asked.push({ resolve, reject }));
  return { asked, ask };
}

test("patientGuard() lets a commit pass when the source is what it was, and asks anew each time", async () => {
  const { asked, ask } = question();
  const guard = patientGuard(ask, new VirtualClock());
  for (let commit = 0; commit < 3; commit++) {
    const passing = guard();
    asked[commit]?.resolve(undefined);
    await passing;
  }
  expect(asked).toHaveLength(3);
});

test("patientGuard() fails a commit after a change, and every later one", async () => {
  const guard = patientGuard(async () => new Error("changed"), new VirtualClock());
  await expect(guard()).rejects.toThrow("changed");
  await expect(guard()).rejects.toThrow("changed");
});

test("patientGuard() does not wait for a source that hangs, asks it once, and heeds its late answer", async () => {
  const clock = new VirtualClock();
  const { asked, ask } = question();
  const guard = patientGuard(ask, clock);
  const first = guard();
  await first;
  await guard(); // at once
  expect(asked).toHaveLength(1);
  asked[0]?.resolve(new Error("changed"));
  await Promise.resolve();
  await expect(guard()).rejects.toThrow("changed");
});

test("patientGuard() takes no dead source for one that has changed", async () => {
  const dead = Object.assign(new Error("ENOTCONN"), { code: "ENOTCONN" });
  const guard = patientGuard(() => Promise.reject(dead), new VirtualClock());
  await guard();
  await guard();
});

test("patientGuard() does not hide a mistake", async () => {
  const guard = patientGuard(() => Promise.reject(new TypeError("mistake")), new VirtualClock());
  await expect(guard()).rejects.toThrow("mistake");
});

// Commands that say by a file that they run. What is told to end has its time by the clock, whatever passes in the world.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { CaptiveCommand } from "../../../src/cli/captive-command.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { eventually } from "../../support/run-clone.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const SERVER = { uris: ["nbd+unix:///?socket=/nowhere"], exportName: "" };

test("CaptiveCommand.terminate() ends a command that does not end by itself, when its time has passed", async () => {
  await using place = await scratchDirectory();
  const [runs, told] = [join(place.path, "runs"), join(place.path, "told")];
  const clock = new ManualClock();
  const command = new CaptiveCommand(
    `trap ': > "${told}"' TERM; : > "${runs}"; while :; do sleep 0.05; done`,
    SERVER,
    clock,
  );
  await eventually("it runs", () => existsSync(runs));
  command.terminate();
  command.terminate();
  await eventually("it was told", () => existsSync(told));
  expect(clock.sleeping).toBe(1);
  await clock.advance(9_999);
  expect(await Promise.race([command.ended, new Promise((resolve) => setTimeout(resolve, 200, "runs"))])).toBe("runs");
  await clock.advance(1);
  expect(await command.ended).toBe(128 + 9);
});

test("CaptiveCommand.terminate() leaves nothing behind of a command that ends", async () => {
  await using place = await scratchDirectory();
  const runs = join(place.path, "runs");
  const clock = new ManualClock();
  const command = new CaptiveCommand(`trap 'exit 3' TERM; : > "${runs}"; while :; do sleep 0.05; done`, SERVER, clock);
  await eventually("it runs", () => existsSync(runs));
  command.terminate();
  expect(await command.ended).toBe(3);
  expect(clock.sleeping).toBe(0);
});

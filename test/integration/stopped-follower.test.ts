// Whoever only follows a clone that is served may be stopped for longer than the server may take to answer: the answer is there.
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { cloneOk, eventually, startClone } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

/** More than the answer to a question may take, ms. */
const STOPPED_MS = 7500;

test("`clone hydrate` that follows a server follows on after it was stopped", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(`${cwd}/disk.img`, 4 * 2 ** 20);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await using server = await startServe({ clone: "copy.img", cwd, args: ["--rate", "64K"] });
  const follower = startClone(["hydrate", "copy.img", "--progress", "none"], { cwd });
  await eventually("it follows", () => follower.output().stderr.includes("only stops following"));
  await sleep(1000); // it asks for one status after the other
  process.kill(follower.pid, "SIGSTOP");
  await sleep(STOPPED_MS);
  process.kill(follower.pid, "SIGCONT");
  await sleep(1000); // what it held against the server it would have said by now
  await server.tune("--rate", "max");
  const { code, stderr } = await follower.done;
  expect(stderr).not.toContain("Cannot reach");
  expect(code, stderr).toBe(0);
  await stopServe(server);
});

// What `clone` finds when it starts: how many threads Node has for files, and an environment that is the user's own.
import { cp, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { run, scratchDirectory } from "../support/scratch.ts";

const BIN = fileURLToPath(new URL("../../bin", import.meta.url));

/** In place of the program: says how many threads there are once the pool has been used, and what children would see. */
const PROGRAM = `
  import { readdirSync } from "node:fs";
  import { stat } from "node:fs/promises";
  export async function run() {
    await stat("/");
    const { UV_THREADPOOL_SIZE: variable = null } = process.env;
    console.log(JSON.stringify({ threads: readdirSync("/proc/self/task").length, variable }));
  }`;

test("the thread pool has 16 threads, or as many as the user says, and the environment is passed on as it was", async () => {
  await using scratch = await scratchDirectory();
  await cp(BIN, join(scratch.path, "bin"), { recursive: true });
  await mkdir(join(scratch.path, "dist/cli"), { recursive: true });
  await writeFile(join(scratch.path, "package.json"), '{ "type": "module" }');
  await writeFile(join(scratch.path, "dist/cli/main.js"), PROGRAM);
  const started = async (...environment: string[]) => {
    const program = join(scratch.path, "bin/clone.js");
    return JSON.parse(await run("env", "-u", "UV_THREADPOOL_SIZE", ...environment, process.execPath, program));
  };
  const one = await started("UV_THREADPOOL_SIZE=1");
  expect(one.variable).toBe("1");
  expect(await started()).toEqual({ threads: one.threads + 15, variable: null });
  expect(await started("UV_THREADPOOL_SIZE=5")).toEqual({ threads: one.threads + 4, variable: "5" });
});

#!/usr/bin/env node
/**
 * CommonJS, which Node reads without its thread pool: the pool takes its size from the environment when it is first used, and
 * to read a module is a use (Node 20). Sixteen threads, since a slow source keeps many of them waiting at a time; as many as
 * the user says, where he does.
 */
const { access } = require("node:fs");
const { resolve } = require("node:path");
const { pathToFileURL } = require("node:url");

const { UV_THREADPOOL_SIZE: wanted } = process.env;
process.env.UV_THREADPOOL_SIZE ??= "16";

const main = resolve(__dirname, "../dist/cli/main.js");
access(main, async (missing) => {
  // That was the first use. The programs that we start get the environment that we got.
  if (wanted === undefined) delete process.env.UV_THREADPOOL_SIZE;
  if (missing) build();
  const { run } = await import(pathToFileURL(main).href);
  await run(process.argv.slice(2));
});

/** A checkout whose install scripts did not run has not been compiled yet: do now what `prepare` would have done. */
function build() {
  const { spawnSync } = require("node:child_process");
  const root = resolve(__dirname, "..");
  const { status } = spawnSync("npm", ["run", "--silent", "build"], { cwd: root, stdio: ["ignore", 2, 2] });
  if (status === 0) return;
  process.stderr.write("clone: Cannot start: this checkout is not built\nRun `npm install`, then `npm run build`.\n");
  process.exit(1);
}

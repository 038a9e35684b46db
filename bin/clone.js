#!/usr/bin/env node
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const main = new URL("../dist/cli/main.js", import.meta.url);
if (!existsSync(main)) build();
const { run } = await import(main.href);
await run(process.argv.slice(2));

/** A checkout whose install scripts did not run has not been compiled yet: do now what `prepare` would have done. */
function build() {
  const root = fileURLToPath(new URL("..", import.meta.url));
  const { status } = spawnSync("npm", ["run", "--silent", "build"], { cwd: root, stdio: ["ignore", 2, 2] });
  if (status === 0) return;
  process.stderr.write("clone: Cannot start: this checkout is not built\nRun `npm install`, then `npm run build`.\n");
  process.exit(1);
}

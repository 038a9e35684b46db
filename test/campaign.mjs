// Runs a campaign, a long search for faults that prints what it looked at:
//
//     node test/campaign.mjs NAME [--OPTION N]…        npm run test:sim -- --states 1000000 --seed 7
//
// The campaign is every file test/NAME/*.campaign.ts, run once in each of as many shards as there are processors (or
// --shards N). Each shard takes its share of what is asked for, and adds its figures (test/support/campaign.ts), whose sums
// are the last line (added to the file CAMPAIGN_SUMMARY, too, where that is set). The seed is printed first; --seed, or
// CLONE_TEST_SEED, takes it back.
//
// Interrupted, it ends when all that it has started has ended: what its files have mounted or attached they let go of first.
import { spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, constants, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { descendantsOf, signalAll, stillRunning } from "./support/process-tree.mjs";

/** How long what is interrupted may take to clean up after itself, ms. */
const PATIENCE_MS = 20_000;

const [name, ...rest] = process.argv.slice(2);
if (name === undefined || name.startsWith("-")) fail("usage: node test/campaign.mjs NAME [--OPTION N]…");

const { CLONE_TEST_SEED = "" } = process.env;
const options = {
  seed: CLONE_TEST_SEED === "" ? randomInt(2 ** 31) : Number(CLONE_TEST_SEED),
  shards: availableParallelism(),
};
const { tokens } = parseArgs({ args: rest, strict: false, tokens: true });
for (let index = 0; index < tokens.length; index++) {
  const token = tokens[index];
  if (token.kind !== "option") fail(`campaign ${name}: "${token.value}" is no option`);
  const following = tokens[index + 1];
  // A word without a number is a switch: --all.
  const text = token.inlineValue ? token.value : following?.kind === "positional" ? following.value : "1";
  if (!token.inlineValue && following?.kind === "positional") index++;
  if (!/^\d+$/.test(text)) fail(`campaign ${name}: --${token.name} takes a number, not "${text}"`);
  options[token.name] = Number(text);
}

const folder = mkdtempSync(join(tmpdir(), "clone-campaign-"));
const figures = join(folder, "figures");
writeFileSync(figures, "");
console.log(`${name}: seed ${options.seed}`);
const began = Date.now();
const child = spawn(
  process.execPath,
  ["node_modules/vitest/vitest.mjs", "run", "--config", "test/campaign.config.ts"],
  {
    stdio: "inherit",
    env: {
      ...process.env,
      CAMPAIGN_NAME: name,
      CAMPAIGN_OPTIONS: JSON.stringify(options),
      CAMPAIGN_FIGURES: figures,
      CAMPAIGN_SHARDS: String(options.shards),
    },
  },
);
/** What has interrupted it; more of the same changes nothing. */
let interrupted;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, () => {
    interrupted ??= endAll(signal);
  });
}

child.on("close", async (code) => {
  const signal = await interrupted;
  const lines = readFileSync(figures, "utf8").split("\n").filter(Boolean);
  rmSync(folder, { recursive: true });
  if (signal !== undefined) {
    console.error(`${name}: interrupted (seed ${options.seed})`);
    process.exit(128 + constants.signals[signal]);
  }
  const sums = {};
  for (const line of lines) {
    for (const [what, count] of Object.entries(JSON.parse(line))) sums[what] = (sums[what] ?? 0) + count;
  }
  const told = Object.entries(sums).map(([what, count]) => `${count.toLocaleString("en")} ${what}`);
  const seconds = Math.round((Date.now() - began) / 1000);
  const line = `${name}: ${told.join(", ") || "no figures"} (seed ${options.seed}, ${seconds} s)`;
  console.log(line);
  if (process.env.CAMPAIGN_SUMMARY) appendFileSync(process.env.CAMPAIGN_SUMMARY, `${line}\n`);
  process.exitCode = code === 0 && told.length > 0 ? 0 : 1;
});

/**
 * Passes a signal on to all that was started, waits for it to end, and ends by force what does not. A terminal's Ctrl-C they
 * have all been sent already; a second one would cut their cleaning up short.
 */
async function endAll(signal) {
  const started = descendantsOf(process.pid);
  if (signal !== "SIGINT") signalAll(started, signal);
  const until = Date.now() + PATIENCE_MS;
  while (stillRunning(started).length > 0 && Date.now() < until) await sleep(100);
  signalAll(started, "SIGKILL");
  return signal;
}

function fail(message) {
  console.error(message);
  process.exit(2);
}

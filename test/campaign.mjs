// Runs a campaign, a long search for faults that prints what it looked at:
//
//     node test/campaign.mjs NAME [--OPTION N]…        npm run test:sim -- --states 1000000 --seed 7
//
// The campaign is every file test/NAME/*.campaign.ts, run once in each of as many shards as there are processors (or
// --shards N). Each shard takes its share of what is asked for, and adds its figures (test/support/campaign.ts), whose sums
// are the last line (added to the file CAMPAIGN_SUMMARY, too, where that is set). The seed is printed first; --seed takes it back.
import { spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

const [name, ...rest] = process.argv.slice(2);
if (name === undefined || name.startsWith("-")) fail("usage: node test/campaign.mjs NAME [--OPTION N]…");

const options = { seed: randomInt(2 ** 31), shards: availableParallelism() };
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
child.on("close", (code) => {
  const lines = readFileSync(figures, "utf8").split("\n").filter(Boolean);
  rmSync(folder, { recursive: true });
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

function fail(message) {
  console.error(message);
  process.exit(2);
}

// @ts-check
/**
 * What each kind of source costs before it asks anything: the time from the start of a process until its modules are loaded.
 *
 *     node test/bench/start-up.mjs [--rounds N]
 *
 * Each row is a process of its own that loads what that kind needs, on top of Node itself; rows are interleaved, medians count.
 */
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values } = parseArgs({ options: { rounds: { type: "string", default: "9" } } });
const rounds = Number(values.rounds);
if (!Number.isInteger(rounds) || rounds < 1) throw new Error("--rounds N: at least 1");

const dist = (/** @type {string} */ path) => fileURLToPath(new URL(`../../dist/${path}`, import.meta.url));

/** What is loaded, by what for. */
const KINDS = /** @type {const} */ ([
  ["Node itself", []],
  ["a file", [dist("clone/open-devices.js")]],
  ["NBD", [dist("clone/open-devices.js"), dist("nbd/client/nbd-device.js")]],
  ["HTTP", [dist("clone/open-devices.js"), dist("device/http/http-device.js")]],
  [
    "S3, keys in the environment",
    [
      dist("clone/open-devices.js"),
      dist("device/s3/s3-device.js"),
      "@smithy/signature-v4",
      "@smithy/shared-ini-file-loader",
    ],
  ],
  [
    "S3, keys of the SDK's chain",
    [
      ...[dist("clone/open-devices.js"), dist("device/s3/s3-device.js"), "@smithy/signature-v4"],
      ...["@smithy/shared-ini-file-loader", "@aws-sdk/credential-provider-node"],
    ],
  ],
]);

/** @type {Map<string, number[]>} */
const times = new Map(KINDS.map(([name]) => [name, []]));
for (let round = 0; round < rounds; round++) {
  for (const [name, modules] of KINDS) {
    const script = modules.map((module) => `await import(${JSON.stringify(module)});`).join("\n");
    const began = performance.now();
    const { status, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
      cwd: fileURLToPath(new URL("../..", import.meta.url)),
      encoding: "utf8",
    });
    if (status !== 0) throw new Error(`${name}: ${stderr}`);
    times.get(name)?.push(performance.now() - began);
  }
}

console.log("What is loaded for a source, ms from the start of the process\n");
for (const [name, all] of times) {
  const sorted = [...all].sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)] ?? 0;
  console.log(`${name.padEnd(30)} ${median.toFixed(0).padStart(5)}`);
}

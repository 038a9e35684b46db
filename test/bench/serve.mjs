// @ts-check
/**
 * How fast `clone serve` is, next to other NBD servers of the same files. fio loads them over one connection each, in
 * interleaved rounds; medians and ratios are printed, and the processor time of the server, which says more on a machine that
 * others use too. The files lie in memory, so that the servers are measured and no disk.
 *
 *     node test/bench/serve.mjs [--rounds N] [--seconds N] [--size SIZE] [--dir DIR]
 *                               [--only hydrated,unhydrated,foreground,memory] [--clone FILE]
 *
 * `--seconds` is the length of each measurement. DIR (default /dev/shm) needs room for eight times SIZE.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Contenders } from "./contenders.mjs";
import { fio } from "./fio.mjs";
import { assertSame, findProgram, makeImage } from "./images.mjs";
import { median, printTable, shuffled } from "./measure.mjs";
import { fail, parseSize, parseTables, positive } from "./options.mjs";
import { memoryOf, processorTimeOf } from "./servers.mjs";

/** @typedef {import("./contenders.mjs").Contender} Contender */
/** @typedef {import("./fio.mjs").Load} Load */
/** @typedef {import("./fio.mjs").Measured & { processorTime: number }} Measured seconds of the server, in all */
/** @typedef {import("./servers.mjs").Server} Server */

const MIB = 2 ** 20;
const KIB = 1024;
const TABLES = ["hydrated", "unhydrated", "foreground", "memory"];

const { values: options } = parseArgs({
  options: {
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "3" },
    size: { type: "string", default: "1G" },
    dir: { type: "string", default: "/dev/shm" },
    only: { type: "string", default: TABLES.join(",") },
    clone: { type: "string", default: fileURLToPath(new URL("../../bin/clone.js", import.meta.url)) },
  },
});
const rounds = positive("rounds", options.rounds);
const seconds = positive("seconds", options.seconds);
const size = parseSize(options.size);
const tables = parseTables(options.only, TABLES);
for (const program of ["fio", "nbdkit", "qemu-nbd", "qemu-storage-daemon", "qemu-img"]) {
  if (findProgram(program) === undefined) fail(`${program} is not installed`);
}

const stop = new AbortController();
for (const name of /** @type {const} */ (["SIGINT", "SIGTERM"])) process.once(name, () => stop.abort());

const folder = mkdtempSync(join(resolve(options.dir), "clone-bench-"));
const source = join(folder, "source.img");
const contenders = new Contenders({ folder, source, program: resolve(options.clone), signal: stop.signal });
try {
  makeImage(source, { size });
  if (tables.includes("hydrated")) await benchHydrated();
  if (tables.includes("unhydrated")) await benchUnhydrated();
  if (tables.includes("foreground")) await benchForeground();
  if (tables.includes("memory")) await benchMemory();
} catch (error) {
  if (!stop.signal.aborted) process.stderr.write(`serve: ${/** @type {Error} */ (error).message}\n`);
  process.exitCode = stop.signal.aborted ? 130 : 1;
} finally {
  await contenders.stop();
  rmSync(folder, { recursive: true, force: true });
}

/** Table 1: what a clone costs once all is there. */
async function benchHydrated() {
  const all = [contenders.hydratedClone(), contenders.nbdkitFile(), contenders.qemuNbd()];
  const servers = new Map();
  for (const { name, start } of all) servers.set(name, await start());
  /** @type {{ title: string, load: Load, aim: string }[]} */
  const loads = [
    {
      title: "4K random reads, 16 in flight (aim: 1.00 to nbdkit, 2.50 to qemu-nbd)",
      load: { rw: "randread", blockSize: 4 * KIB, depth: 16, size, seconds },
      aim: "iops",
    },
    {
      title: "4K random writes, 16 in flight (aim: 0.80 to nbdkit, 2.00 to qemu-nbd)",
      load: { rw: "randwrite", blockSize: 4 * KIB, depth: 16, size, seconds },
      aim: "iops",
    },
    {
      title: "256K reads, 8 in flight (aim: 0.90 to nbdkit)",
      load: { rw: "read", blockSize: 256 * KIB, depth: 8, size, seconds },
      aim: "bytes",
    },
    {
      title: "256K writes, 8 in flight (aim: 0.90 to nbdkit)",
      load: { rw: "write", blockSize: 256 * KIB, depth: 8, size, seconds },
      aim: "bytes",
    },
  ];
  for (const { title, load, aim } of loads) {
    const results = await inRounds(all, ({ name }) => measure(servers.get(name), load));
    const [unit, value] = aim === "iops" ? ["kIOPS", kiloIops] : ["MiB/s", mebibytesPerSecond];
    printRatios(`Hydrated: ${title}`, results, /** @type {string} */ (unit), /** @type {typeof kiloIops} */ (value));
  }
  await contenders.stop();
}

/** Table 2: each block read once, in random order, and kept; everybody begins with nothing. */
async function benchUnhydrated() {
  const load = /** @type {Load} */ ({ rw: "randread", blockSize: 64 * KIB, depth: 8, size });
  const own = contenders.unhydratedClone("on");
  const results = await inRounds([own, contenders.nbdkitCow(), contenders.qemuCopyOnRead()], async ({ start }) => {
    const server = await start();
    const measured = await measure(server, load);
    await server.stop();
    return measured;
  });
  printRatios(
    "Unhydrated, what is read is kept: 64K random reads, 8 in flight (aim: more than the others)",
    results,
    "MiB/s",
    mebibytesPerSecond,
  );
  contenders.clone("hydrate", own.destination, "--progress", "none");
  assertSame(source, own.destination);
}

/** Table 3: what clients notice of hydration at full speed. The source is read again and again by a new clone. */
async function benchForeground() {
  // Short, or everything is hydrated before it is over.
  const load = /** @type {Load} */ ({
    rw: "randread",
    blockSize: 4 * KIB,
    depth: 1,
    size,
    seconds: Math.min(seconds, 2),
  });
  /** @type {number[][]} */
  const measurements = [];
  let hydratedIn = 0;
  for (let round = 0; round < rounds; round++) {
    const { start, destination } = contenders.unhydratedClone("off");
    const server = await start();
    const idle = await measure(server, load);
    const before = statusOf(destination).hydratedRegions;
    contenders.clone("tune", destination, "--resume");
    const busy = await measure(server, load);
    const { hydratedRegions, regions, regionSize } = statusOf(destination);
    if (hydratedRegions === regions)
      throw new Error("hydrated before fio was done: a larger --size, or fewer --seconds");
    hydratedIn += (hydratedRegions - before) * regionSize;
    measurements.push([idle.p99, busy.p99, busy.p99 / idle.p99, idle.iops, busy.iops]);
    await server.stop();
    progress(round);
  }
  const column = (/** @type {number} */ index) => median(measurements.map((row) => row[index] ?? Number.NaN));
  const background = hydratedIn / MIB / (rounds * seconds);
  printTable(
    "Foreground: 4K random reads, 1 in flight, while all else is hydrated without a limit (aim: p99 at most 3.00)",
    ["", "p99", "to idle", "IOPS", "hydrated"],
    [
      ["paused", microseconds(column(0)), "1.00", column(3).toFixed(0), "0 MiB/s"],
      [
        "hydrating",
        microseconds(column(1)),
        column(2).toFixed(2),
        column(4).toFixed(0),
        `${background.toFixed(0)} MiB/s`,
      ],
    ],
  );
}

/** Table 4: resident memory. */
async function benchMemory() {
  const rows = [];
  const server = await contenders.unhydratedClone("on").start();
  rows.push(["idle, nobody connected yet", mebibytes(memoryOf(server.pid).resident)]);
  for (const rw of /** @type {const} */ (["randread", "randwrite", "read", "write"])) {
    for (const [blockSize, depth] of /** @type {const} */ ([
      [4 * KIB, 64],
      [256 * KIB, 16],
      [4 * MIB, 8],
    ])) {
      await measure(server, { rw, blockSize, depth, size, seconds });
    }
  }
  rows.push(["the most under load", mebibytes(memoryOf(server.pid).peak)]);
  rows.push(["idle afterwards", mebibytes(memoryOf(server.pid).resident)]);
  printTable("Memory (aim: 90 MiB idle, 200 MiB under load)", ["", "RSS"], rows);
  await server.stop();
}

/**
 * @param {Server} server
 * @param {Load} load
 * @returns {Promise<Measured>}
 */
async function measure({ uri, pid }, load) {
  const before = processorTimeOf(pid);
  const measured = await fio(uri, load, stop.signal);
  return { ...measured, processorTime: processorTimeOf(pid) - before };
}

/**
 * Every contender once a round, each round in another order: see `measure.mjs`.
 * @param {Contender[]} all
 * @param {(contender: Contender) => Promise<Measured>} measureOne
 * @returns {Promise<Map<string, Measured[]>>} by name
 */
async function inRounds(all, measureOne) {
  const results = new Map(all.map(({ name }) => [name, /** @type {Measured[]} */ ([])]));
  for (let round = 0; round < rounds; round++) {
    for (const contender of shuffled(all)) results.get(contender.name)?.push(await measureOne(contender));
    progress(round);
  }
  return results;
}

/**
 * @param {string} destination
 * @returns {{ regions: number, hydratedRegions: number, regionSize: number }}
 */
function statusOf(destination) {
  return JSON.parse(contenders.clone("status", destination, "--json"));
}

/**
 * Prints medians, and the ratio of the first contender's to each.
 * @param {string} title
 * @param {Map<string, Measured[]>} results
 * @param {string} unit
 * @param {(measured: Measured) => number} value the more, the better
 */
function printRatios(title, results, unit, value) {
  const rows = [...results].map(([name, each]) => ({
    name,
    values: each.map(value),
    p99: median(each.map(({ p99 }) => p99)),
    processor: median(each.map(({ processorTime, requests }) => processorTime / requests)),
  }));
  const own = median(rows[0]?.values ?? []);
  printTable(
    title,
    ["", unit, "min", "max", "p99", "processor", "clone to it"],
    rows.map(({ name, values, p99, processor }) => [
      name,
      median(values).toFixed(1),
      Math.min(...values).toFixed(1),
      Math.max(...values).toFixed(1),
      microseconds(p99),
      microseconds(processor),
      (own / median(values)).toFixed(2),
    ]),
  );
}

/** @param {Measured} measured */
function kiloIops({ iops }) {
  return iops / 1000;
}

/** @param {Measured} measured */
function mebibytesPerSecond({ bytesPerSecond }) {
  return bytesPerSecond / MIB;
}

/** @param {number} value seconds */
function microseconds(value) {
  return `${(value * 1e6).toFixed(value < 1e-4 ? 1 : 0)} us`;
}

/** @param {number} bytes */
function mebibytes(bytes) {
  return `${(bytes / MIB).toFixed(0)} MiB`;
}

/** @param {number} round */
function progress(round) {
  if (process.stderr.isTTY) process.stderr.write(`\rround ${round + 1} of ${rounds} `);
  if (process.stderr.isTTY && round + 1 === rounds) process.stderr.write("\n");
}

// @ts-check
/**
 * How fast clones of remote sources are, next to what people use today. The far end is a process of this machine: nbdkit, whose
 * reads take as long as over a long line, or nginx. Every copy is checked to be identical; the checks, and the removal of what the
 * run before left, are not timed. A last table holds the ratios against what is aimed for; whatever it says, the exit code is 0.
 *
 *     node test/bench/remote.mjs [--rounds N] [--dir DIR] [--only delay,online,local,boot,http] [--clone FILE]
 *                                [--size SIZE] [--delayed-size SIZE] [--boot-size SIZE] [--reads N] [--link BITS]
 *
 * `--size` (2G) is what goes over a socket without delay and over HTTP, `--delayed-size` (256M) what is read with 50 ms, `--boot-size`
 * (4G) and `--reads` (2000) the image that boots and its reads, `--link` (1G) what its line carries, in bits per second. DIR needs room
 * for three times SIZE and should be a real file system, not a tmpfs.
 */
import { closeSync, mkdirSync, mkdtempSync, openSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { BootBench } from "./boot.mjs";
import { assertSame, findProgram, makeImage } from "./images.mjs";
import { compete, median, printResults, printTable, run } from "./measure.mjs";
import { parseSize, parseTables, positive } from "./options.mjs";
import { RemotePeers } from "./remote-peers.mjs";

/** @typedef {import("./measure.mjs").Contender} Contender */
/** @typedef {import("./measure.mjs").Result} Result */

const MIB = 2 ** 20;
const TABLES = ["delay", "online", "local", "boot", "http"];
const DELAY_MS = 50;
const BOOT_DELAY_MS = 20;
const MOST_MEMORY = 250 * MIB;

const { values: options } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
    size: { type: "string", default: "2G" },
    "delayed-size": { type: "string", default: "256M" },
    "boot-size": { type: "string", default: "4G" },
    reads: { type: "string", default: "2000" },
    link: { type: "string", default: "1G" },
    dir: { type: "string", default: tmpdir() },
    only: { type: "string", default: TABLES.join(",") },
    clone: { type: "string", default: fileURLToPath(new URL("../../bin/clone.js", import.meta.url)) },
  },
});
const rounds = positive("rounds", options.rounds);
const reads = positive("reads", options.reads);
const size = parseSize(options.size);
const delayedSize = parseSize(options["delayed-size"]);
const bootSize = parseSize(options["boot-size"]);
const tables = parseTables(options.only, TABLES);
const program = [process.execPath, resolve(options.clone)];

const stop = new AbortController();
for (const name of /** @type {const} */ (["SIGINT", "SIGTERM"])) process.once(name, () => stop.abort());

mkdirSync(options.dir, { recursive: true });
const folder = mkdtempSync(join(resolve(options.dir), "clone-bench-"));
const source = join(folder, "source.img");
const destination = join(folder, "destination.img");
const peers = new RemotePeers({ folder, signal: stop.signal });
/** The ratios, and the memory, that are aimed for. @type {{ what: string, value: number, most?: number, least?: number, unit?: string }[]} */
const aims = [];
try {
  for (const [table, bench] of Object.entries({
    delay: benchDelay,
    online: benchOnline,
    local: benchLocal,
    boot: benchBoot,
    http: benchHttp,
  })) {
    if (tables.includes(table)) await bench();
    await peers.stop();
    rmSync(source, { force: true });
  }
  printAims();
} catch (error) {
  // One wrong or failed copy makes the whole comparison worthless.
  if (!stop.signal.aborted) process.stderr.write(`remote: ${/** @type {Error} */ (error).message}\n`);
  process.exitCode = stop.signal.aborted ? 130 : 1;
} finally {
  await peers.stop();
  rmSync(folder, { recursive: true, force: true });
}

/** Table 1: copying over a long line. */
async function benchDelay() {
  if (!have("nbdkit", "nbdcopy")) return;
  makeImage(source, { size: delayedSize });
  const { uri } = await peers.nbdkit(source, { delayMs: DELAY_MS });
  const results = await compete([cloneCopy(uri), copier("nbdcopy", ["nbdcopy", "--flush", uri, destination])], {
    rounds,
    signal: stop.signal,
  });
  printResults(`Copying ${options["delayed-size"]} of which each read takes ${DELAY_MS} ms`, results, "clone copy");
  aims.push({ what: "delayed copy: time, to nbdcopy", value: ratio(results, "clone copy", "nbdcopy"), most: 1.3 });
  addMemory("delayed copy", results);
}

/** Table 2: hydrating a clone that is served, over a long line. */
async function benchOnline() {
  if (!have("nbdkit", "qemu-storage-daemon", "qemu-img")) return;
  makeImage(source, { size: delayedSize });
  const server = await peers.nbdkit(source, { delayMs: DELAY_MS });
  const socket = join(folder, "serve.socket");
  /** @type {Contender[]} */
  const contenders = [
    {
      name: "clone serve",
      before: () => create(server.uri),
      command: [...program, "serve", destination, "--socket", socket, "--exit-when-hydrated"],
      after: checkAndRemove,
      watchMemory: true,
    },
    {
      name: "qemu block-stream, job alone",
      measure: () => peers.blockStream(server, source, delayedSize),
    },
  ];
  const results = await compete(contenders, { rounds, signal: stop.signal });
  printResults(
    `Hydrating ${options["delayed-size"]} online, of which each read takes ${DELAY_MS} ms`,
    results,
    "clone serve",
  );
  aims.push({
    what: "delayed online hydration: times as fast as block-stream",
    value: ratio(results, "qemu block-stream, job alone", "clone serve"),
    least: 20,
  });
  addMemory("delayed online hydration", results);
}

/** Table 3: no delay at all, so that what counts is the work. */
async function benchLocal() {
  if (!have("nbdkit", "nbdcopy")) return;
  makeImage(source, { size });
  const { uri } = await peers.nbdkit(source);
  const results = await compete([cloneCopy(uri), copier("nbdcopy", ["nbdcopy", "--flush", uri, destination])], {
    rounds,
    signal: stop.signal,
  });
  printResults(`Copying ${options.size} over a unix socket, durable at the end`, results, "clone copy");
  aims.push({ what: "local copy: time, to nbdcopy", value: ratio(results, "clone copy", "nbdcopy"), most: 1.2 });
  addMemory("local copy", results);
}

/** Table 4: a machine that boots from a clone of which nothing is there, reading here and there, one read after the other. */
async function benchBoot() {
  if (!have("nbdkit", "qemu-io")) return;
  makeImage(source, { size: bootSize });
  const trace = join(folder, "boot.trace");
  const bench = new BootBench({ folder, source, destination, size: bootSize, reads, program, signal: stop.signal });
  const near = await peers.nbdkit(source);
  await bench.boot(near.uri, ["--record-trace", trace]);
  bench.remove();
  await near.stop();

  const { uri } = await peers.nbdkit(source, { delayMs: BOOT_DELAY_MS, bitsPerSecond: options.link });
  /** How much was there when the last read was answered. @type {Map<string, number>} */
  const hydrated = new Map();
  const booting = (/** @type {string} */ name, /** @type {string[]} */ ...args) => ({
    name,
    measure: async () => {
      const booted = await bench.boot(uri, args);
      hydrated.set(name, booted.hydrated);
      return booted;
    },
    after: () => bench.remove(),
  });
  const contenders = [booting("cold"), booting("with --order", "--order", trace)];
  const results = await compete(contenders, { rounds, signal: stop.signal });
  printResults(
    `Booting: ${reads} random reads of 16K, one after the other, of ${options["boot-size"]}, at ${BOOT_DELAY_MS} ms and ${options.link}bit/s`,
    results,
    "with --order",
  );
  for (const [name, share] of hydrated) {
    process.stdout.write(`${name}: ${(100 * share).toFixed(0)} % hydrated at the last read of the last round\n`);
  }
  aims.push({
    what: "boot: times as fast with --order as cold",
    value: ratio(results, "cold", "with --order"),
    least: 5,
  });
  addMemory("boot", results);
}

/** Table 5: HTTP. */
async function benchHttp() {
  if (!have("nginx", "curl")) return;
  makeImage(source, { size });
  const { url } = await peers.nginx(source);
  const contenders = [
    cloneCopy(url),
    copier("curl -o", ["curl", "-sf", "-o", destination, url]),
    copier("curl -o, sync -d", ["sh", "-c", `curl -sf -o "$1" "$2" && sync -d "$1"`, "sh", destination, url]),
  ];
  const results = await compete(contenders, { rounds, signal: stop.signal });
  printResults(`Copying ${options.size} from nginx (curl -o leaves it in the page cache)`, results, "clone copy");
  aims.push({ what: "HTTP: throughput, to curl -o", value: ratio(results, "curl -o", "clone copy"), least: 0.8 });
  addMemory("HTTP", results);
}

/**
 * @param {string} uri
 * @returns {Contender}
 */
function cloneCopy(uri) {
  return { ...copier("clone copy", [...program, "copy", uri, destination, "--progress", "none"]), watchMemory: true };
}

/**
 * Somebody who makes the destination.
 * @param {string} name
 * @param {string[]} command
 * @returns {Contender}
 */
function copier(name, command) {
  return { name, command, before: () => syncAndWarm(), after: checkAndRemove };
}

/** What the last removal freed is given back to the disk now rather than in somebody's time, and the source is in the page cache. */
async function syncAndWarm() {
  await run(["sync", "-f", folder], stop.signal);
  const fd = openSync(source, "r");
  try {
    const buffer = Buffer.allocUnsafe(4 * MIB);
    while (readSync(fd, buffer) > 0) stop.signal.throwIfAborted();
  } finally {
    closeSync(fd);
  }
}

/** @param {string} uri */
async function create(uri) {
  await syncAndWarm();
  await run([...program, "create", uri, destination], stop.signal);
}

function checkAndRemove() {
  assertSame(source, destination);
  for (const path of [destination, `${destination}.clone`]) rmSync(path, { force: true });
}

/**
 * How many times as long `one` takes as `other`, by the medians.
 * @param {Result[]} results
 * @param {string} one
 * @param {string} other
 */
function ratio(results, one, other) {
  const timeOf = (/** @type {string} */ name) => median(results.find((result) => result.name === name)?.times ?? []);
  return timeOf(one) / timeOf(other);
}

/**
 * @param {string} what
 * @param {Result[]} results
 */
function addMemory(what, results) {
  const watched = results.map(({ peaks }) => peaks).filter(({ own }) => own > 0);
  const most = (/** @type {"own" | "children"} */ whose) => Math.max(...watched.map((peaks) => peaks[whose]));
  aims.push({ what: `${what}: most memory`, value: most("own") / MIB, most: MOST_MEMORY / MIB, unit: " MiB" });
  if (most("children") > 0) {
    aims.push({ what: `${what}: and of its children`, value: most("children") / MIB, unit: " MiB" });
  }
}

function printAims() {
  const rows = aims.map(({ what, value, most, least, unit = "" }) => {
    const aim = most !== undefined ? `at most ${most}${unit}` : least !== undefined ? `at least ${least}${unit}` : "";
    const isMet = value <= (most ?? Number.POSITIVE_INFINITY) && value >= (least ?? 0);
    return [what, `${value.toFixed(unit === "" ? 2 : 0)}${unit}`, aim, aim === "" ? "" : isMet ? "met" : "missed"];
  });
  printTable(`Aims, medians of ${rounds}`, ["", "is", "aim", ""], rows);
}

/**
 * Whether all of these are installed; says what is not.
 * @param {string[]} programs
 */
function have(...programs) {
  const missing = programs.filter((name) => findProgram(name) === undefined);
  if (missing.length > 0) process.stdout.write(`\nSkipped a table: ${missing.join(", ")} is not installed\n`);
  return missing.length === 0;
}

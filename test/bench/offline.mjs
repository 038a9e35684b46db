// @ts-check
/**
 * How fast `clone copy` is, next to what people use today. Every result is checked to be identical; the checks, the
 * removal of what the run before left, and the reading of the source into the page cache are not timed. All end with
 * the data durable.
 *
 *     node test/bench/offline.mjs [--rounds N] [--size SIZE] [--dir DIR] [--cold] [--zeros SHARE]
 *                                 [--only copy,sparse,reflink,memory,startup] [--clone FILE]
 *                                 [--contender 'NAME=SHELL COMMAND WITH "$SOURCE" AND "$DEST"']...
 *
 * `--cold` drops the page cache before each run (root only), `--zeros 0.3` writes three tenths of the source as zeros.
 * DIR needs room for twice SIZE and should be a real file system, not a tmpfs.
 */
import { execFileSync } from "node:child_process";
import { createReadStream, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { assertSame, findProgram, makeImage, mountFileSystem } from "./images.mjs";
import { compete, printResults, printTable, run } from "./measure.mjs";
import { fail, parseSize, parseTables, positive } from "./options.mjs";

/** @typedef {import("./measure.mjs").Contender} Contender */
/** @typedef {Contender & { command: string[] }} Copier */

const GIB = 2 ** 30;
const MIB = 2 ** 20;
const TABLES = ["copy", "sparse", "reflink", "memory", "startup"];

const { values: options } = parseArgs({
  options: {
    rounds: { type: "string", default: "5" },
    size: { type: "string", default: "2G" },
    dir: { type: "string", default: tmpdir() },
    cold: { type: "boolean", default: false },
    zeros: { type: "string", default: "0" },
    only: { type: "string", default: TABLES.join(",") },
    clone: { type: "string", default: fileURLToPath(new URL("../../bin/clone.js", import.meta.url)) },
    contender: { type: "string", multiple: true, default: [] },
  },
});
const rounds = positive("rounds", options.rounds);
const size = parseSize(options.size);
const zeros = Number(options.zeros);
if (!(zeros >= 0 && zeros <= 1)) fail(`--zeros is a share from 0 to 1, not ${options.zeros}`);
const root = process.getuid?.() === 0;
if (options.cold && !root) fail("--cold needs root: only root may drop the page cache");
const tables = parseTables(options.only, TABLES);
const cloneFile = resolve(options.clone);

const stop = new AbortController();
for (const name of /** @type {const} */ (["SIGINT", "SIGTERM"])) process.once(name, () => stop.abort());

mkdirSync(options.dir, { recursive: true });
const folder = mkdtempSync(join(resolve(options.dir), "clone-bench-"));
try {
  if (tables.includes("copy")) await benchCopy();
  if (tables.includes("sparse")) await benchSparse();
  if (tables.includes("reflink")) for (const type of /** @type {const} */ (["xfs", "btrfs"])) await benchReflink(type);
  if (tables.includes("memory")) await benchMemory();
  if (tables.includes("startup")) await benchStartup();
} catch (error) {
  // One wrong or failed copy makes the whole comparison worthless.
  if (!stop.signal.aborted) process.stderr.write(`offline: ${/** @type {Error} */ (error).message}\n`);
  process.exitCode = stop.signal.aborted ? 130 : 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}

/** Table 1: a source full of data, on one file system. */
async function benchCopy() {
  const source = join(folder, "source.img");
  const destination = join(folder, "destination.img");
  makeImage(source, { size, zeros });
  const contenders = copiers(source, destination).map((copier) => prepared(copier, source, destination));
  const results = await compete(contenders, { rounds, signal: stop.signal });
  printResults(
    `${options.size} of data, ${options.cold ? "cold" : "warm"} source, durable at the end`,
    results,
    "clone",
  );
  rmSync(source);
}

/** Table 2: holes must cost next to nothing. */
async function benchSparse() {
  const dense = join(folder, "dense.img");
  const sparse = join(folder, "sparse.img");
  const data = Math.min(GIB, size);
  const apparent = 100 * data;
  makeImage(dense, { size: data });
  makeImage(sparse, { size: apparent, data, extents: 64 });
  const destination = join(folder, "destination.img");
  const contenders = [
    { name: "clone, the data alone", command: clone("copy", dense, destination), source: dense },
    { name: "clone, sparse", command: clone("copy", sparse, destination), source: sparse },
    ...copiers(sparse, destination)
      .filter(({ name }) => name !== "clone")
      .map(({ name, command }) => ({ name: `${name}, sparse`, command, source: sparse })),
  ].map((copier) => prepared(copier, copier.source, destination));
  const results = await compete(contenders, { rounds, signal: stop.signal });
  printResults(
    `${apparent / GIB} GiB with ${data / GIB} GiB of data in 64 extents (aim: at most 1.10 to the data alone)`,
    results,
    "clone, the data alone",
  );
  rmSync(dense);
  rmSync(sparse);
}

/**
 * Table 3: sharing instead of copying.
 * @param {"xfs" | "btrfs"} type
 */
async function benchReflink(type) {
  const missing = !root
    ? "it needs root to mount a loop device"
    : findProgram(`mkfs.${type}`)
      ? undefined
      : `mkfs.${type} is not installed`;
  if (missing !== undefined) return skip(`reflink on ${type}`, missing);
  const mounted = mountFileSystem(folder, type, 2 * size + 2 * GIB);
  try {
    const source = join(mounted.path, "source.img");
    const destination = join(mounted.path, "destination.img");
    makeImage(source, { size });
    const contenders = [
      { name: "clone", command: clone("copy", source, destination) },
      {
        name: "cp --reflink=always, sync -d",
        command: shell(`cp --reflink=always "$1" "$2" && sync -d "$2"`, source, destination),
      },
    ].map((copier) => prepared(copier, source, destination));
    const results = await compete(contenders, { rounds, signal: stop.signal });
    printResults(`${options.size} shared by reflink on ${type} (aim: under 0.5 s)`, results, "clone");
  } finally {
    mounted.remove();
  }
}

/** Table 4: peak memory on 1 TiB at the default 64 KiB regions. */
async function benchMemory() {
  const source = join(folder, "large.img");
  const destination = join(folder, "destination.img");
  makeImage(source, { size: 1024 * GIB, data: 512 * MIB, extents: 512 });
  const rows = [];
  for (const command of [clone("copy", source, destination, "--region-size", "64K")]) {
    const { peaks } = await run(command, stop.signal, { watchMemory: true });
    assertSame(source, destination);
    rows.push(["clone copy", `${(peaks.own / MIB).toFixed(0)} MiB`]);
  }
  printTable(
    "Peak memory, 1 TiB at 64K regions, 512 MiB of data in 512 extents (aim: under 200 MiB)",
    ["", "peak RSS"],
    rows,
  );
  rmSync(source);
  rmSync(destination);
}

/** Table 5: what starting costs. */
async function benchStartup() {
  const results = await compete(
    [
      { name: "node -e 0", command: [process.execPath, "-e", "0"] },
      { name: "clone --help", command: [process.execPath, cloneFile, "--help"] },
      { name: "clone --version", command: [process.execPath, cloneFile, "--version"] },
    ],
    { rounds: 4 * rounds + 1, signal: stop.signal },
  );
  printResults("Start-up (aim: --help at most 2.50 to node -e 0)", results, "node -e 0");
}

/**
 * Who copies `source` to `destination`, as far as installed here.
 * @param {string} source
 * @param {string} destination
 * @returns {Copier[]}
 */
function copiers(source, destination) {
  const own = { name: "clone", command: clone("copy", source, destination) };
  const others = [
    { needs: "cp", name: "cp, sync -d", script: `cp --reflink=never "$1" "$2" && sync -d "$2"` },
    // Left to its default, qemu-img convert never flushes.
    {
      needs: "qemu-img",
      name: "qemu-img -W -m 8, sync -d",
      script: `qemu-img convert -W -m 8 -f raw -O raw "$1" "$2" && sync -d "$2"`,
    },
    {
      needs: "qemu-img",
      name: "qemu-img -W -m 8 -t none",
      script: `qemu-img convert -W -m 8 -t none -f raw -O raw "$1" "$2"`,
    },
    { needs: "nbdcopy", name: "nbdcopy --flush", script: `nbdcopy --flush -- "$1" "$2"` },
  ];
  const extra = options.contender.map((text) => {
    const [name = "", ...script] = text.split("=");
    if (name === "" || script.length === 0) fail(`--contender is NAME=COMMAND, not ${text}`);
    return { name, command: shell(`SOURCE=$1 DEST=$2; ${script.join("=")}`, source, destination) };
  });
  const installed = others.filter(({ needs, name }) => {
    if (findProgram(needs) !== undefined) return true;
    skip(name, `${needs} is not installed`);
    return false;
  });
  return [
    own,
    ...installed.map(({ name, script }) => ({ name, command: shell(script, source, destination) })),
    ...extra,
  ];
}

/**
 * The contender with a fresh destination before, and a comparison and removal after.
 * @param {Copier} contender
 * @param {string} source
 * @param {string} destination
 * @returns {Contender}
 */
function prepared({ name, command }, source, destination) {
  return {
    name,
    command,
    async before() {
      // What the last removal freed is given back to the disk now rather than in somebody's time.
      execFileSync("sync", ["-f", folder]);
      if (options.cold) writeFileSync("/proc/sys/vm/drop_caches", "3\n");
      else await readData(source);
    },
    after() {
      assertSame(source, destination);
      rmSync(destination);
    },
  };
}

/**
 * Brings a source back into the page cache, from where another contender may have thrown it.
 * @param {string} path
 */
async function readData(path) {
  // A sparse image is not worth reading through: its few data would take seconds to find.
  if (path.endsWith("sparse.img")) return;
  for await (const _ of createReadStream(path, { highWaterMark: MIB, signal: stop.signal }));
}

/** @param {string[]} args */
function clone(...args) {
  const quiet = args[0] === "copy" ? ["--progress", "none"] : [];
  return [process.execPath, cloneFile, ...args, ...quiet];
}

/**
 * @param {string} script
 * @param {string[]} args
 */
function shell(script, ...args) {
  return ["sh", "-c", script, "sh", ...args];
}

/**
 * @param {string} what
 * @param {string} why
 */
function skip(what, why) {
  process.stdout.write(`\nSkipped ${what}: ${why}\n`);
}

// @ts-check
/**
 * Runs commands against each other and compares the medians.
 *
 * The rounds are interleaved and each round is in another order: a machine that others use drifts, and what a run finds
 * (free blocks, page cache) is what its predecessor left. So only the ratios of one call mean anything.
 */
import { spawn } from "node:child_process";
import { MemoryWatch, noPeaks } from "./memory.mjs";

/** @typedef {import("./memory.mjs").Peaks} Peaks */

/**
 * @typedef {object} Contender
 * @property {string} name what the table calls it
 * @property {string[]} [command] program and arguments; the whole of it is timed
 * @property {() => Promise<Measured>} [measure] instead of a command: does what is timed, and times it
 * @property {() => void | Promise<void>} [before] puts the disk in order; not timed
 * @property {() => void | Promise<void>} [after] checks the result and throws if it is wrong; not timed
 * @property {boolean} [watchMemory] whether to look at its memory while it runs
 */

/**
 * @typedef {object} Measured
 * @property {number} seconds
 * @property {Peaks} peaks zero unless watched
 */

/**
 * @typedef {object} Result
 * @property {string} name the contender
 * @property {number[]} times seconds, one per round
 * @property {Peaks} peaks the highest of all rounds; zero unless watched
 */

/**
 * Runs every contender once per round.
 * @param {Contender[]} contenders
 * @param {{ rounds: number, signal: AbortSignal }} options
 * @returns {Promise<Result[]>} in the order of `contenders`
 * @throws {Error} naming the contender, when its command or its check fails
 */
export async function compete(contenders, { rounds, signal }) {
  const results = new Map(
    contenders.map(({ name }) => [name, /** @type {Result} */ ({ name, times: [], peaks: noPeaks() })]),
  );
  for (let round = 0; round < rounds; round++) {
    for (const { name, command = [], measure, before, after, watchMemory = false } of shuffled(contenders)) {
      await before?.();
      const { seconds, peaks } = await (measure?.() ?? run(command, signal, { watchMemory }));
      const result = /** @type {Result} */ (results.get(name));
      result.times.push(seconds);
      result.peaks.own = Math.max(result.peaks.own, peaks.own);
      result.peaks.children = Math.max(result.peaks.children, peaks.children);
      try {
        await after?.();
      } catch (error) {
        throw new Error(`${name}: ${/** @type {Error} */ (error).message}`, { cause: error });
      }
    }
    if (process.stderr.isTTY) process.stderr.write(`\rround ${round + 1} of ${rounds} `);
  }
  if (process.stderr.isTTY) process.stderr.write("\n");
  return [...results.values()];
}

/**
 * Runs one command to its end.
 * @param {string[]} command program and arguments
 * @param {AbortSignal} signal kills it
 * @param {{ watchMemory?: boolean }} [options] `watchMemory` polls the peak memory, which costs a little time
 * @returns {Promise<Measured>}
 */
export async function run(command, signal, { watchMemory = false } = {}) {
  const [program = "", ...args] = command;
  const start = performance.now();
  const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"], signal });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text) => {
    complaint = (complaint + text).slice(-2000);
  });
  const watch = watchMemory && child.pid !== undefined ? new MemoryWatch(child.pid) : undefined;
  try {
    /** @type {number | null} */
    const code = await new Promise((resolve, reject) => child.on("error", reject).on("close", resolve));
    const seconds = (performance.now() - start) / 1000;
    if (code !== 0) throw new Error(`${command.join(" ")} exited with ${code}\n${complaint}`.trim());
    return { seconds, peaks: watch?.peaks ?? noPeaks() };
  } finally {
    watch?.stop();
  }
}

/**
 * @template T
 * @param {readonly T[]} items
 * @returns {T[]}
 */
export function shuffled(items) {
  return items
    .map((item) => ({ item, key: Math.random() }))
    .sort((a, b) => a.key - b.key)
    .map(({ item }) => item);
}

/** @param {readonly number[]} values not empty */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

/**
 * Prints the medians with their ratios to the fastest and to one contender.
 * @param {string} title
 * @param {Result[]} results
 * @param {string} reference name of the contender that the last column compares with
 */
export function printResults(title, results, reference) {
  const medians = new Map(results.map(({ name, times }) => [name, median(times)]));
  const fastest = Math.min(...medians.values());
  const own = medians.get(reference) ?? Number.NaN;
  printTable(
    title,
    ["", "median", "min", "max", "to the fastest", `to ${reference}`],
    results.map(({ name, times }) => {
      const middle = medians.get(name) ?? Number.NaN;
      return [
        name,
        seconds(middle),
        seconds(Math.min(...times)),
        seconds(Math.max(...times)),
        (middle / fastest).toFixed(2),
        (middle / own).toFixed(2),
      ];
    }),
  );
}

/**
 * @param {string} title
 * @param {string[]} header
 * @param {string[][]} rows the first column is text, the others are numbers
 */
export function printTable(title, header, rows) {
  const widths = header.map((cell, column) => Math.max(cell.length, ...rows.map((row) => row[column]?.length ?? 0)));
  const line = (/** @type {string[]} */ cells) =>
    cells
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join("  ")
      .trimEnd();
  process.stdout.write(`\n${[title, line(header), ...rows.map(line)].join("\n")}\n`);
}

/** @param {number} value */
export function seconds(value) {
  return `${value.toFixed(3)} s`;
}

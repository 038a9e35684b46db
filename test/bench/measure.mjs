// @ts-check
/**
 * Runs commands against each other and compares the medians.
 *
 * The rounds are interleaved and each round is in another order: a machine that others use drifts, and what a run finds
 * (free blocks, page cache) is what its predecessor left. So only the ratios of one call mean anything.
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";

/**
 * @typedef {object} Contender
 * @property {string} name what the table calls it
 * @property {string[]} command program and arguments; the whole of it is timed
 * @property {() => void | Promise<void>} [before] puts the disk in order; not timed
 * @property {() => void | Promise<void>} [after] checks the result and throws if it is wrong; not timed
 */

/**
 * @typedef {object} Result
 * @property {string} name the contender
 * @property {number[]} times seconds, one per round
 */

/**
 * Runs every contender once per round.
 * @param {Contender[]} contenders
 * @param {{ rounds: number, signal: AbortSignal }} options
 * @returns {Promise<Result[]>} in the order of `contenders`
 * @throws {Error} naming the contender, when its command or its check fails
 */
export async function compete(contenders, { rounds, signal }) {
  const results = new Map(contenders.map(({ name }) => [name, /** @type {Result} */ ({ name, times: [] })]));
  for (let round = 0; round < rounds; round++) {
    for (const { name, command, before, after } of shuffled(contenders)) {
      await before?.();
      const { seconds } = await run(command, signal);
      results.get(name)?.times.push(seconds);
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
 * @returns {Promise<{ seconds: number, peakBytes: number }>} `peakBytes` is 0 unless watched
 */
export async function run(command, signal, { watchMemory = false } = {}) {
  const [program = "", ...args] = command;
  const start = performance.now();
  const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"], signal });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text) => {
    complaint = (complaint + text).slice(-2000);
  });
  let peakBytes = 0;
  const poll = watchMemory
    ? setInterval(() => {
        peakBytes = Math.max(peakBytes, peakMemory(child.pid));
      }, 10)
    : undefined;
  try {
    /** @type {number | null} */
    const code = await new Promise((resolve, reject) => child.on("error", reject).on("close", resolve));
    const seconds = (performance.now() - start) / 1000;
    if (code !== 0) throw new Error(`${command.join(" ")} exited with ${code}\n${complaint}`.trim());
    return { seconds, peakBytes };
  } finally {
    clearInterval(poll);
  }
}

/**
 * The most memory a process has had resident, in bytes; 0 once it has ended. The kernel keeps the maximum (VmHWM), so
 * that a poll misses only what grew after it.
 * @param {number | undefined} pid
 */
function peakMemory(pid) {
  /** @type {string} */
  let status;
  try {
    status = readFileSync(`/proc/${pid}/status`, "utf8");
  } catch (error) {
    const { code } = /** @type {NodeJS.ErrnoException} */ (error);
    if (code === "ENOENT" || code === "ESRCH") return 0;
    throw error;
  }
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024;
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

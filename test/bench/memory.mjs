// @ts-check
/** How much memory processes have used. */
import { readFileSync } from "node:fs";

/**
 * The most memory that was resident, in bytes.
 * @typedef {object} Peaks
 * @property {number} own of the process itself
 * @property {number} children of the processes that it started, together
 */

const LOOK_MS = 20;

/** Looks again and again at the memory of a process, and of those it started. */
export class MemoryWatch {
  #own = 0;
  /** Bytes by process. @type {Map<number, number>} */
  #children = new Map();
  #timer;

  /** @param {number} pid */
  constructor(pid) {
    this.#timer = setInterval(() => this.#look(pid), LOOK_MS);
  }

  /** @returns {Peaks} */
  get peaks() {
    return { own: this.#own, children: [...this.#children.values()].reduce((sum, bytes) => sum + bytes, 0) };
  }

  stop() {
    clearInterval(this.#timer);
  }

  /** @param {number} pid */
  #look(pid) {
    this.#own = Math.max(this.#own, peakMemory(pid));
    for (const child of childrenOf(pid)) {
      this.#children.set(child, Math.max(this.#children.get(child) ?? 0, peakMemory(child)));
    }
  }
}

/** @returns {Peaks} */
export function noPeaks() {
  return { own: 0, children: 0 };
}

/**
 * The most memory a process has had resident, in bytes; 0 once it has ended. The kernel keeps the maximum (VmHWM), so
 * that a look misses only what grew after it.
 * @param {number} pid
 */
function peakMemory(pid) {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readProc(`/proc/${pid}/status`))?.[1] ?? 0) * 1024;
}

/**
 * @param {number} pid
 * @returns {number[]} children and theirs, but those that another thread than the first has started
 */
function childrenOf(pid) {
  const children = readProc(`/proc/${pid}/task/${pid}/children`).split(" ").filter(Boolean).map(Number);
  return children.flatMap((child) => [child, ...childrenOf(child)]);
}

/**
 * @param {string} path
 * @returns {string} nothing once the process has ended
 */
function readProc(path) {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    const { code } = /** @type {NodeJS.ErrnoException} */ (error);
    if (code === "ENOENT" || code === "ESRCH") return "";
    throw error;
  }
}

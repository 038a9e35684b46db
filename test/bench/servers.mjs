// @ts-check
/** Servers that are measured, or measured through: each in a process of its own. */
import { spawn } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";

const START_MS = 20_000;
const STOP_MS = 20_000;
/** USER_HZ, which Linux shows to programs on every architecture that Node runs on. */
const TICKS_PER_SECOND = 100;

/**
 * @typedef {object} Server
 * @property {string} uri
 * @property {number} pid
 * @property {() => Promise<void>} stop asks it to end and waits until it has
 */

/**
 * Starts a server and waits until it takes connections.
 * @param {string | number} socket path, or port of loopback, that `command` listens on
 * @param {string[]} command program and arguments
 * @param {{ signal: AbortSignal, env?: Record<string, string> }} options `env` is added to the environment
 * @returns {Promise<Server>}
 * @throws {Error} with what it said, when it ends instead
 */
export async function startServer(socket, command, { signal, env = {} }) {
  const [program = "", ...args] = command;
  if (typeof socket === "string") rmSync(socket, { force: true });
  const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"], env: { ...process.env, ...env }, signal });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text) => {
    complaint = (complaint + text).slice(-2000);
  });
  /** @type {Promise<void>} */
  const ended = new Promise((resolve) => child.on("error", () => resolve()).on("close", () => resolve()));
  const failed = () => new Error(`${command.join(" ")} ended with ${child.exitCode ?? child.signalCode}\n${complaint}`);
  const deadline = performance.now() + START_MS;
  while (!(await accepts(socket))) {
    if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) throw failed();
    if (performance.now() > deadline) {
      child.kill("SIGKILL");
      throw new Error(`${command.join(" ")} does not listen on ${socket}\n${complaint}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return {
    uri: typeof socket === "string" ? `nbd+unix:///?socket=${socket}` : `nbd://127.0.0.1:${socket}`,
    pid: /** @type {number} */ (child.pid),
    async stop() {
      child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
      await ended;
      clearTimeout(timer);
    },
  };
}

/** @param {string | number} place */
function accepts(place) {
  return new Promise((resolve) => {
    const socket = typeof place === "string" ? connect(place) : connect(place, "127.0.0.1");
    socket.on("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
}

/**
 * Processor time that a process has used so far, in itself and in the kernel. Seconds.
 * @param {number} pid
 */
export function processorTimeOf(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" "); // from the third on; the second may hold anything
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/**
 * Memory of a process that is resident now, and the most that ever was. Bytes.
 * @param {number} pid
 */
export function memoryOf(pid) {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const field = (/** @type {string} */ name) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(status)?.[1] ?? Number.NaN) * 1024;
  return { resident: field("VmRSS"), peak: field("VmHWM") };
}

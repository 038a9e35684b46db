// All that a process has started, and what that has started, from /proc: for ending it, whoever its parent is by then.
import { readdirSync, readFileSync } from "node:fs";

/** What /proc/PID/stat says of a process; undefined where there is none. `start` tells it from a later one of its number. */
function statOf(pid) {
  let stat;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined; // it has ended meanwhile
  }
  // Behind the name, which may hold anything: state, parent, …, the start as the 20th.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return { pid, state: fields[0], parent: Number(fields[1]), start: fields[19] };
}

/** The descendants of a process, parents first. */
export function descendantsOf(root) {
  const all = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  const processes = all.map((name) => statOf(Number(name))).filter((one) => one !== undefined);
  const found = [];
  for (let parents = new Set([root]); parents.size > 0; ) {
    const children = processes.filter(({ parent }) => parents.has(parent));
    found.push(...children);
    parents = new Set(children.map(({ pid }) => pid));
  }
  return found;
}

/** Those that have not ended. */
export function stillRunning(processes) {
  return processes.filter(({ pid, start }) => {
    const now = statOf(pid);
    return now !== undefined && now.start === start && now.state !== "Z";
  });
}

/** Sends a signal to those that have not ended. */
export function signalAll(processes, signal) {
  for (const { pid } of stillRunning(processes)) {
    try {
      process.kill(pid, signal);
    } catch (error) {
      if (error.code !== "ESRCH") throw error; // it has ended just now
    }
  }
}

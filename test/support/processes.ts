/** Processes that this one has started. */
import { readdir, readFile } from "node:fs/promises";

/** The process ids of our children of a name that have not ended. */
export async function childrenNamed(name: string, parent: number = process.pid): Promise<number[]> {
  const found: number[] = [];
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const stat = await readFile(`/proc/${entry}/stat`, "utf8").catch(() => "");
    // pid (comm) state ppid: a name may hold anything, and ends with the last parenthesis
    const [, command, state, ppid] = /^\d+ \(([\s\S]*)\) (\S) (\d+)/.exec(stat) ?? [];
    if (command === name.slice(0, 15) && state !== "Z" && Number(ppid) === parent) found.push(Number(entry));
  }
  return found;
}

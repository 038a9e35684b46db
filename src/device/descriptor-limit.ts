/** How many descriptors this process may have open (getrlimit(2), RLIMIT_NOFILE). */
import { readFileSync } from "node:fs";

/** The soft limit, which is the one that counts; Infinity where there is none. */
export function descriptorLimit(): number {
  const soft = /^Max open files\s+(\S+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1] ?? "unlimited";
  return soft === "unlimited" ? Number.POSITIVE_INFINITY : Number(soft);
}

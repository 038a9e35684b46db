/** Signals that this process was started to ignore, as nohup(1) does with SIGHUP: Node would take them all the same. */
import { readFileSync } from "node:fs";
import { constants } from "node:os";

/** Whether a signal was ignored when this process was started. To be asked before Node listens for it. */
export function isIgnored(signal: NodeJS.Signals): boolean {
  const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
  return (BigInt(`0x${mask}`) >> BigInt(constants.signals[signal] - 1)) % 2n === 1n;
}

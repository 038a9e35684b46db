import type { Clock } from "./clock.ts";

/**
 * Calls `late` once, after `ms` of the clock's time, unless the returned function is called before. The timers of Node would not do:
 * they count time in which the process was stopped, and then fire before what arrived meanwhile is looked at.
 *
 * @returns what says that the deadline is met; any number of times
 */
export function startDeadline(clock: Clock, ms: number, late: () => void): () => void {
  const met = new AbortController();
  void clock.sleep(ms, met.signal).then(() => {
    if (!met.signal.aborted) late();
  });
  return () => met.abort();
}

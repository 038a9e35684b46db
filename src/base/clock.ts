/** Time, handed to whatever waits or measures, so that a simulation can own it. */
export interface Clock {
  /** Milliseconds from an arbitrary start, never going back. */
  now(): number;
  /** Resolves after `ms`, or at once (without an error) when `signal` aborts. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

/** The longest that a timer of Node waits, ms; given more it fires at once. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;
/** How often somebody who sleeps has it looked whether the process runs, and how much later than that it may be, ms. */
const BEAT_MS = 1000;
const LATE_MS = 1000;

/**
 * The time during which the process ran. What it could not do while it was stopped (SIGSTOP, a machine that slept or was
 * moved) is nobody's fault: a deadline that passed meanwhile would fail requests whose answers have long been there. While
 * anybody sleeps, the time is looked at each second; of a longer gap no more than a second has passed.
 *
 * @param monotonic milliseconds, those included that are to be left out
 */
export function runningClock(monotonic: () => number): Clock {
  let stoppedMs = 0;
  let seenAt = 0;
  let sleepers = 0;
  let beat: NodeJS.Timeout | undefined;

  const now = (): number => {
    const at = monotonic();
    const gap = at - seenAt;
    if (beat !== undefined && gap > BEAT_MS + LATE_MS) stoppedMs += gap - BEAT_MS;
    seenAt = at;
    return at - stoppedMs;
  };
  const fallAsleep = (): void => {
    if (sleepers++ > 0) return;
    now(); // nobody has looked for as long as nobody slept
    beat = setInterval(now, BEAT_MS).unref();
  };
  const wakeUp = (): void => {
    if (--sleepers > 0) return;
    clearInterval(beat);
    beat = undefined;
  };
  const sleep = (ms: number, signal?: AbortSignal): Promise<void> =>
    new Promise((resolve) => {
      if (signal?.aborted) return resolve();
      fallAsleep();
      const wakeAt = now() + ms;
      let timer: NodeJS.Timeout;
      const wake = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", wake);
        wakeUp();
        resolve();
      };
      const wait = (leftMs: number): void => {
        timer = setTimeout(look, Math.min(leftMs, LONGEST_TIMER_MS));
      };
      const look = (): void => {
        const leftMs = wakeAt - now();
        if (leftMs < 1)
          wake(); // timers are exact to a millisecond
        else wait(leftMs);
      };
      signal?.addEventListener("abort", wake, { once: true });
      wait(ms);
    });
  return { now, sleep };
}

/** The machine's own monotonic clock, without the time that the process was stopped. */
export const systemClock: Clock = runningClock(() => performance.now());

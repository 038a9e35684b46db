/**
 * The guard of a served clone's commits: what was copied is vouched for only as long as the source is what it was. But
 * a source that does not answer, or is gone, is no source that has changed, and clients wait for the commit: so it is asked
 * again at the next one, and what it answers late counts then.
 */
import type { Clock } from "../base/clock.ts";
import { errnoOf } from "../base/errors.ts";

/** How long a commit waits for the source to tell, ms. */
const PATIENCE_MS = 1000;

/**
 * @param ask resolves to the error of a source that has changed, or to undefined; may reject with a system's error, or never
 * settle
 */
export function patientGuard(ask: () => Promise<Error | undefined>, clock: Clock): () => Promise<void> {
  let changed: Error | undefined;
  let failure: unknown;
  let asking: Promise<void> | undefined;
  const inquire = async (): Promise<void> => {
    try {
      changed ??= await ask();
    } catch (error) {
      if (errnoOf(error) === undefined) failure = error; // a mistake of ours
    } finally {
      asking = undefined;
    }
  };
  return async () => {
    // One question at a time: each that hangs takes a thread. Who comes later need not wait for it once more.
    if (asking === undefined) {
      asking = inquire();
      const waiting = new AbortController();
      await Promise.race([asking, clock.sleep(PATIENCE_MS, waiting.signal)]);
      waiting.abort();
    }
    if (failure !== undefined) throw failure;
    if (changed !== undefined) throw changed;
  };
}

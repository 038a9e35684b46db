/** Progress of a comparison of source and destination, for `verify` and `finalize --verify`. */
import type { Clone } from "../clone/clone.ts";
import type { RunningVerify } from "../clone/verify-clone.ts";
import type { CliContext } from "./command.ts";
import type { ProgressStyle } from "./progress-style.ts";

/** Runs a comparison of the clone's hydrated regions and shows how far it is. */
export async function withVerifyProgress<T>(
  clone: Clone,
  { progress, json, context }: { progress: ProgressStyle; json: boolean | undefined; context: CliContext },
  run: (onStart: (running: RunningVerify) => void) => Promise<T>,
): Promise<T> {
  const { withProgress } = await import("./progress.ts");
  const { hydratedBytes } = await import("../clone/clone-status.ts");
  const total = hydratedBytes(clone);
  return await withProgress(
    { style: progress, label: "Verifying", quiet: context.quiet, jsonResult: json ?? false },
    (show) =>
      run((running) =>
        show(() => ({
          done: running.comparedBytes,
          total,
          moved: running.comparedBytes,
          regionsInFlight: 0,
          unreadableRegions: 0,
        })),
      ),
  );
}

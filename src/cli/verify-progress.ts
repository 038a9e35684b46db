/** Progress of a comparison of source and destination, for `verify` and `finalize --verify`. */
import type { RunningVerify } from "../clone/verify-clone.ts";
import type { CliContext } from "./command.ts";
import type { ProgressStyle } from "./progress-style.ts";

/** Runs a comparison and shows how far it is. */
export async function withVerifyProgress<T>(
  { progress, json, context }: { progress: ProgressStyle; json: boolean | undefined; context: CliContext },
  run: (onStart: (running: RunningVerify) => void) => Promise<T>,
): Promise<T> {
  const { withProgress } = await import("./progress.ts");
  return await withProgress(
    { style: progress, label: "Verifying", quiet: context.quiet, jsonResult: json ?? false },
    (show) =>
      run((running) =>
        show(() => ({
          done: running.comparedBytes,
          total: running.totalBytes,
          moved: running.comparedBytes,
          regionsInFlight: 0,
          unreadableRegions: 0,
        })),
      ),
  );
}

/** Progress of a comparison of source and destination, for `verify`, `finalize --verify` and `repair --compare`. */
import type { RunningComparison } from "../clone/compare-sides.ts";
import type { CliContext } from "./command.ts";
import type { ProgressStyle } from "./progress-style.ts";

/** Runs a comparison and shows how far it is. */
export async function withComparisonProgress<T>(
  {
    label,
    progress,
    json,
    context,
  }: { label: "Verifying" | "Comparing"; progress: ProgressStyle; json: boolean | undefined; context: CliContext },
  run: (onStart: (running: RunningComparison) => void) => Promise<T>,
): Promise<T> {
  const { withProgress } = await import("./progress.ts");
  return await withProgress({ style: progress, label, quiet: context.quiet, jsonResult: json ?? false }, (show) =>
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

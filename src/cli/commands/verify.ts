import { defineCommand } from "../command.ts";
import { withComparisonProgress } from "../comparison-progress.ts";
import { ExitCode } from "../exit-codes.ts";
import { cloneArgument, deviceOptions, deviceRequest, jsonOption, progressOption } from "../options.ts";
import { formatRegions } from "../regions.ts";

/** `clone verify CLONE` */
export const verifyCommand = defineCommand({
  options: (yargs) => jsonOption(progressOption(deviceOptions(cloneArgument(yargs)))),
  async run(options, context) {
    const { terminal, signal, onWarning, onDetail } = context;
    const { Clone } = await import("../../clone/clone.ts");
    const { verifyClone } = await import("../../clone/verify-clone.ts");
    await using clone = await Clone.open({ name: options.clone, access: "quiescent", signal, onWarning, onDetail });
    const report = await withComparisonProgress({ label: "Verifying", ...options, context }, (onStart) =>
      verifyClone(clone, deviceRequest(options), { signal, onStart }),
    );
    const { equal, compared, differing, served } = report;
    if (options.json) {
      terminal.print(
        JSON.stringify({ equal, compared, differing: differing.map(({ start, end }) => [start, end]), served }),
      );
    } else if (equal) {
      const rest = clone.geometry.regionCount - clone.metadata.hydratedCount;
      terminal.print(`Equal: ${compared} hydrated regions compared${rest > 0 ? `, ${rest} not hydrated yet` : ""}`);
    } else {
      terminal.print(`Different: ${formatRegions(differing)} of ${compared} hydrated regions`);
      if (served) {
        terminal.note(
          "The clone was served: regions that clients wrote or discarded differ by right, and which those are cannot be told.",
        );
      }
    }
    return equal ? ExitCode.done : ExitCode.failed;
  },
});

import { BusyError, UsageError } from "../../base/errors.ts";
import { formatSize } from "../../base/units.ts";
import type { Clone } from "../../clone/clone.ts";
import type { FinalizeJson, FinalizeReport, FinalizeRequest } from "../../clone/finalize-clone.ts";
import type { LivePeer } from "../../clone/live-peer.ts";
import type { FinalizeAsked } from "../../control/tuning.ts";
import { type CliContext, defineCommand } from "../command.ts";
import { withComparisonProgress } from "../comparison-progress.ts";
import { ExitCode } from "../exit-codes.ts";
import { cloneArgument, deviceOptions, deviceRequest, jsonOption, progressOption } from "../options.ts";
import type { ProgressStyle } from "../progress-style.ts";
import { formatRegions } from "../regions.ts";

/** `clone finalize CLONE` */
export const finalizeCommand = defineCommand({
  options: (yargs) =>
    jsonOption(progressOption(deviceOptions(cloneArgument(yargs))))
      .option("verify", { type: "boolean", describe: "Compare with the source first" })
      .option("keep-metadata", { type: "boolean", describe: "Leave the metadata file in place" })
      .option("accept-unreadable", {
        type: "boolean",
        describe: "Fill regions that could not be read with zeros",
      })
      .option("without-source", {
        type: "boolean",
        describe: "Do not open the source: compare nothing, make zeros of all that is missing",
      })
      .conflicts("without-source", ["source", "verify"])
      .option("table", {
        type: "boolean",
        describe: "Change nothing; print the dm linear table that replaces the clone",
      }),
  async run(options, context) {
    const { terminal, signal, onWarning, onDetail } = context;
    const { Clone } = await import("../../clone/clone.ts");
    if (options.table) {
      const { linearTable } = await import("../../clone/finalize-clone.ts");
      const access = "beside-the-kernel";
      await using clone = await Clone.open({ name: options.clone, access, signal, onWarning, onDetail });
      terminal.print(await linearTable(clone, deviceRequest(options)));
      return ExitCode.done;
    }
    const asked = {
      keepMetadata: options["keep-metadata"] ?? false,
      acceptUnreadable: options["accept-unreadable"] ?? false,
      withoutSource: options["without-source"] ?? false,
    };
    let report: FinalizeReport;
    try {
      await using clone = await Clone.open({ name: options.clone, access: "exclusive", signal, onWarning, onDetail });
      const request = { ...deviceRequest(options), ...asked, verify: options.verify ?? false };
      report = await runFinalize(clone, request, { ...options, context });
    } catch (error) {
      if (!(error instanceof BusyError)) throw error;
      const { findServer } = await import("../../clone/live-peer.ts");
      const server = await findServer(options.clone, signal);
      if (server === undefined) throw error;
      report = await finalizeServed(server, options.clone, asked, context);
    }
    if (options.json) {
      const { finalizeJson } = await import("../../clone/finalize-clone.ts");
      terminal.print(JSON.stringify(finalizeJson(report)));
    } else printFinalized(report, context);
    return report.unreadable.length > 0 ? ExitCode.unreadable : ExitCode.done;
  },
});

/**
 * Has the server of a clone finalize it. Who stops waiting does not stop the server.
 * @throws {UsageError} for what a server cannot do
 */
async function finalizeServed(
  { client, status }: LivePeer,
  name: string,
  asked: FinalizeAsked,
  { isGiven, signal, terminal }: CliContext,
): Promise<FinalizeReport> {
  for (const option of ["verify", "source", "destination", "accept-changed-source"]) {
    if (!isGiven(option)) continue;
    const reason =
      option === "verify"
        ? "what its clients have written differs from the source by right"
        : "its server has its devices open already";
    throw new UsageError(`Cannot use --${option}: "${name}" is served by process ${status.lockedBy}, and ${reason}`);
  }
  try {
    return reportOf(await client.finalize(asked, signal));
  } catch (error) {
    if (signal.aborted) terminal.note(`Process ${status.lockedBy} goes on with what it was asked for.`);
    throw error;
  }
}

/** A server's answer, which has ranges of regions as JSON does. */
function reportOf(answer: object): FinalizeReport {
  const report = answer as FinalizeJson;
  return { ...report, unreadable: report.unreadable.map(([start, end]) => ({ start, end })) };
}

/** Finalizes with progress on display. */
export async function runFinalize(
  clone: Clone,
  request: FinalizeRequest,
  options: { progress: ProgressStyle; json: boolean | undefined; context: CliContext },
): Promise<FinalizeReport> {
  const { finalizeClone } = await import("../../clone/finalize-clone.ts");
  const { signal } = options.context;
  return await withComparisonProgress({ label: "Verifying", ...options }, (onVerify) =>
    finalizeClone(clone, request, { signal, onVerify }),
  );
}

/** Says what the copy is now. */
export function printFinalized(
  { destination, size, verified, unreadable, metadata }: FinalizeReport,
  context: CliContext,
): void {
  const { terminal } = context;
  terminal.print(`Finalized ${destination}: ${formatSize(size)}${verified ? ", verified" : ""}, it stands alone now`);
  if (metadata !== null) terminal.note(`The metadata stays at ${metadata}.`);
  if (unreadable.length > 0)
    terminal.error(`Cannot vouch for ${formatRegions(unreadable)}: unreadable in the source, zeros in the copy`);
}

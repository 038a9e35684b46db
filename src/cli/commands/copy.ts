import { defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import { createOptions, hydrationOptions, jsonOption, progressOption } from "../options.ts";
import { createRequest } from "./create.ts";
import { finalizeJson, printFinalized, runFinalize } from "./finalize.ts";
import { exitCodeOfReport, hydrateRequest, printReport, runHydration } from "./hydrate.ts";

/** `clone copy SOURCE DEST` */
export const copyCommand = defineCommand({
  options: (yargs) =>
    jsonOption(progressOption(hydrationOptions(createOptions(yargs)))).option("accept-changed-source", {
      type: "boolean",
      describe: "Go on although the source has changed since the copy began",
    }),
  async run(options, context) {
    const { terminal, signal } = context;
    const { startCopy } = await import("../../clone/copy-clone.ts");
    const { clone: opened, created } = await startCopy(createRequest(options), signal);
    await using clone = opened;
    for (const warning of created?.warnings ?? []) terminal.warn(warning);
    const request = { ...hydrateRequest(options), source: options.source, destination: options.destination };
    if (clone.finalized !== null) {
      await clone.attachSource(request); // a finished copy of what has changed since is not what was asked for
    } else {
      const report = await runHydration(clone, request, { ...options, context });
      if (report.end !== "complete" || !options.json) {
        printReport(report, { ...options, clone: options.metadata ?? options.destination, context });
      }
      if (report.end !== "complete") return exitCodeOfReport(report, context);
    }
    const finalize = { ...request, verify: false, keepMetadata: false, acceptUnreadable: false };
    const finalized = await runFinalize(clone, finalize, { ...options, context });
    if (options.json) terminal.print(JSON.stringify(finalizeJson(finalized)));
    else printFinalized(finalized, context);
    return finalized.unreadable.length > 0 ? ExitCode.unreadable : ExitCode.done;
  },
});

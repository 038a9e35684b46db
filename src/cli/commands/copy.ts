import { defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import { createOptions, hydrationOptions, jsonOption, progressOption, readOrder } from "../options.ts";
import { asTunedBefore } from "../tuned-before.ts";
import { copyRequest } from "./create.ts";
import { printFinalized, runFinalize } from "./finalize.ts";
import { exitCodeOfReport, hydrateRequest, printReport, runHydration } from "./hydrate.ts";

/** `clone copy SOURCE DEST` */
export const copyCommand = defineCommand({
  options: (yargs) =>
    jsonOption(progressOption(hydrationOptions(createOptions(yargs)))).option("accept-changed-source", {
      type: "boolean",
      describe: "Go on although the source has changed since the copy began",
    }),
  async run(options, context) {
    const { terminal, signal, onWarning, onDetail } = context;
    const { startCopy } = await import("../../clone/copy-clone.ts");
    const { displayName, parseLocation } = await import("../../clone/location.ts");
    const shown = (text: string): string =>
      URL.canParse(text) || text.startsWith("[") ? displayName(parseLocation(text)) : text;
    const order = await readOrder(options.order, signal);
    const { clone: opened, created } = await startCopy(copyRequest(options), { signal, onWarning, onDetail });
    await using clone = opened;
    for (const warning of created?.warnings ?? []) onWarning(warning);
    const request = await asTunedBefore(clone, { ...hydrateRequest(options), order }, options, context);
    if (clone.finalized === null) {
      const report = await runHydration(clone, request, { ...options, context });
      if (report.end !== "complete" || !options.json) {
        printReport(report, {
          json: options.json,
          goOn: `clone copy ${shown(options.source)} ${shown(options.destination)}${options.metadata === undefined ? "" : ` --metadata ${options.metadata}`}`,
          context,
        });
      }
      if (report.end !== "complete") return exitCodeOfReport(report, context);
    }
    const finalize = { ...request, verify: false, keepMetadata: false, acceptUnreadable: false, withoutSource: false };
    const finalized = await runFinalize(clone, finalize, { ...options, context });
    if (options.json) {
      const { finalizeJson } = await import("../../clone/finalize-clone.ts");
      terminal.print(JSON.stringify(finalizeJson(finalized)));
    } else printFinalized(finalized, context);
    return finalized.unreadable.length > 0 ? ExitCode.unreadable : ExitCode.done;
  },
});

import { defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import { jsonOption } from "../options.ts";

/** `clone check METADATA` */
export const checkCommand = defineCommand({
  options: (yargs) =>
    jsonOption(yargs).positional("metadata", {
      type: "string",
      demandOption: true,
      describe: "The metadata, or the destination it stands beside",
    }),
  async run(options, { terminal, signal }) {
    const { openMetadata } = await import("../../clone/open-metadata.ts");
    const { checkMetadata, formatFinding } = await import("../../metadata/check.ts");
    await using opened = await openMetadata(options.metadata, "quiescent");
    const { device } = opened;
    const { ok, fatal, warnings, facts } = await checkMetadata(device, { signal });
    if (options.json) {
      terminal.print(JSON.stringify({ ok, fatal, warnings }));
    } else {
      for (const finding of fatal) terminal.print(`${terminal.out.red("fatal")}    ${formatFinding(finding)}`);
      for (const finding of warnings) terminal.print(`${terminal.out.yellow("warning")}  ${formatFinding(finding)}`);
      const share = facts === undefined ? "" : `, ${facts.hydratedRegions ?? "?"} of ${facts.regions} regions hydrated`;
      const verdict = ok ? (warnings.length === 0 ? "clean" : "usable, with warnings") : "damaged";
      terminal.print(`${device.path}: ${ok ? terminal.out.green(verdict) : terminal.out.red(verdict)}${share}`);
    }
    return ok ? ExitCode.done : ExitCode.damaged;
  },
});

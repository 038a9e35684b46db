import { formatExactSize, formatSize } from "../../base/units.ts";
import type { CloneStatus, StatusReport } from "../../clone/clone-status.ts";
import { type CliContext, defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import { countOf, jsonOption } from "../options.ts";
import { formatRegions } from "../regions.ts";
import { isOutputRead } from "../standard-output.ts";

/** `clone status CLONE` */
export const statusCommand = defineCommand({
  options: (yargs) =>
    jsonOption(yargs)
      .positional("clone", {
        type: "string",
        demandOption: true,
        describe: "The clone: its metadata, or its destination",
      })
      .option("watch", {
        type: "string",
        coerce: countOf("--watch", 1),
        describe: "Again every so many seconds [default: 2], until it is done",
      })
      .option("map", { type: "boolean", describe: "Draw the regions" })
      .option("dm", { type: "boolean", describe: "The line that dmsetup status prints" })
      .conflicts("dm", ["json", "map"])
      .conflicts("json", "map"),
  async run(options, context) {
    const { readStatus, dmStatusLine } = await import("../../clone/clone-status.ts");
    const { terminal, signal, onWarning } = context;
    const show = async (): Promise<CloneStatus> => {
      const report = await readStatus(options.clone, { signal, onWarning });
      if (options.json) terminal.print(JSON.stringify(report.status));
      else if (options.dm) terminal.print(dmStatusLine(report.status));
      else for (const line of await describe(report, options.map, context)) terminal.print(line);
      return report.status;
    };
    if (options.watch === undefined) {
      await show();
      return ExitCode.done;
    }
    return await watch(show, options.watch * 1000, context);
  },
});

async function watch(
  show: () => Promise<CloneStatus>,
  intervalMs: number,
  { signal, interruption }: CliContext,
): Promise<ExitCode> {
  const { systemClock } = await import("../../base/clock.ts");
  for (;;) {
    const { state } = await show();
    if (state === "hydrated" || state === "finalized" || state === "failed") return ExitCode.done;
    await systemClock.sleep(intervalMs, signal);
    if (signal.aborted) return interruption.exitCode;
    if (!isOutputRead()) return ExitCode.done;
  }
}

async function describe(report: StatusReport, map: boolean | undefined, { terminal }: CliContext): Promise<string[]> {
  const { displayUri } = await import("../../clone/location.ts");
  const { status, unreadable, holder } = report;
  const { metadata, source, destination, regionSize, regions, hydratedRegions } = status;
  const colour = { hydrated: "green", finalized: "green", failed: "red" }[status.state as string] ?? "cyan";
  const paint = terminal.out[colour as "green" | "red" | "cyan"];
  const percent = (Math.floor((hydratedRegions / regions) * 1000) / 10).toFixed(1);
  const by =
    holder === undefined
      ? ""
      : ` by process ${holder.pid ?? "?"}${holder.command === undefined ? "" : ` (${holder.command})`}`;
  const rows: [string, string][] = [
    ["state", `${paint(status.state)}${by}`],
    ["hydrated", `${percent} %, ${formatSize(status.hydratedBytes)} of ${formatSize(status.size)}`],
    ["regions", `${hydratedRegions} of ${regions}, ${formatExactSize(regionSize)} each`],
  ];
  if (unreadable.length > 0) {
    rows.push([
      "unreadable",
      terminal.out.red(`${status.unreadableInexact ? "among " : ""}${formatRegions(unreadable)}`),
    ]);
  }
  rows.push(
    ["source", source === null ? "not known" : displayUri(source.uri)],
    ["destination", destination === null ? "not known" : displayUri(destination.uri)],
    ["metadata", `${metadata.path}, ${metadata.usedBlocks} of ${metadata.totalBlocks} blocks in use`],
  );
  const lines = rows.map(([name, value]) => `${terminal.out.dim(name.padEnd(12))}${value}`);
  if (!map) return lines;
  const { drawMap } = await import("../region-map-drawing.ts");
  return [...lines, "", ...drawMap(report, Math.min(process.stdout.columns ?? 80, 100))];
}

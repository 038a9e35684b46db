import type { ChalkInstance } from "chalk";
import { formatExactSize, formatSize } from "../../base/units.ts";
import type { CloneStatus, StatusReport } from "../../clone/clone-status.ts";
import { displayUri } from "../../clone/location.ts";
import type { LockHolder } from "../../device/lock.ts";
import { type CliContext, defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import { formatRow, paceRows, type Row, serverRow } from "../live-rows.ts";
import { cloneArgument, countOf, jsonOption } from "../options.ts";
import { formatRegions } from "../regions.ts";
import { isOutputRead } from "../standard-output.ts";

/** `clone status CLONE` */
export const statusCommand = defineCommand({
  options: (yargs) =>
    jsonOption(cloneArgument(yargs))
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
    const screen = await newScreen(options, context);
    const show = async (): Promise<CloneStatus> => {
      const report = await readStatus(options.clone, { signal, onWarning, map: options.map ?? false });
      if (options.json) terminal.print(JSON.stringify(report.status));
      else if (options.dm) terminal.print(dmStatusLine(report.status));
      else screen.show(await describe(report, options.map, context));
      return report.status;
    };
    if (options.watch === undefined) {
      await show();
      return ExitCode.done;
    }
    return await watch(show, options.watch * 1000, context);
  },
});

/** Where descriptions go: one below the other, or, of a terminal that is watched, one in place of the other. */
async function newScreen(
  { watch, json, dm }: { watch: number | undefined; json: boolean | undefined; dm: boolean | undefined },
  { terminal }: CliContext,
): Promise<{ show(lines: string[]): void }> {
  if (watch !== undefined && !json && !dm && process.stdout.isTTY) {
    const { Redrawing } = await import("../redrawing.ts");
    const redrawing = new Redrawing(process.stdout);
    return { show: (lines) => redrawing.show(lines.map((line) => terminal.shown(line))) };
  }
  return {
    show(lines) {
      for (const line of lines) terminal.print(line);
    },
  };
}

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
  const { out } = terminal;
  const lines = rowsOf(report, out).map((row) => formatRow(row, out.dim));
  if (!map) return lines;
  const { drawMap } = await import("../region-map-drawing.ts");
  return [...lines, "", ...drawMap(report, Math.min(process.stdout.columns ?? 80, 100))];
}

function rowsOf({ status, unreadable, holder, peer }: StatusReport, out: ChalkInstance): Row[] {
  const { metadata, source, destination, regionSize, regions, hydratedRegions, hydration, server, failure } = status;
  const percent = (Math.floor((hydratedRegions / regions) * 1000) / 10).toFixed(1);
  const rows: Row[] = [
    ["state", `${paintState(status.state, out)}${byWhom(holder)}`],
    ["hydrated", `${percent} %, ${formatSize(status.hydratedBytes)} of ${formatSize(status.size)}`],
    ["regions", `${hydratedRegions} of ${regions}, ${formatExactSize(regionSize)} each`],
  ];
  if (failure !== null) rows.push(["failed", out.red(failure)]);
  if (unreadable.length > 0) {
    rows.push(["unreadable", out.red(`${status.unreadableInexact ? "among " : ""}${formatRegions(unreadable)}`)]);
  }
  if (hydration.stalled !== null) rows.push(["stalled", out.red(hydration.stalled)]);
  if (peer !== undefined) rows.push(...paceRows(status));
  if (server !== null) rows.push(serverRow(server));
  rows.push(
    ["source", source === null ? "not known" : `${displayUri(source.uri)}${inFormat(source.format)}`],
    ["destination", destination === null ? "not known" : displayUri(destination.uri)],
    ["metadata", `${metadata.path}, ${metadata.usedBlocks} of ${metadata.totalBlocks} blocks in use`],
  );
  if (peer !== undefined) rows.push(["control", peer.client.path]);
  return rows;
}

function inFormat(format: string): string {
  return format === "raw" ? "" : `, a ${format} image`;
}

function byWhom(holder: LockHolder | undefined): string {
  if (holder === undefined) return "";
  const { pid, command } = holder;
  if (pid === undefined) return " by another process";
  return ` by process ${pid}${command === undefined ? "" : ` (${command})`}`;
}

function paintState(state: CloneStatus["state"], out: ChalkInstance): string {
  if (state === "hydrated" || state === "finalized") return out.green(state);
  return state === "failed" ? out.red(state) : out.cyan(state);
}

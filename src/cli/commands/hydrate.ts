import { BusyError } from "../../base/errors.ts";
import { formatElapsed, formatSize } from "../../base/units.ts";
import type { Clone } from "../../clone/clone.ts";
import type { HydrateReport, HydrateRequest } from "../../clone/hydrate-clone.ts";
import type { LivePeer } from "../../clone/live-peer.ts";
import { type CliContext, defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import {
  cloneArgument,
  deviceOptions,
  hydrationOptions,
  jsonOption,
  progressOption,
  readOrder,
  sizeOf,
} from "../options.ts";
import type { ProgressStyle } from "../progress-style.ts";
import { formatRegions } from "../regions.ts";
import { asTunedBefore } from "../tuned-before.ts";

/** `clone hydrate CLONE` */
export const hydrateCommand = defineCommand({
  options: (yargs) =>
    jsonOption(progressOption(deviceOptions(hydrationOptions(cloneArgument(yargs))))).option("limit", {
      type: "string",
      requiresArg: true,
      coerce: sizeOf("--limit"),
      describe: "Stop, successfully, after that many bytes copied",
    }),
  async run(options, context) {
    const { Clone } = await import("../../clone/clone.ts");
    const { signal, onWarning, onDetail } = context;
    const order = await readOrder(options.order, signal);
    try {
      await using clone = await Clone.open({ name: options.clone, access: "exclusive", signal, onWarning, onDetail });
      const asked = { ...hydrateRequest(options), limit: options.limit ?? null, order };
      const request = await asTunedBefore(clone, asked, options, context);
      const report = await runHydration(clone, request, { ...options, context });
      printReport(report, { json: options.json, goOn: `clone hydrate ${options.clone}`, context });
      return exitCodeOfReport(report, context);
    } catch (error) {
      if (!(error instanceof BusyError)) throw error;
      const { findServer } = await import("../../clone/live-peer.ts");
      const server = await findServer(options.clone, signal);
      if (server === undefined) throw error;
      return await follow(server, options, context);
    }
  },
});

/** Has the server of a clone hydrate it, and follows. */
async function follow(
  server: LivePeer,
  options: {
    clone: string;
    rate: number | null | undefined;
    threshold: number | null | undefined;
    "batch-size": number | null | undefined;
    progress: ProgressStyle;
    json: boolean | undefined;
  },
  context: CliContext,
): Promise<ExitCode> {
  const { followHydration, refuseOptionsOfItsOwn } = await import("../follow-hydration.ts");
  refuseOptionsOfItsOwn(options.clone, server, context.isGiven);
  const { rate, threshold, "batch-size": batchSize } = options;
  const changes = {
    ...(rate !== undefined && { rate }),
    ...(threshold !== undefined && { threshold }),
    ...(batchSize !== undefined && { batchSize }),
  };
  const { end, status, ...rest } = await followHydration(server, options.clone, changes, { ...options, context });
  const { regions, hydratedRegions } = status;
  const report = { end, regions, hydratedRegions, firstReadError: undefined, ...rest };
  const goOn = `clone hydrate ${options.clone}`;
  if (end !== "stopped") printReport(report, { json: options.json, goOn, context });
  else {
    if (options.json) context.terminal.print(JSON.stringify(reportJson(report, status.state)));
    context.terminal.note(`Process ${status.lockedBy} goes on hydrating; \`${goOn}\` follows it again.`);
  }
  return exitCodeOfReport(report, context);
}

/** The request that the options of `hydrate` and `copy` make. */
export function hydrateRequest(options: {
  rate: number | null | undefined;
  threshold: number | null | undefined;
  "batch-size": number | null | undefined;
  retry: number;
  "max-errors": number;
  "on-error": "stop" | "skip";
  verify: boolean | undefined;
  "no-extents": boolean | undefined;
  source?: string | undefined;
  destination?: string | undefined;
  "accept-changed-source"?: boolean | undefined;
  "header-file"?: string | undefined;
}): HydrateRequest {
  return {
    source: options.source,
    destination: options.destination,
    acceptChangedSource: options["accept-changed-source"],
    headerFile: options["header-file"],
    rate: options.rate ?? null,
    threshold: options.threshold ?? null,
    batchSize: options["batch-size"] ?? null,
    retry: options.retry,
    maxErrors: options["max-errors"],
    onError: options["on-error"],
    limit: null,
    verify: options.verify ?? false,
    extents: !options["no-extents"],
  };
}

/** Hydrates with progress on display, and says afterwards what a person needs to know. */
export async function runHydration(
  clone: Clone,
  request: HydrateRequest,
  { progress, json, context }: { progress: ProgressStyle; json: boolean | undefined; context: CliContext },
): Promise<HydrateReport> {
  const { terminal, quiet, signal } = context;
  const { hydrateLive } = await import("../../clone/live-hydration.ts");
  const { hydratedBytes } = await import("../../clone/clone-status.ts");
  const { withProgress } = await import("../progress.ts");
  return await withProgress({ style: progress, label: "Hydrating", quiet, jsonResult: json ?? false }, (show) =>
    hydrateLive(clone, request, {
      signal,
      onDetail: (line) => terminal.detail(line),
      onStart: (running) => {
        const { threshold, batchSize, direct } = running;
        terminal.detail(`threshold ${threshold}, batch size ${batchSize}, ${direct ? "direct" : "buffered"} writes`);
        show(() => ({
          done: hydratedBytes(clone),
          total: clone.geometry.size,
          moved: running.counts.copied + running.counts.reflinked,
          regionsInFlight: running.hydratingRegions,
          unreadableRegions: running.unreadableRegions,
        }));
      },
    }),
  );
}

/** Says how it ended. */
export function printReport(
  report: HydrateReport,
  { goOn, json, context }: { goOn: string; json: boolean | undefined; context: CliContext },
): void {
  const { terminal } = context;
  const { counts, regions, hydratedRegions, unreadable, seconds } = report;
  if (json) {
    terminal.print(JSON.stringify(reportJson(report, hydratedRegions === regions ? "hydrated" : "idle")));
  } else {
    const parts = [
      ...(counts.copied > 0 ? [`${formatSize(counts.copied)} copied`] : []),
      ...(counts.reflinked > 0 ? [`${formatSize(counts.reflinked)} shared with the source`] : []),
      ...(counts.zeroed > 0 ? [`${formatSize(counts.zeroed)} zeroed`] : []),
      ...(counts.skipped > 0 ? [`${formatSize(counts.skipped)} of holes and zeros skipped`] : []),
    ];
    const nothing = unreadable.length > 0 ? "nothing more could be copied" : "nothing was left to copy";
    const work = parts.length === 0 ? nothing : `${parts.join(", ")} in ${formatElapsed(seconds)}`;
    terminal.print(`${headline(report)}: ${work}`);
  }
  if (unreadable.length > 0) {
    terminal.error(
      `Cannot read ${formatRegions(unreadable)} of the source${report.firstReadError === undefined ? "" : `: ${report.firstReadError}`}`,
      `\`${goOn}\` tries them again.`,
    );
  } else if (report.end === "stopped" || report.end === "limit") {
    terminal.note(`\`${goOn}\` goes on where this stopped.`);
  }
}

function reportJson({ regions, hydratedRegions, counts, unreadable, seconds }: HydrateReport, state: string): object {
  return {
    state,
    regions,
    hydratedRegions,
    copiedBytes: counts.copied,
    reflinkedBytes: counts.reflinked,
    zeroedBytes: counts.zeroed,
    skippedBytes: counts.skipped,
    unreadable: unreadable.map(({ start, end }) => [start, end]),
    seconds,
  };
}

function headline({ end, regions, hydratedRegions }: HydrateReport): string {
  if (end === "complete") return "Hydrated";
  const share = `${hydratedRegions} of ${regions} regions hydrated`;
  return end === "stopped" ? `Stopped, ${share}` : share;
}

/** The exit code that a report means. */
export function exitCodeOfReport({ end, unreadable }: HydrateReport, { interruption }: CliContext): ExitCode {
  if (end === "stopped") return interruption.exitCode;
  return end !== "limit" && unreadable.length > 0 ? ExitCode.unreadable : ExitCode.done;
}

import { UsageError } from "../../base/errors.ts";
import { isRegionSize } from "../../base/geometry.ts";
import type { RunningComparison } from "../../clone/compare-sides.ts";
import type { RepairReport } from "../../clone/repair-clone.ts";
import { type CliContext, defineCommand } from "../command.ts";
import { withComparisonProgress } from "../comparison-progress.ts";
import { ExitCode } from "../exit-codes.ts";
import { deviceOptions, deviceRequest, jsonOption, progressOption, sizeOf } from "../options.ts";
import { formatRegions } from "../regions.ts";
import { shellWord } from "../shell-word.ts";

/** `clone repair METADATA` */
export const repairCommand = defineCommand({
  options: (yargs) =>
    jsonOption(
      progressOption(
        deviceOptions(
          yargs.positional("metadata", {
            type: "string",
            demandOption: true,
            describe: "The metadata, or the destination it stands beside",
          }),
        ),
      ),
    )
      .option("output", {
        type: "string",
        requiresArg: true,
        describe: "Where the repaired metadata goes, a new file [default: METADATA.repaired]",
      })
      .option("in-place", { type: "boolean", describe: "Replace the metadata, and keep it as a backup" })
      .option("backup", {
        type: "string",
        requiresArg: true,
        describe: "Where the backup goes, a new file [default: METADATA.backup]",
      })
      .option("dry-run", { type: "boolean", describe: "Write nothing, say what would be done" })
      .option("compare", {
        type: "boolean",
        describe: "Read source and destination where the metadata does not tell what is hydrated",
      })
      .option("assume", {
        choices: ["hydrated", "unhydrated"] as const,
        requiresArg: true,
        describe: "What to call the regions of which nothing is known",
      })
      .option("size", {
        type: "string",
        requiresArg: true,
        coerce: sizeOf("--size"),
        describe: "Size of the clone, where the superblock is lost",
      })
      .option("region-size", {
        type: "string",
        requiresArg: true,
        coerce: sizeOf("--region-size"),
        describe: "Its region size, where the superblock is lost",
      }),
  async run(options, context) {
    const { repairClone } = await import("../../clone/repair-clone.ts");
    const { signal, onWarning, onDetail } = context;
    const request = {
      ...deviceRequest(options),
      name: options.metadata,
      output: options.output,
      inPlace: options["in-place"],
      backup: options.backup,
      dryRun: options["dry-run"],
      compare: options.compare,
      assume: options.assume,
      geometry: geometryOf(options.size, options["region-size"]),
    };
    const run = (onCompare?: (running: RunningComparison) => void) =>
      repairClone(request, { signal, onWarning, onDetail, onCompare });
    const report = options.compare
      ? await withComparisonProgress({ label: "Comparing", ...options, context }, run)
      : await run();
    if (options.json) {
      const { repairJson } = await import("../../clone/repair-clone.ts");
      context.terminal.print(JSON.stringify(repairJson(report)));
    } else await printReport(report, options, context);
    if (report.plan.ok) return ExitCode.done;
    const { refusal } = await import("../../clone/repair-clone.ts");
    const { message, hint } = refusal(report.metadata, report.plan);
    context.terminal.error(message, hint);
    return ExitCode.damaged;
  },
});

function geometryOf(size: number | undefined, regionSize: number | undefined) {
  if (size === undefined && regionSize === undefined) return undefined;
  if (size === undefined || regionSize === undefined) {
    throw new UsageError("Cannot use --size without --region-size, nor the other way round: a clone has both");
  }
  if (!isRegionSize(regionSize)) {
    throw new UsageError(`Cannot use --region-size: ${regionSize} is not a power of two from 4K to 1G`);
  }
  if (size === 0 || size % 512 !== 0) {
    throw new UsageError(`Cannot use --size: ${size} is not a whole number of 512-byte sectors`);
  }
  return { size, regionSize };
}

async function printReport(
  report: RepairReport,
  { metadata: name, "in-place": inPlace }: { metadata: string; "in-place": boolean | undefined },
  { terminal }: CliContext,
): Promise<void> {
  const { formatFinding } = await import("../../metadata/check.ts");
  const { plan, output, backup, repaired } = report;
  const { before, exact, salvaged, unknown, compared, copiedAgain, assumed, lost } = plan;
  const print = (line: string): void => terminal.print(line);
  for (const finding of before.fatal) print(`${terminal.out.red("fatal")}    ${formatFinding(finding)}`);
  for (const finding of before.warnings) print(`${terminal.out.yellow("warning")}  ${formatFinding(finding)}`);
  if (before.fatal.length + before.warnings.length === 0) print(`${report.metadata}: nothing is wrong with it`);
  for (const line of exact) print(`${terminal.out.green("exact")}    ${line}`);
  for (const line of salvaged) print(`${terminal.out.green("salvaged")} ${line}`);
  if (compared !== null && compared.length > 0) {
    print(
      `${terminal.out.green("equal")}    Hydrated, as source and destination are the same there: ${formatRegions(compared)}`,
    );
  }
  if (copiedAgain.length > 0) {
    print(
      `${terminal.out.green("copied")}   Copied again, which loses nothing, as no client has ever written: ${formatRegions(copiedAgain)}`,
    );
  }
  if (assumed !== null) {
    print(`${terminal.out.yellow("assumed")}  Called ${assumed.as} on your word: ${formatRegions(assumed.regions)}`);
  }
  for (const line of lost) print(`${terminal.out.yellow("lost")}     ${line}`);
  if (unknown.length > 0) print(`${terminal.out.red("unknown")}  ${formatAll(unknown)}`);
  if (!plan.ok) return;
  const { regionCount } = plan.geometry;
  const hydrated = `${plan.bits.count()} of ${regionCount} regions hydrated`;
  if (!repaired) {
    const isSound = before.fatal.length + before.warnings.length === 0;
    if (isSound && inPlace) terminal.note(`Nothing was written: it stays as it is, ${hydrated}.`);
    else terminal.note(`Nothing was written; it would have ${hydrated}.`);
    return;
  }
  print(`Wrote ${output}: sound, ${hydrated}`);
  if (backup === null) terminal.note(howToUse(report, output ?? name));
  else terminal.note(`What stood there is kept as ${backup}${formatZeroed(report.unreadableBlocks)}.`);
}

/** A device has no place that a file could take: the command would put the file where the device's name is. */
function howToUse({ metadata, isDevice }: RepairReport, output: string): string {
  if (!isDevice) return `To use it: mv -- ${shellWord(output)} ${shellWord(metadata)}`;
  return `To use it: name ${shellWord(output)} instead of ${shellWord(metadata)}, or overwrite the device with --in-place --backup FILE`;
}

function formatZeroed(blocks: RepairReport["unreadableBlocks"]): string {
  if (blocks.length === 0) return "";
  const list = blocks.map(({ start, end }) => (end - start === 1 ? `${start}` : `${start}–${end - 1}`)).join(", ");
  return `, with zeros for what could not be read: 4096-byte blocks ${list}`;
}

/** Every range, inclusive: whoever has to decide on them wants them all. */
function formatAll(ranges: readonly { start: number; end: number }[]): string {
  const all = ranges.map(({ start, end }) => (end - start === 1 ? `${start}` : `${start}–${end - 1}`));
  return `regions ${all.join(", ")}`;
}

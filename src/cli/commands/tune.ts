import { UsageError } from "../../base/errors.ts";
import type { CloneStatus } from "../../clone/clone-status.ts";
import type { Tuning } from "../../control/control-target.ts";
import { defineCommand } from "../command.ts";
import { parseDmMessage } from "../dm-message.ts";
import { ExitCode } from "../exit-codes.ts";
import { formatRow, settingRows } from "../live-rows.ts";
import { autoOr, cloneArgument, countOf, minRateOf, rateOf } from "../options.ts";

/** `clone tune CLONE` */
export const tuneCommand = defineCommand({
  options: (yargs) =>
    cloneArgument(yargs)
      .positional("message", { type: "string", describe: "A message of dm-clone, as hydration_threshold 8" })
      .positional("value", { type: "string", describe: "Its argument" })
      .positional("ignored", { type: "string", array: true, describe: "As the kernel ignores it" })
      .option("rate", {
        type: "string",
        requiresArg: true,
        coerce: rateOf("--rate"),
        describe: "Bytes per second at most, as 100M; 0 or max is unlimited",
      })
      .option("min-rate", {
        type: "string",
        requiresArg: true,
        coerce: autoOr(minRateOf),
        describe: "Bytes per second that clients never take from it, or auto",
      })
      .option("threshold", {
        type: "string",
        requiresArg: true,
        coerce: autoOr(countOf("--threshold", 0)),
        describe: "Regions being copied at once, or auto; 0 is none",
      })
      .option("batch-size", {
        type: "string",
        requiresArg: true,
        coerce: autoOr(countOf("--batch-size", 1)),
        describe: "Neighbouring regions per copy, or auto",
      })
      .option("pause", { type: "boolean", describe: "Copy nothing in the background for now" })
      .option("resume", { type: "boolean", describe: "Go on copying in the background" })
      .option("hydrate-on-read", {
        choices: ["auto", "on", "off"] as const,
        describe: "Keep what clients read from the source",
      })
      .conflicts("pause", "resume"),
  async run(options, { terminal, signal }) {
    const changes = changesOf(options);
    const { requireLivePeer } = await import("../../clone/live-peer.ts");
    const peer = await requireLivePeer(options.clone, signal);
    const isChanged = Object.keys(changes).length > 0;
    const status = isChanged ? ((await peer.client.tune(changes, signal)) as CloneStatus) : peer.status;
    for (const row of settingRows(status)) terminal.print(formatRow(row, terminal.out.dim));
    return ExitCode.done;
  },
});

/** @throws {UsageError} for a message beside options */
function changesOf(options: {
  message: string | undefined;
  value: string | undefined;
  ignored: string[] | undefined;
  rate: number | null | undefined;
  "min-rate": number | null | undefined;
  threshold: number | null | undefined;
  "batch-size": number | null | undefined;
  pause: boolean | undefined;
  resume: boolean | undefined;
  "hydrate-on-read": "auto" | "on" | "off" | undefined;
}): Tuning {
  const asked: { [Name in keyof Tuning]: Tuning[Name] | undefined } = {
    rate: options.rate,
    minRate: options["min-rate"],
    threshold: options.threshold,
    batchSize: options["batch-size"],
    paused: options.pause ? true : options.resume ? false : undefined,
    hydrateOnRead: options["hydrate-on-read"],
  };
  const changes = Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== undefined)) as Tuning;
  if (options.message === undefined) return changes;
  const words = [options.message, options.value, ...(options.ignored ?? [])].filter((word) => word !== undefined);
  if (Object.keys(changes).length === 0) return parseDmMessage(words);
  throw new UsageError(`Cannot send the message "${words.join(" ")}": it does not go with options`);
}

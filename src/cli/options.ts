/** Options that several commands share, and how their text becomes a value. */
import type { Argv } from "yargs";
import { UsageError } from "../base/errors.ts";
import { isRegionSize } from "../base/geometry.ts";
import { parseRate, parseSize } from "../base/units.ts";
import type { Trace } from "../clone/trace-codec.ts";
import { PROGRESS_STYLES } from "./progress-style.ts";

/** A size in bytes. @throws {UsageError} naming the option */
export function sizeOf(option: string): (text: string) => number {
  return (text) => parse(option, () => parseSize(text));
}

/** A rate in bytes per second, null where unlimited. @throws {UsageError} naming the option */
export function rateOf(option: string): (text: string) => number | null {
  return (text) => parse(option, () => parseRate(text));
}

/** A whole number of at least `least`. @throws {UsageError} naming the option */
export function countOf(option: string, least = 0): (text: string) => number {
  return (text) =>
    parse(option, () => {
      const count = /^\d+$/.test(text) ? Number(text) : Number.NaN;
      if (!Number.isSafeInteger(count) || count < least) {
        throw new RangeError(`"${text}" is not a whole number of at least ${least}`);
      }
      return count;
    });
}

function parse<T>(option: string, parser: () => T): T {
  try {
    return parser();
  } catch (error) {
    throw new UsageError(`Cannot use ${option}: ${(error as Error).message}`, { cause: error });
  }
}

/** CLONE. */
export function cloneArgument<T>(yargs: Argv<T>) {
  return yargs.positional("clone", {
    type: "string",
    demandOption: true,
    describe: "The clone: its metadata, or its destination",
  });
}

/** `--json`. */
export function jsonOption<T>(yargs: Argv<T>) {
  return yargs.option("json", { type: "boolean", describe: "Print one JSON object" });
}

/** `--progress`. */
export function progressOption<T>(yargs: Argv<T>) {
  return yargs.option("progress", {
    choices: PROGRESS_STYLES,
    default: "auto" as const,
    describe: "How to show progress: a bar on a terminal, lines elsewhere",
  });
}

/** Options of every command that opens source or destination. */
export function deviceOptions<T>(yargs: Argv<T>) {
  return yargs
    .option("source", { type: "string", requiresArg: true, describe: "Where the source is, if not where it was" })
    .option("destination", {
      type: "string",
      requiresArg: true,
      describe: "Where the destination is, if not where it was",
    })
    .option("accept-changed-source", {
      type: "boolean",
      describe: "Go on although the source has changed since the clone was created",
    })
    .option("header-file", HEADER_FILE);
}

/** What the options of `deviceOptions` say. */
export function deviceRequest(options: {
  source: string | undefined;
  destination: string | undefined;
  "accept-changed-source": boolean | undefined;
  "header-file": string | undefined;
}) {
  const { source, destination } = options;
  return {
    source,
    destination,
    acceptChangedSource: options["accept-changed-source"],
    headerFile: options["header-file"],
  };
}

/** Arguments and options of `create` and `copy`. */
export function createOptions<T>(yargs: Argv<T>) {
  return yargs
    .positional("source", {
      type: "string",
      demandOption: true,
      describe: "What to clone: a path, a URI, or [ COMMAND … ]",
    })
    .positional("destination", {
      type: "string",
      demandOption: true,
      describe: "Where to: a path, created sparse where nothing is, or an nbd URI",
    })
    .option("metadata", {
      type: "string",
      requiresArg: true,
      describe: "File or block device for the metadata [default: DEST.clone]",
    })
    .option("region-size", {
      type: "string",
      requiresArg: true,
      defaultDescription: "64K",
      coerce: regionSizeOf,
      describe: "Unit of cloning, a power of two from 4K to 1G",
    })
    .option("force", { type: "boolean", describe: "Overwrite a destination that holds data" })
    .option("source-format", {
      type: "string",
      requiresArg: true,
      coerce: sourceFormatOf,
      describe: "How to read the source: raw, its own bytes, or qcow2, vmdk, … [default: by its first bytes]",
    })
    .option("header-file", HEADER_FILE);
}

const HEADER_FILE = {
  type: "string",
  requiresArg: true,
  describe: "File of headers to send to a web server, one `Name: value` a line",
} as const;

/** qemu knows which formats there are; a name of one cannot be mistaken for anything else. */
function sourceFormatOf(text: string): string {
  if (/^[a-z0-9][a-z0-9_-]*$/i.test(text)) return text;
  throw new UsageError(`Cannot use --source-format: "${text}" is no name of a format`);
}

function regionSizeOf(text: string): number {
  const bytes = sizeOf("--region-size")(text);
  if (isRegionSize(bytes)) return bytes;
  throw new UsageError(`Cannot use --region-size: "${text}" is not a power of two from 4K to 1G`);
}

/** Options that steer a hydration. */
export function hydrationOptions<T>(yargs: Argv<T>) {
  return yargs
    .option("rate", {
      type: "string",
      requiresArg: true,
      coerce: rateOf("--rate"),
      describe: "Bytes per second at most, as 100M; 0 or max is unlimited",
    })
    .option("threshold", {
      type: "string",
      requiresArg: true,
      coerce: autoOr(countOf("--threshold", 1)),
      describe: "Regions being copied at once [default: auto]",
    })
    .option("batch-size", {
      type: "string",
      requiresArg: true,
      coerce: autoOr(countOf("--batch-size", 1)),
      describe: "Neighbouring regions per copy [default: auto]",
    })
    .option("retry", {
      type: "string",
      requiresArg: true,
      default: "3",
      defaultDescription: "3",
      coerce: countOf("--retry"),
      describe: "How often to try an unreadable region again",
    })
    .option("max-errors", {
      type: "string",
      requiresArg: true,
      default: "1000",
      defaultDescription: "1000",
      coerce: countOf("--max-errors"),
      describe: "Unreadable regions after which to give up",
    })
    .option("on-error", {
      choices: ["stop", "skip"] as const,
      default: "skip" as const,
      describe: "At an unreadable region stop, or go on and list it",
    })
    .option("verify", { type: "boolean", describe: "Read back what was written and compare" })
    .option("no-extents", { type: "boolean", describe: "Do not trust the holes that the source reports" })
    .option("order", {
      type: "string",
      requiresArg: true,
      describe: "File with a trace: what it names is copied first, in its order",
    });
}

/** The trace that `--order` names. @throws {CloneError} where it cannot be read, or is none */
export async function readOrder(path: string | undefined, signal: AbortSignal): Promise<Trace | undefined> {
  if (path === undefined) return undefined;
  const { readTrace } = await import("../clone/trace-file.ts");
  return await readTrace(path, { signal });
}

/** A floor, which unlike a limit may be 0. @throws {UsageError} */
export function minRateOf(text: string): number {
  if (/^0+(b|\/s)*$/i.test(text)) return 0;
  const rate = rateOf("--min-rate")(text);
  if (rate !== null) return rate;
  throw new UsageError(`Cannot use --min-rate: "${text}" is no rate that could be kept free`);
}

/** `auto` (null), or what `parse` makes of the text. */
export function autoOr(parse: (text: string) => number): (text: string) => number | null {
  return (text) => (text === "auto" ? null : parse(text));
}

/** The command line: parses, runs one command, and turns what it throws into one line and an exit code. */
import yargs, { type Argv } from "yargs";
import { CloneError, DeviceError, UsageError } from "../base/errors.ts";
import { packageVersion } from "../clone/package-version.ts";
import { safeUrl } from "../device/http/safe-url.ts";
import { firstWord, prepareArguments, refuseFlagValues } from "./arguments.ts";
import type { CliContext, Command } from "./command.ts";
import { ExitCode, exitCodeOf } from "./exit-codes.ts";
import { Interruption } from "./interruption.ts";
import type { Terminal, Verbosity } from "./terminal.ts";

/** What the list of commands shows; the rest of a command is loaded only when it is the one. */
interface CommandEntry {
  signature: string;
  description: string;
  load: () => Promise<Command>;
}

const COMMANDS: CommandEntry[] = [
  {
    signature: "create <source> <destination>",
    description: "Check both and write the metadata; copies nothing",
    load: async () => (await import("./commands/create.ts")).createCommand,
  },
  {
    signature: "hydrate <clone>",
    description: "Copy what is missing; goes on where it stopped",
    load: async () => (await import("./commands/hydrate.ts")).hydrateCommand,
  },
  {
    signature: "serve <clone>",
    description: "Serve it over NBD, all of it at once, and hydrate behind the clients",
    load: async () => (await import("./commands/serve.ts")).serveCommand,
  },
  {
    signature: "status <clone>",
    description: "Show how far a clone is",
    load: async () => (await import("./commands/status.ts")).statusCommand,
  },
  {
    signature: "tune <clone> [message] [value] [ignored..]",
    description: "Change a running hydration at once",
    load: async () => (await import("./commands/tune.ts")).tuneCommand,
  },
  {
    signature: "check <metadata>",
    description: "Read every block of the metadata and say what is wrong with it",
    load: async () => (await import("./commands/check.ts")).checkCommand,
  },
  {
    signature: "repair <metadata>",
    description: "Make new metadata of what damaged metadata proves",
    load: async () => (await import("./commands/repair.ts")).repairCommand,
  },
  {
    signature: "dump <metadata>",
    description: "Print the metadata as text",
    load: async () => (await import("./commands/dump.ts")).dumpCommand,
  },
  {
    signature: "restore",
    description: "Make metadata from what dump has printed",
    load: async () => (await import("./commands/restore.ts")).restoreCommand,
  },
  {
    signature: "verify <clone>",
    description: "Compare the destination with the source, hydrated regions only",
    load: async () => (await import("./commands/verify.ts")).verifyCommand,
  },
  {
    signature: "finalize <clone>",
    description: "When all is hydrated: make the destination stand alone",
    load: async () => (await import("./commands/finalize.ts")).finalizeCommand,
  },
  {
    signature: "copy <source> <destination>",
    description: "Create, hydrate and finalize in one go",
    load: async () => (await import("./commands/copy.ts")).copyCommand,
  },
  {
    signature: "delete <clone>",
    description: "Give a clone up: the metadata goes, the destination stays",
    load: async () => (await import("./commands/delete.ts")).deleteCommand,
  },
  {
    signature: "completion",
    description: "Print the completion script for bash or zsh",
    load: async () => (await import("./commands/completion.ts")).completionCommand,
  },
];

const HELP_FOOTER = "man clone (or clone.1 in the package's man/) has the details.";

/** Parses and runs a command line, and sets the process's exit code. */
export async function runCommandLine(given: string[]): Promise<void> {
  hideCredentials(given);
  let args: string[];
  try {
    args = prepareArguments(given);
  } catch (error) {
    process.exitCode = await report(error, undefined, given);
    return;
  }
  let context: CliContext | undefined;
  let exit: ExitCode = ExitCode.done;
  let isAnswered = false;
  const parser = buildParser(args);
  parser.middleware(() => {
    isAnswered = hasOutput(parser);
  }, true);
  addCommands(parser, async (command, options) => {
    refuseFlagValues(args, optionsOf(parser).boolean);
    context = await newContext(options as unknown as Verbosity, args); // every command has these, see buildParser
    exit = await command.run(options, context);
  });
  try {
    refuseUnknownCommand(args);
    await parser.parseAsync();
  } catch (error) {
    // The parser goes on to the values of options after it has answered what was asked beside them.
    if (!isAnswered) exit = await report(asUsage(firstOf(error), parser), context, args);
  } finally {
    context?.interruption[Symbol.dispose]();
  }
  process.exitCode = exit;
}

/** Everybody on the machine may read what a process was started with, for as long as that is its title. */
function hideCredentials(args: string[]): void {
  const isSecret = (text: string): boolean => /^[a-z0-9+.-]+:\/\//i.test(text) && !safeUrl(text).isComplete;
  if (args.some((arg) => isSecret(arg.replace(/^--[a-z-]+=/, "")))) process.title = `clone ${firstWord(args) ?? ""}`;
}

/** Before the parser, which would rather complain of what follows it. */
function refuseUnknownCommand(args: string[]): void {
  const word = firstWord(args);
  if (word === undefined || args.includes("--get-yargs-completions")) return;
  if (!COMMANDS.some(({ signature }) => signature.split(" ")[0] === word)) throw new WrongUsage("Unknown command", []);
}

/** The text of `clone --help`, for a terminal of 80 columns. */
export async function helpText(): Promise<string> {
  const parser = buildParser([]).wrap(80);
  addCommands(parser, async () => {});
  return `${await parser.getHelp()}\n`;
}

function addCommands(parser: Argv, run: (command: Command, options: object) => Promise<void>): void {
  for (const { signature, description, load } of COMMANDS) {
    parser.command(
      signature,
      description,
      async (options) => (await load()).options(options),
      async (options) => await run(await load(), options),
    );
  }
}

function buildParser(args: string[]): Argv {
  const parser = yargs(args);
  return parser
    .scriptName("clone")
    .usage("$0 COMMAND [OPTIONS] …\n\nClones disk images on the metadata format of the kernel's dm-clone.")
    .locale("en")
    .parserConfiguration({
      "camel-case-expansion": false,
      "dot-notation": false,
      "duplicate-arguments-array": false,
      "parse-numbers": false,
      "boolean-negation": false,
    })
    .option("verbose", { alias: "v", type: "boolean", describe: "Say what is decided on the way" })
    .option("quiet", { alias: "q", type: "boolean", describe: "Only results, warnings and errors" })
    .version("version", "Show the version", packageVersion())
    .alias("version", "V")
    .help("help", "Show this help")
    .alias("help", "h")
    .demandCommand(1)
    .strict()
    .showHelpOnFail(false)
    .exitProcess(false)
    .wrap(Math.min(100, process.stdout.columns ?? 80))
    .epilogue(HELP_FOOTER)
    .fail((message, error) => {
      throw error ?? new WrongUsage(message, optionNames(parser));
    })
    .group(["verbose", "quiet", "version", "help"], "Everywhere:");
}

async function newContext({ verbose, quiet }: Verbosity, args: string[]): Promise<CliContext> {
  const terminal = await newTerminal({ verbose, quiet });
  const interruption = new Interruption();
  const onWarning = (warning: string): void => terminal.warn(warning);
  const isGiven = (option: string): boolean => args.some((arg) => arg.replace(/=.*/s, "") === `--${option}`);
  const onDetail = (line: string): void => terminal.detail(line);
  return { terminal, verbose, quiet, interruption, signal: interruption.signal, isGiven, onWarning, onDetail };
}

/** Loaded late, with its colours: --help needs neither. */
async function newTerminal(verbosity: Verbosity): Promise<Terminal> {
  const { Terminal } = await import("./terminal.ts");
  return new Terminal(verbosity);
}

async function report(error: unknown, context: CliContext | undefined, args: string[]): Promise<ExitCode> {
  const terminal = context?.terminal ?? (await newTerminal({ verbose: false, quiet: false }));
  const interruption = context?.interruption;
  if (interruption?.signal.aborted && (error === interruption.signal.reason || isOfClosing(error))) {
    terminal.note("Stopped.");
    return interruption.exitCode;
  }
  const { message, hint } = await explain(error, args);
  terminal.error(message, hint);
  if (process.env.DEBUG === "clone" && error instanceof Error) terminal.trace(inspectError(error));
  return exitCodeOf(error);
}

/** Who asks to stop has remote devices closed that do not answer: what was still asked of them fails with these. */
function isOfClosing(error: unknown): boolean {
  return error instanceof DeviceError && (error.errno === "EBADF" || error.errno === "ECANCELED");
}

async function explain(error: unknown, args: string[]): Promise<{ message: string; hint: string | undefined }> {
  if (error instanceof WrongUsage) {
    const { usageError } = await import("./usage-message.ts"); // loaded only for a mistake
    return usageError(error.message, {
      args,
      optionNames: error.optionNames,
      signatures: COMMANDS.map((command) => command.signature),
    });
  }
  if (error instanceof CloneError) return { message: error.message, hint: error.hint };
  const message = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return { message: `Cannot go on, this is a fault of the program: ${message}`, hint: "DEBUG=clone shows where." };
}

/** What the parser did not understand, in its own words. */
class WrongUsage extends UsageError {
  readonly optionNames: string[];

  constructor(message: string, optionNames: string[]) {
    super(message);
    this.optionNames = optionNames;
  }
}

/** What went wrong first: letting things go may fail on top of it (`await using` then throws a SuppressedError). */
function firstOf(error: unknown): unknown {
  let first = error;
  while (first instanceof Error && first.name === "SuppressedError" && "suppressed" in first) first = first.suppressed;
  return first;
}

/** What an option's own parser throws comes back as a YError, which kept only the message. */
function asUsage(error: unknown, parser: Argv): unknown {
  return error instanceof Error && error.name === "YError" ? new WrongUsage(error.message, optionNames(parser)) : error;
}

/** The long options that the parser knew when it failed. */
function optionNames(parser: Argv): string[] {
  return Object.keys(optionsOf(parser).key).filter((name) => name.length > 1);
}

/** The options that a parser knows by now; `getOptions` is there but not in the types. */
function optionsOf(parser: unknown): { key: Record<string, unknown>; boolean: string[] } {
  return (parser as { getOptions(): { key: Record<string, unknown>; boolean: string[] } }).getOptions();
}

/** Whether a parser has printed the help or the version; a method of its own that is not in the types. */
function hasOutput(parser: unknown): boolean {
  return (parser as { getInternalMethods(): { getHasOutput(): boolean } }).getInternalMethods().getHasOutput();
}

function inspectError(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by ${inspectError(error.cause)}` : "";
  return `${error.stack ?? error.message}${cause}`;
}

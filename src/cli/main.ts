/** The command line: parses, runs one command, and turns what it throws into one line and an exit code. */
import { readFileSync } from "node:fs";
import yargs, { type Argv } from "yargs";
import { CloneError, UsageError } from "../base/errors.ts";
import type { CliContext, Command } from "./command.ts";
import { checkCommand } from "./commands/check.ts";
import { copyCommand } from "./commands/copy.ts";
import { createCommand } from "./commands/create.ts";
import { deleteCommand } from "./commands/delete.ts";
import { dumpCommand } from "./commands/dump.ts";
import { finalizeCommand } from "./commands/finalize.ts";
import { hydrateCommand } from "./commands/hydrate.ts";
import { statusCommand } from "./commands/status.ts";
import { verifyCommand } from "./commands/verify.ts";
import { ExitCode, exitCodeOf } from "./exit-codes.ts";
import { Interruption } from "./interruption.ts";
import { Terminal, type Verbosity } from "./terminal.ts";

const COMMANDS: Command[] = [
  createCommand,
  hydrateCommand,
  statusCommand,
  checkCommand,
  dumpCommand,
  verifyCommand,
  finalizeCommand,
  copyCommand,
  deleteCommand,
];

const HELP_FOOTER = "man clone (or clone.1 in the package's man/) has the details.";

/** Runs the command line and sets the process's exit code. */
export async function run(args: string[]): Promise<void> {
  // A reader that went away (`clone status … | head -1`) is no failure of ours.
  process.stdout.on("error", (error: NodeJS.ErrnoException) =>
    process.exit(error.code === "EPIPE" ? 0 : ExitCode.failed),
  );
  let context: CliContext | undefined;
  let exit: ExitCode = ExitCode.done;
  try {
    const parser = buildParser(args);
    for (const command of COMMANDS) {
      parser.command(command.signature, command.description, command.options, async (options) => {
        context = newContext(options as unknown as Verbosity); // options of every command, see buildParser

        exit = await command.run(options, context);
      });
    }
    await parser.parseAsync();
    if (context?.interruption.signal.aborted) exit = context.interruption.exitCode;
  } catch (error) {
    exit = await report(error, context, args);
  } finally {
    context?.interruption[Symbol.dispose]();
  }
  process.exitCode = exit;
}

function buildParser(args: string[]): Argv {
  const parser = yargs(args);
  return parser
    .scriptName("clone")
    .usage("$0 COMMAND [OPTIONS] …\n\nClones disk images on the metadata format of the kernel's dm-clone.")
    .locale("en")
    .parserConfiguration({
      "camel-case-expansion": false,
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
    .completion("completion", "Print the completion script for bash or zsh")
    .demandCommand(1, 1, "Which command? `clone --help` lists them", "Only one command at a time")
    .strict()
    .recommendCommands()
    .showHelpOnFail(false)
    .exitProcess(false)
    .wrap(Math.min(100, process.stdout.columns ?? 80))
    .epilogue(HELP_FOOTER)
    .fail((message, error) => {
      // What an option's parser throws comes back as a YError that kept only the message.
      if (error !== undefined && error.name !== "YError") throw error;
      throw new WrongUsage(error?.message ?? message, optionNames(parser));
    })
    .group(["verbose", "quiet", "version", "help"], "Everywhere:");
}

function newContext({ verbose, quiet }: Verbosity): CliContext {
  const terminal = new Terminal({ verbose, quiet });
  const interruption = new Interruption();
  return { terminal, verbose, quiet, interruption, signal: interruption.signal };
}

async function report(error: unknown, context: CliContext | undefined, args: string[]): Promise<ExitCode> {
  const terminal = context?.terminal ?? new Terminal({ verbose: false, quiet: false });
  const interruption = context?.interruption;
  if (interruption?.signal.aborted && error === interruption.signal.reason) return interruption.exitCode;
  const { message, hint } = await explain(error, args);
  terminal.error(message, hint);
  if (process.env.DEBUG === "clone" && error instanceof Error) process.stderr.write(`${inspectError(error)}\n`);
  return exitCodeOf(error);
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

/** The long options that the parser knew when it failed; yargs documents `getOptions` but its types do not. */
function optionNames(parser: unknown): string[] {
  const { key } = (parser as { getOptions(): { key: Record<string, unknown> } }).getOptions();
  return Object.keys(key).filter((name) => name.length > 1);
}

function inspectError(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by ${inspectError(error.cause)}` : "";
  return `${error.stack ?? error.message}${cause}`;
}

function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

/** What a command is to the command line: it parses, calls and prints; policy belongs to the clone. */
import type { Argv } from "yargs";
import type { ExitCode } from "./exit-codes.ts";
import type { Interruption } from "./interruption.ts";
import type { Terminal } from "./terminal.ts";

/** What every command gets. */
export interface CliContext {
  terminal: Terminal;
  verbose: boolean;
  quiet: boolean;
  interruption: Interruption;
  /** Aborts on Ctrl-C or SIGTERM. */
  signal: AbortSignal;
  /** Whether a long option stands on the command line: not all without one are undefined, some have a default. */
  isGiven: (option: string) => boolean;
  /** For whatever finds something odd but bearable. */
  onWarning: (warning: string) => void;
  /** A line that only the curious want. */
  onDetail: (line: string) => void;
}

/** A command with its options type hidden, as the list of commands holds it. */
export interface Command {
  // biome-ignore lint/suspicious/noExplicitAny: commands of different options have no common type but this
  options: (yargs: Argv<any>) => Argv<any>;
  // biome-ignore lint/suspicious/noExplicitAny: see above
  run: (options: any, context: CliContext) => Promise<ExitCode>;
}

/** Defines a command; `run` sees the options that `options` declares, and resolves to the exit code. */
export function defineCommand<Options>(command: {
  options: (yargs: Argv<object>) => Argv<Options>;
  run: (options: Options, context: CliContext) => Promise<ExitCode>;
}): Command {
  return command;
}

/** Turns what yargs says of a wrong command line into one clear line, with a suggestion where a word was mistyped. */
import { closest, distance } from "fastest-levenshtein";
import { UsageError } from "../base/errors.ts";

/** More changed letters than this make another word, not a mistyped one. */
const MOST_TYPOS = 3;

/** What a mistake is explained from. */
interface CommandLine {
  args: string[];
  /** Long options that the command would have taken. */
  optionNames: string[];
  /** Of all commands: `hydrate <clone>`. */
  signatures: string[];
}

/** A usage error from a message of yargs. */
export function usageError(message: string, { args, optionNames, signatures }: CommandLine): UsageError {
  const didYouMean = /^Did you mean (.*)\?$/.exec(message);
  if (didYouMean !== null)
    return new UsageError(`Cannot run "${firstWord(args)}": there is no such command`, { hint: message });
  const unknown = /^Unknown (?:argument|command)s?: (.*)$/.exec(message);
  if (unknown !== null) return unknownArgument(unknown[1] as string, args, optionNames);
  if (message.startsWith("Not enough non-option arguments")) {
    const signature = signatures.find((candidate) => candidate.split(" ")[0] === firstWord(args));
    return new UsageError(`Cannot run ${firstWord(args)}: an argument is missing, of clone ${signature}`);
  }
  const choice = /Argument: (.*), Given: (.*), Choices: (.*)/.exec(message);
  if (choice !== null) {
    return new UsageError(`Cannot use --${choice[1]} ${choice[2]}: choose one of ${choice[3]?.replaceAll('"', "")}`);
  }
  const valueless = /^Not enough arguments following: (.*)$/.exec(message);
  if (valueless !== null) return new UsageError(`Cannot use --${valueless[1]}: it needs a value`);
  const exclusive = /^Arguments (.*) and (.*) are mutually exclusive$/.exec(message);
  if (exclusive !== null) return new UsageError(`Cannot use --${exclusive[1]} and --${exclusive[2]} together`);
  return new UsageError(message.replace(/\s*\n\s*/g, " "));
}

function unknownArgument(list: string, args: string[], optionNames: string[]): UsageError {
  const name = (list.split(", ")[0] as string).replace(/^-+/, "");
  const option = args.find((arg) => new RegExp(`^--?${escapeRegExp(name)}(=|$)`).test(arg))?.replace(/=.*/, "");
  if (option === undefined) {
    const isCommand = name === firstWord(args);
    return isCommand
      ? new UsageError(`Cannot run "${name}": there is no such command`, { hint: "`clone --help` lists the commands." })
      : new UsageError(`Cannot understand "${name}": it is one argument too many`);
  }
  const likely = closest(name, optionNames);
  const hint =
    optionNames.length > 0 && distance(name, likely) <= MOST_TYPOS
      ? `Did you mean --${likely}?`
      : `\`clone ${firstWord(args)} --help\` lists the options.`;
  return new UsageError(`Cannot understand ${option}: there is no such option`, { hint });
}

function firstWord(args: string[]): string {
  return args.find((arg) => !arg.startsWith("-")) ?? "";
}

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

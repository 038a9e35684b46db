/** Turns what yargs says of a wrong command line into one clear line, with a suggestion where a word was mistyped. */
import { closest, distance } from "fastest-levenshtein";
import { UsageError } from "../base/errors.ts";
import { firstWord } from "./arguments.ts";

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
  const command = firstWord(args);
  const names = signatures.map((signature) => signature.split(" ")[0] as string);
  if (command === undefined) {
    const option = args.find((arg) => arg.startsWith("-"));
    if (option !== undefined) return unknownOption(option, optionNames, "`clone --help` lists commands and options.");
    return new UsageError("Cannot run: no command is given", { hint: "`clone --help` lists them." });
  }
  if (!names.includes(command)) {
    return new UsageError(`Cannot run "${command}": there is no such command`, {
      hint: suggestion(command, names) ?? "`clone --help` lists the commands.",
    });
  }
  const unknown = /^Unknown (?:argument|command)s?: (.*)$/.exec(message);
  if (unknown !== null) return unknownArgument((unknown[1] as string).split(", ")[0] as string, args, optionNames);
  if (message.startsWith("Not enough non-option arguments")) {
    // What is taken for the value of an option that there is none of is missing among the arguments.
    const option = args.find((arg) => arg.startsWith("--") && arg !== "--" && !isKnown(arg, optionNames));
    if (option !== undefined)
      return unknownOption(option, optionNames, `\`clone ${command} --help\` lists the options.`);
    return new UsageError(
      `Cannot run ${command}: an argument is missing, of clone ${signatures[names.indexOf(command)]}`,
    );
  }
  const choice = /Argument: (.*), Given: (.*), Choices: (.*)/.exec(message);
  if (choice !== null) {
    return new UsageError(`Cannot use --${choice[1]} ${choice[2]}: choose one of ${choice[3]?.replaceAll('"', "")}`);
  }
  const missing = /^Missing required arguments?: ([^,\n]*)/.exec(message);
  if (missing !== null) return new UsageError(`Cannot run ${command}: --${missing[1]} is missing`);
  const valueless = /^Not enough arguments following: (.*)$/.exec(message);
  if (valueless !== null) return new UsageError(`Cannot use --${valueless[1]}: it needs a value`);
  const exclusive = /^Arguments (.*) and (.*) are mutually exclusive$/.exec(message);
  if (exclusive !== null) return new UsageError(`Cannot use --${exclusive[1]}: it does not go with --${exclusive[2]}`);
  return new UsageError(message.replace(/\s*\n\s*/g, " "));
}

function unknownArgument(argument: string, args: string[], optionNames: string[]): UsageError {
  const name = argument.replace(/^-+/, "");
  const option = args.find((arg) => arg.startsWith("-") && arg.replace(/^-+/, "").replace(/=.*/, "") === name);
  if (option === undefined) return new UsageError(`Cannot understand "${name}": it is one argument too many`);
  return unknownOption(option, optionNames, `\`clone ${firstWord(args)} --help\` lists the options.`);
}

function isKnown(option: string, optionNames: string[]): boolean {
  const name = option.slice(2).replace(/=.*/, "");
  return optionNames.includes(name) || optionNames.includes(name.replace(/^no-/, ""));
}

function unknownOption(option: string, optionNames: string[], otherwise: string): UsageError {
  const text = option.replace(/=.*/, "");
  const name = suggestion(text.replace(/^-+/, ""), optionNames, "--");
  return new UsageError(`Cannot understand ${text}: there is no such option`, { hint: name ?? otherwise });
}

/** `Did you mean --rate?`, where something is near enough. */
function suggestion(word: string, candidates: string[], prefix = ""): string | undefined {
  const likely = candidates.length === 0 ? undefined : closest(word, candidates);
  if (likely === undefined || distance(word, likely) > Math.min(MOST_TYPOS, Math.floor(word.length / 2)))
    return undefined;
  return `Did you mean ${prefix}${likely}?`;
}

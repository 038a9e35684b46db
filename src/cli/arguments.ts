/** What has to be done to a command line before and beside the parser, which cannot express it. */
import { UsageError } from "../base/errors.ts";
import { commandText } from "../clone/command-text.ts";

/** Begins a command whose words follow, as for nbdcopy and nbdinfo; what ends it. */
const [OPENING, CLOSING] = ["[", "]"];

/** Options that yargs would take for what it keeps itself: arguments as `_`, the program's name as `$0`. */
const OF_THE_PARSER = /^--(_|\$0)(=|$)|^-[^-=]*[_$]/;

/** The first argument that is no option: the command. */
export function firstWord(args: string[]): string | undefined {
  return args.find((arg) => !arg.startsWith("-"));
}

/**
 * The arguments as the parser understands them: `[ COMMAND … ]` is one of them; `--watch` takes a number or nothing, where it would take the word that
 * follows; and what follows `--` is a path even if it begins with a hyphen, where it would be no argument of the command.
 */
export function prepareArguments(given: string[]): string[] {
  const args = joinCommands(given);
  const end = args.includes("--") ? args.indexOf("--") : args.length;
  const options = args
    .slice(0, end)
    .map((arg, index) => (arg === "--watch" && !/^\d+$/.test(args[index + 1] ?? "") ? "--watch=2" : arg));
  const own = options.find((arg) => OF_THE_PARSER.test(arg));
  if (own !== undefined) throw new UsageError(`Cannot understand ${own.replace(/=.*/s, "")}: there is no such option`);
  const paths = args.slice(end + 1).map((path) => (path.startsWith("-") ? `./${path}` : path));
  return [...options, ...paths];
}

/** Makes one argument of each `[ COMMAND … ]`, whose words may look like options. @throws {UsageError} where it does not end */
function joinCommands(args: string[]): string[] {
  const joined: string[] = [];
  for (let index = 0; index < args.length; index++) {
    const arg = args[index] as string;
    const prefix = arg === `--source=${OPENING}` ? "--source=" : "";
    if (arg !== OPENING && prefix === "") {
      joined.push(arg);
      continue;
    }
    const end = args.indexOf(CLOSING, index + 1);
    if (end < 0) throw new UsageError("Cannot find the end of the command: [ must be followed by a lone ]");
    if (end === index + 1) throw new UsageError("Cannot run the command: there is nothing between [ and ]");
    joined.push(`${prefix}${commandText(args.slice(index + 1, end))}`);
    index = end;
  }
  return joined;
}

/**
 * @param flags names of the options that take no value
 * @throws {UsageError} for a flag with a value that is neither true nor false, which the parser takes for false
 */
export function refuseFlagValues(args: string[], flags: readonly string[]): void {
  for (const arg of args) {
    const [, name, value] = /^--([^=]+)=(.*)$/.exec(arg) ?? [];
    if (name === undefined || !flags.includes(name) || value === "true" || value === "false") continue;
    throw new UsageError(`Cannot use --${name}=${value}: it takes no value`);
  }
}

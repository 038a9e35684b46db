/** Where text goes and how it looks there: results to standard output, everything else to standard error. */
import { Chalk, type ChalkInstance, supportsColor, supportsColorStderr } from "chalk";
import { writeLine } from "./status-line.ts";

/** What the global options ask of the output. */
export interface Verbosity {
  verbose: boolean;
  quiet: boolean;
}

/** Writes lines, coloured only where a person sees them and NO_COLOR (no-color.org) does not forbid it. */
export class Terminal {
  /** Colours for standard output. */
  readonly out: ChalkInstance;
  /** Colours for standard error. */
  readonly err: ChalkInstance;
  readonly #verbosity: Verbosity;

  constructor(verbosity: Verbosity, environment: NodeJS.ProcessEnv = process.env) {
    const colourless = (environment.NO_COLOR ?? "") !== "";
    this.out = new Chalk({ level: colourless || supportsColor === false ? 0 : supportsColor.level });
    this.err = new Chalk({ level: colourless || supportsColorStderr === false ? 0 : supportsColorStderr.level });
    this.#verbosity = verbosity;
  }

  /** A line of the result. */
  print(line: string): void {
    process.stdout.write(`${line}\n`);
  }

  /** A line about what is going on; not with --quiet. */
  note(line: string): void {
    if (!this.#verbosity.quiet) writeLine(line);
  }

  /** A line that only --verbose asks for. */
  detail(line: string): void {
    if (this.#verbosity.verbose) writeLine(this.err.dim(line));
  }

  /** Something that deserves attention but stops nothing. */
  warn(line: string): void {
    writeLine(`${this.err.yellow("clone: Warning:")} ${line}`);
  }

  /** Why the command failed, in one line, and below it what can be done. */
  error(message: string, hint?: string): void {
    writeLine(`${this.err.red("clone:")} ${message}`);
    if (hint !== undefined) writeLine(hint);
  }
}

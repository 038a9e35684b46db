/** Where text goes and how it looks there: results to standard output, everything else to standard error. */
import { Chalk, type ChalkInstance, supportsColor, supportsColorStderr } from "chalk";
import { printableLine } from "../base/printable.ts";
import { writeLine } from "./status-line.ts";

/** What the global options ask of the output. */
export interface Verbosity {
  verbose: boolean;
  quiet: boolean;
}

/**
 * Writes lines, coloured only where a person sees them and NO_COLOR (no-color.org) does not forbid it. Whatever a line holds
 * of others' words, a terminal obeys none of it.
 */
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

  /** A line of the result, or several. */
  print(line: string): void {
    process.stdout.write(`${this.shown(line)}\n`);
  }

  /** A line of the result as it may be written to standard output. */
  shown(line: string): string {
    return printableLine(line, { colours: this.out.level > 0, lines: true });
  }

  /** A line about what is going on; not with --quiet. */
  note(line: string): void {
    if (!this.#verbosity.quiet) this.#tell(line);
  }

  /** A line that only --verbose asks for. */
  detail(line: string): void {
    if (this.#verbosity.verbose) this.#tell(this.err.dim(line));
  }

  /** Something that deserves attention but stops nothing. */
  warn(line: string): void {
    this.#tell(`${this.err.yellow("clone: Warning:")} ${line}`);
  }

  /** Why the command failed, in one line, and below it what can be done. */
  error(message: string, hint?: string): void {
    this.#tell(`${this.err.red("clone:")} ${message}`);
    if (hint !== undefined) this.#tell(hint, { lines: true });
  }

  /** What a programmer wants to know of an error. */
  trace(text: string): void {
    this.#tell(text, { lines: true });
  }

  /** One line, or what takes a place of its own might seem to be ours. */
  #tell(line: string, { lines = false } = {}): void {
    writeLine(printableLine(line, { colours: this.err.level > 0, lines }));
  }
}

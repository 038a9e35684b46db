/**
 * The text of a trace: which ranges of an image were needed, in that order. `clone-trace(5)` describes it for people.
 *
 *     clone-trace 1          the format and its version
 *     size 1073741824        of the image, bytes; may be missing
 *     # a comment            of its own, or behind a range
 *     0 4096                 offset and length, in the order of first touch
 *     2048s 32K              in any unit that sizes are written in
 *
 * Blanks do not matter. All else does: a list that was misunderstood would only make things slower, and nobody would know.
 */
import { CloneError } from "../base/errors.ts";
import type { ByteRange } from "../base/geometry.ts";
import { parseSize } from "../base/units.ts";

/** Ranges that count; a trace with more is cut off there, when it is written and when it is read. */
export const MOST_RANGES = 2 ** 20;

const FORMAT = "clone-trace";
const VERSION = 1;
/** How much of a line an error shows, characters. */
const MOST_SHOWN = 40;

/** The lines before the ranges of a trace of an image of `size` bytes. */
export function encodeTraceHeader(size: number): string {
  return `${FORMAT} ${VERSION}\nsize ${size}\n# Offset and length in bytes of what was needed, in the order of first touch.\n`;
}

/** The line of a range. */
export function encodeTraceRange({ offset, length }: ByteRange): string {
  return `${offset} ${length}\n`;
}

/** The ranges of a trace in their order, and what else it tells. */
export class Trace {
  /** As it was named. */
  readonly name: string;
  /** Of the image it was recorded of, bytes; undefined where it does not say. */
  size: number | undefined;
  /** Whether it had more ranges than count. */
  cutOff = false;
  /** Offset and length of each. */
  #numbers = new Float64Array(2048);
  #count = 0;

  constructor(name: string) {
    this.name = name;
  }

  /** How many ranges. */
  get length(): number {
    return this.#count;
  }

  /** Appends a range; false, without doing so, where there are as many as count already. */
  push({ offset, length }: ByteRange): boolean {
    if (this.#count === MOST_RANGES) {
      this.cutOff = true;
      return false;
    }
    if (2 * this.#count === this.#numbers.length) {
      const numbers = new Float64Array(2 * this.#numbers.length);
      numbers.set(this.#numbers);
      this.#numbers = numbers;
    }
    this.#numbers.set([offset, length], 2 * this.#count);
    this.#count++;
    return true;
  }

  *ranges(): Generator<ByteRange> {
    for (let index = 0; index < this.#count; index++) {
      yield { offset: this.#numbers[2 * index] as number, length: this.#numbers[2 * index + 1] as number };
    }
  }
}

/** Understands a trace line by line. */
export class TraceParser {
  readonly trace: Trace;
  #line = 0;
  #hasHeader = false;

  constructor(name: string) {
    this.trace = new Trace(name);
  }

  /**
   * Takes the next line, without its end. Returns whether more are wanted.
   * @throws {CloneError} saying which line is wrong, and why
   */
  take(line: string): boolean {
    this.#line++;
    const fields = line.replace(/#.*/s, "").trim().split(/\s+/);
    const [first = "", second] = fields;
    if (first === "") return true;
    if (!this.#hasHeader) {
      this.#takeHeader(fields);
      return true;
    }
    if (second === undefined || fields.length > 2) this.#refuse(`${quote(line)} is not an offset and a length`);
    if (first === "size") {
      if (this.trace.size !== undefined || this.trace.length > 0) this.#refuse("a size comes once, before the ranges");
      this.trace.size = this.#sizeOf(second);
      return true;
    }
    const [offset, length] = [this.#sizeOf(first), this.#sizeOf(second)];
    if (length === 0) this.#refuse("a range of no bytes");
    if (!Number.isSafeInteger(offset + length)) this.#refuse(`${quote(line)} is too large`);
    return this.trace.push({ offset, length });
  }

  /** There are no more lines. @throws {CloneError} where it was no trace */
  end(): void {
    if (!this.#hasHeader) this.#refuseFormat();
  }

  /** The line after those taken cannot be one of a trace. @throws {CloneError} always */
  refuseLong(): never {
    if (!this.#hasHeader) this.#refuseFormat();
    this.#line++;
    this.#refuse("it is too long");
  }

  #takeHeader([format, version, ...more]: string[]): void {
    if (format !== FORMAT || version === undefined || more.length > 0) this.#refuseFormat();
    if (version !== String(VERSION)) this.#refuse(`version ${quote(version)} of the format is not known`);
    this.#hasHeader = true;
  }

  #sizeOf(text: string): number {
    try {
      return parseSize(text);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return this.#refuse(`${quote(text)} is no size, or one that is too large`);
    }
  }

  #refuseFormat(): never {
    throw new CloneError(
      "failed",
      `Cannot use the trace "${this.trace.name}": it does not begin with "${FORMAT} ${VERSION}"`,
      {
        hint: "`clone serve --record-trace` makes a trace; clone-trace(5) tells how to make one of something else.",
      },
    );
  }

  #refuse(what: string): never {
    throw new CloneError("failed", `Cannot use the trace "${this.trace.name}": line ${this.#line}: ${what}`);
  }
}

/** Text that may be anything, as an error can show it. */
function quote(text: string): string {
  const shown = text.trim();
  return JSON.stringify(shown.length > MOST_SHOWN ? `${shown.slice(0, MOST_SHOWN)}…` : shown);
}

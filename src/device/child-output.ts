import type { Readable } from "node:stream";

/** Lines kept, and characters of each: what a program says last is why it ended. */
const LINES = 16;
const LONGEST_LINE = 500;

/** What a program prints: its last lines are kept, and each is told. Whatever it prints, memory stays bounded. */
export class ChildOutput {
  readonly #onLine: (line: string) => void;
  readonly #lines: string[] = [];

  constructor(onLine: (line: string) => void) {
    this.#onLine = onLine;
  }

  /** The last lines, oldest first. */
  get lines(): readonly string[] {
    return this.#lines;
  }

  /** Forgets what was printed. */
  clear(): void {
    this.#lines.length = 0;
  }

  /** Reads a stream to its end. */
  take(stream: Readable): void {
    let line = "";
    stream.setEncoding("utf8");
    stream.on("data", (text: string) => {
      const [first = "", ...more] = text.split(/\r\n|\n|\r/);
      line = (line + first).slice(0, LONGEST_LINE);
      for (const next of more) {
        this.#add(line);
        line = next.slice(0, LONGEST_LINE);
      }
    });
    stream.on("error", () => {}); // it has no more to say
    stream.on("close", () => this.#add(line));
  }

  #add(line: string): void {
    const plain = printable(line).trim();
    if (plain === "") return;
    this.#lines.push(plain);
    if (this.#lines.length > LINES) this.#lines.shift();
    this.#onLine(plain);
  }
}

/** A line without what would move the cursor or colour a terminal. */
function printable(line: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out
  return line.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, "").replace(/[\u0000-\u001f\u007f-\u009f]/g, " ");
}

/** Text on a terminal that takes the place of what was shown before, without flicker and without touching what is above. */

/** Line wrapping off and on (DECAWM): a line that is too long is cut off, or the count of lines would not hold. */
const NO_WRAP = "\u001b[?7l";
const WRAP = "\u001b[?7h";
/** From the cursor to the end of its line, and of the screen (EL, ED). */
const CLEAR_LINE = "\u001b[K";
const CLEAR_BELOW = "\u001b[J";

/** What it needs of a terminal. */
export type RedrawnTerminal = Pick<NodeJS.WriteStream, "write" | "rows">;

/** Draws text over what it drew before. */
export class Redrawing {
  readonly #terminal: RedrawnTerminal;
  #drawnLines = 0;

  constructor(terminal: RedrawnTerminal) {
    this.#terminal = terminal;
  }

  /** Shows lines in place of the last ones; below them, where these do not fit on the screen. */
  show(lines: readonly string[]): void {
    const fits = this.#drawnLines < (this.#terminal.rows ?? 0);
    const up = this.#drawnLines > 0 && fits ? `\u001b[${this.#drawnLines}A` : "";
    const text = lines.map((line) => `${line}${CLEAR_LINE}\n`).join("");
    this.#terminal.write(`${up}${NO_WRAP}${text}${WRAP}${CLEAR_BELOW}`); // in one write, or it would flicker
    this.#drawnLines = lines.length;
  }
}

/**
 * The line of a terminal that a progress bar keeps to itself, and lines that come in between: each takes the bar's place, and
 * the bar is drawn again below it.
 */

/** ECMA-48 and DEC: the line's start and nothing on it (EL), wrapping (DECAWM), the place that `cli-progress` goes back to (DECSC). */
const CLEAR_LINE = "\r\x1b[2K";
const [WRAP, NO_WRAP] = ["\x1b[?7h", "\x1b[?7l"];
const SAVE_CURSOR = "\x1b7";

let isShown = false;

/** Says that a bar stands on the last line of standard error, or that it has ended. */
export function barIsShown(shown: boolean): void {
  isShown = shown;
}

/** Writes a line to standard error, above the bar where one is shown. */
export function writeLine(line: string): void {
  const [before, after] = isShown ? [`${CLEAR_LINE}${WRAP}`, `${NO_WRAP}${SAVE_CURSOR}`] : ["", ""];
  process.stderr.write(`${before}${line}\n${after}`);
}

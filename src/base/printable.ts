/**
 * Text of others, made fit to be shown. Names of files, what metadata records and what servers say may hold what a terminal
 * obeys: to set its title, to move its cursor over what stands there, to show a name backwards.
 */

/** C0, DEL and C1, and what turns the direction of writing around (Unicode, Bidi_Control). */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
const CONTROLS = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** The same, and before it what we colour with ourselves: bold, dim, and the colours of letters. */
const COLOURS_OR_CONTROLS = new RegExp(`\\u001b\\[(?:[012]|22|3[0-79]|9[0-7])m|${CONTROLS.source}`, "g");

/** A text with every control character written out as JSON writes it, `\u001b`: inside of JSON it stays the same text. */
export function printable(text: string): string {
  return text.replaceAll(CONTROLS, writtenOut);
}

/**
 * A line on its way to a terminal.
 * @param keep what may stay: the `colours` that we have put there, and the ends of its `lines`
 */
export function printableLine(line: string, keep: { colours: boolean; lines: boolean }): string {
  return line.replaceAll(keep.colours ? COLOURS_OR_CONTROLS : CONTROLS, (found) =>
    found.length > 1 || (keep.lines && found === "\n") ? found : writtenOut(found),
  );
}

function writtenOut(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

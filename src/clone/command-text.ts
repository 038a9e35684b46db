/** `[ COMMAND … ]` as one text: a JSON list, since its words may hold anything. */
import { basename } from "node:path";

/** The words of `[ COMMAND … ]` as one text, which `parseLocation` understands. */
export function commandText(words: readonly string[]): string {
  return JSON.stringify(words);
}

/** A command for people: its words but the first may hold anything. */
export function displayCommand([program = "", ...rest]: readonly string[]): string {
  return `[ ${basename(program)}${rest.length === 0 ? "" : " …"} ]`;
}

/** The words of such a text; undefined for any other. A file whose name is such a list is named with `./` before it. */
export function commandWords(text: string): string[] | undefined {
  if (!text.startsWith('["')) return undefined;
  try {
    const words: unknown = JSON.parse(text);
    return Array.isArray(words) && words.every((word) => typeof word === "string") ? words : undefined;
  } catch {
    return undefined;
  }
}

/** What the man page of a command shows under EXAMPLES, so that what is printed is what tests run. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** The displayed examples (`.EX` to `.EE`) of a page, by the subsection of EXAMPLES that they stand in, in order. */
export function recipesOf(page: string): Map<string, string[]> {
  const roff = readFileSync(fileURLToPath(new URL(`../../man/${page}`, import.meta.url)), "utf8");
  const [, examples = ""] = /^\.SH EXAMPLES\n(.*?)^\.SH /ms.exec(roff) ?? [];
  const [first = "", ...subsections] = examples.split(/^\.SS /m);
  const recipes = new Map([["", displayed(first)]]);
  for (const subsection of subsections) {
    const end = subsection.indexOf("\n");
    recipes.set(subsection.slice(0, end).replaceAll('"', ""), displayed(subsection.slice(end)));
  }
  return recipes;
}

/** The examples of one subsection. */
export function recipe(page: string, title: string): string[] {
  const found = recipesOf(page).get(title);
  if (found === undefined) throw new Error(`man/${page} has no example called "${title}"`);
  return found;
}

function displayed(roff: string): string[] {
  return [...roff.matchAll(/^\.EX\n(.*?)^\.EE$/gms)].map(([, text = ""]) => withoutEscapes(text));
}

function withoutEscapes(roff: string): string {
  return roff.replaceAll("\\-", "-").replaceAll("\\(aq", "'").replaceAll("\\&", "").replaceAll("\\e", "\\");
}

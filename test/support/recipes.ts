/** What man pages show under EXAMPLES, and the README in blocks of `sh`, so that what is printed is what tests run. */
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
    recipes.set(withoutEscapes(subsection.slice(0, end)).replaceAll('"', ""), displayed(subsection.slice(end)));
  }
  return recipes;
}

/** The examples of one subsection. */
export function recipe(page: string, title: string): string[] {
  const found = recipesOf(page).get(title);
  if (found === undefined) throw new Error(`man/${page} has no example called "${title}"`);
  return found;
}

/** The blocks of `sh` in a section (`##`) of the README, by the subsection (`###`) that they stand in, in order. */
export function readmeRecipes(section: string): Map<string, string[]> {
  const markdown = readFileSync(fileURLToPath(new URL("../../README.md", import.meta.url)), "utf8");
  const found = markdown.split(/^## /m).find((text) => text.startsWith(`${section}\n`));
  if (found === undefined) throw new Error(`README.md has no section called "${section}"`);
  const [, ...subsections] = found.split(/^### /m);
  return new Map(
    subsections.map((text) => {
      const end = text.indexOf("\n");
      return [text.slice(0, end), [...text.matchAll(/^```sh\n(.*?)^```$/gms)].map(([, block = ""]) => block)];
    }),
  );
}

function displayed(roff: string): string[] {
  return [...roff.matchAll(/^\.EX\n(.*?)^\.EE$/gms)].map(([, text = ""]) => withoutEscapes(text));
}

function withoutEscapes(roff: string): string {
  return roff.replaceAll("\\-", "-").replaceAll("\\(aq", "'").replaceAll("\\&", "").replaceAll("\\e", "\\");
}

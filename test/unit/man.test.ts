// The man pages are held against the program: `clone --help` and `clone COMMAND --help` say which commands and long
// options there are, and the pages must name exactly those. Rendering is left to man(1), which warns of bad markup.
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { cloneOk } from "../support/run-clone.ts";
import { hasProgram, withReason } from "../support/scratch.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const MAN = join(ROOT, "man");
const PAGES = readdirSync(MAN).sort();

/** Order of the sections that a page of section 1 may have. */
const SECTIONS = [
  "NAME",
  "SYNOPSIS",
  "DESCRIPTION",
  "OPTIONS",
  "COMMANDS",
  "EXAMPLES",
  "EXIT STATUS",
  "ENVIRONMENT",
  "FILES",
  "SIGNALS",
  "NOTES",
  "BUGS",
  "SEE ALSO",
  "COPYRIGHT",
];
/** Without these a page of section 1 leaves its reader alone. */
const REQUIRED = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "SEE ALSO"];

function sourceOf(page: string): string {
  return readFileSync(join(MAN, page), "utf8");
}

/** The page's sections in order, by title; the text is roff. */
function sectionsOf(page: string): Map<string, string> {
  const [, ...sections] = sourceOf(page).split(/^\.SH /m);
  return new Map(
    sections.map((section) => {
      const [title = "", ...lines] = section.split("\n");
      return [title.replaceAll('"', ""), lines.join("\n")];
    }),
  );
}

/** Text of a roff line without escapes and font macros. */
function plain(line: string): string {
  return line
    .replace(/^\.[A-Z]+ /, "")
    .replace(/\\f[A-Z]/g, "")
    .replaceAll("\\-", "-")
    .replaceAll('"', "");
}

/** The long options that OPTIONS describes: those in the tags of its paragraphs. */
function optionsOfPage(page: string): string[] {
  const tags = [...(sectionsOf(page).get("OPTIONS") ?? "").matchAll(/^\.TP.*\n(.*)$/gm)];
  return tags.flatMap(([, tag = ""]) => longOptions(plain(tag)));
}

/** The long options that a help text lists at the start of its lines. */
function optionsOfHelp(help: string): string[] {
  return help.split("\n").flatMap((line) => longOptions(/^\s+(?:-\w, )?(--[\w-]+)/.exec(line)?.[1] ?? ""));
}

function longOptions(text: string): string[] {
  return text.match(/--[a-z][a-z-]*/g) ?? [];
}

/** The commands that `clone --help` lists. */
async function commandsOfHelp(): Promise<string[]> {
  const help = await cloneOk(["--help"]);
  return [...help.matchAll(/^ {2}clone ([a-z]+)/gm)].map((match) => match[1] as string);
}

const pageOf = (command: string): string => `clone-${command}.1`;

test("every command of clone --help has a page, and there is no page of another", async () => {
  const commands = await commandsOfHelp();
  expect(commands).toContain("hydrate"); // else nothing was understood
  expect(PAGES.filter((page) => /^clone-.*\.1$/.test(page))).toEqual(commands.map(pageOf).sort());
});

test("clone(1) lists under COMMANDS the commands of clone --help, in their order", async () => {
  const commands = [...(sectionsOf("clone.1").get("COMMANDS") ?? "").matchAll(/^\.TP\n\.BI? (\w+)/gm)];
  expect(commands.map((match) => match[1])).toEqual(await commandsOfHelp());
});

test.for(PAGES.filter((page) => page.endsWith(".1")))(
  "%s describes exactly the options that the help lists",
  async (page) => {
    const command = /^clone-(.*)\.1$/.exec(page)?.[1];
    const help = await cloneOk(command === undefined ? ["--help"] : [command, "--help"]);
    const listed = optionsOfHelp(help);
    expect(listed).toContain("--quiet"); // every help has it, else nothing was understood
    expect(optionsOfPage(page).sort()).toEqual(listed.sort());
  },
);

test.for(PAGES.filter((page) => page.endsWith(".1")))("%s has its sections in the usual order", (page) => {
  const titles = [...sectionsOf(page).keys()];
  expect(titles).toEqual(SECTIONS.filter((title) => titles.includes(title)));
  expect(titles).toEqual(expect.arrayContaining(REQUIRED));
});

test.for(PAGES)("%s is named by its own title and refers only to our pages that are there", (page) => {
  const [, name, section] = /^(.*)\.(\d)$/.exec(page) ?? [];
  const source = sourceOf(page).replaceAll("\\-", "-");
  expect(source).toMatch(new RegExp(`^\\.TH ${name?.toUpperCase()} ${section} `));
  expect(source).toMatch(new RegExp(`^\\.SH NAME\\n${name} - `, "m"));
  const references = [...source.matchAll(/\b(clone(?:-[a-z]+)?) ?\((\d)\)/g)].map((match) => `${match[1]}.${match[2]}`);
  expect(references.length).toBeGreaterThan(0);
  expect(references.filter((reference) => !PAGES.includes(reference))).toEqual([]);
});

const noMan = hasProgram("man") ? undefined : "needs man";
describe.skipIf(noMan !== undefined)(withReason("man", noMan), () => {
  test.for(PAGES)("renders %s without a warning", (page) => {
    const args = ["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", join(MAN, page)];
    const { status, stdout, stderr } = spawnSync("man", args, {
      encoding: "utf8",
      env: { ...process.env, MANPAGER: "" },
    });
    expect(stderr).toBe("");
    expect(status).toBe(0);
    expect(stdout).not.toBe("");
  });
});

test("package.json has npm install every page", () => {
  const { man } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as { man: string[] };
  expect([...man].sort()).toEqual(PAGES.map((page) => `man/${page}`));
});

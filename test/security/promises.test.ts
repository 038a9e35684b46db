// SECURITY.md names a test for each promise. One that is renamed or removed takes its promise with it, which somebody has to see.
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const text = readFileSync(new URL("../../.github/SECURITY.md", import.meta.url), "utf8");
const root = fileURLToPath(new URL("../../", import.meta.url));
const [, promises = ""] = /^## Promises[^\n]*\n(.*?)^## /ms.exec(text) ?? [];

/** `file` · name of the test, at the end of a line. */
const named = [...promises.matchAll(/`(test\/[^`]+)` · (.+)$/gm)].map(([, file, name]) => [file, name] as const);

test("Every promise of SECURITY.md names a test", () => {
  const lines = promises.split("\n").filter((line) => /^- |^\*\*Terminals/.test(line));
  expect(lines.length).toBeGreaterThan(30);
  expect(lines.filter((line) => !/`test\/[^`]+` · \S/.test(line))).toEqual([]);
  expect(named).toHaveLength(lines.length);
});

test.for(named)("%s has the test that SECURITY.md names: %s", ([file, name]) => {
  expect(existsSync(`${root}${file}`)).toBe(true);
  const titles = readFileSync(`${root}${file}`, "utf8");
  expect(['"', "'", "`"].some((quote) => titles.includes(`${quote}${name}${quote}`))).toBe(true);
});

// The folders of src are layers. Reads every import in src and fails on one that points up, on one that brings the
// terminal's libraries in below the command line, and on one that reaches the disk from where none belongs.
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const SRC = fileURLToPath(new URL("../../src", import.meta.url));
/** From the bottom up: each may import itself and those before it. */
const LAYERS = ["base", "device", "persistent-data", "metadata", "engine", "nbd", "control", "clone", "cli"];
const TERMINAL = /^(yargs|chalk|cli-progress|fastest-levenshtein)(\/|$)/;
const FILE_SYSTEM = /^(node:)?fs(\/|$)/;
/** Besides device and clone these read and write files: the package's help. */
const OWN_FILES = new Set(["cli/main.ts", "cli/write-help.ts"]);

interface Import {
  /** Path below src. */
  file: string;
  /** As it stands in the file. */
  specifier: string;
}

/** Static, dynamic and type imports and re-exports; comments are left out. */
function importsOf(file: string, source: string): Import[] {
  const code = source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  const pattern = /(?:\bfrom\s*|\bimport\s*\(\s*|\bimport\s+|\brequire\s*\(\s*)(["'])([^"']+)\1/g;
  return [...code.matchAll(pattern)].map((match) => ({ file, specifier: match[2] as string }));
}

function layerOf(file: string): string {
  return file.split("/")[0] as string;
}

/** What is wrong with an import, or undefined. */
function complaint({ file, specifier }: Import): string | undefined {
  const layer = layerOf(file);
  if (specifier.startsWith(".")) {
    const target = relative(SRC, join(SRC, dirname(file), specifier));
    if (file === "index.ts") return undefined;
    if (LAYERS.indexOf(layerOf(target)) < 0) return `${file} imports ${target}, which is in no layer`;
    if (LAYERS.indexOf(layerOf(target)) > LAYERS.indexOf(layer)) return `${file} imports ${target} from above it`;
    return undefined;
  }
  if (TERMINAL.test(specifier) && layer !== "cli") return `${file} imports ${specifier}, which only cli may`;
  if (FILE_SYSTEM.test(specifier) && !["device", "clone"].includes(layer) && !OWN_FILES.has(file)) {
    return `${file} imports ${specifier}, which only device and clone may`;
  }
  return undefined;
}

const files = readdirSync(SRC, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));
const imports = files.flatMap((file) => importsOf(file, readFileSync(join(SRC, file), "utf8")));

describe("The layers of src", () => {
  test("no import points up, and terminal and disk stay in their layers", () => {
    expect(imports.map(complaint).filter((text) => text !== undefined)).toEqual([]);
  });

  test("every file is in a layer, and every layer has files that are imported", () => {
    const inNoLayer = files.filter((file) => !LAYERS.includes(layerOf(file)) && file !== "index.ts");
    expect(inNoLayer).toEqual([]);
    for (const layer of LAYERS) expect(files.some((file) => layerOf(file) === layer)).toBe(true);
    expect(imports.length).toBeGreaterThan(2 * files.length);
  });

  test("an import that points up is found, however it is written", () => {
    const bad = [
      'import { a } from "../cli/main.ts";',
      'import type { A } from "../clone/clone.ts";',
      'export * from "../engine/throttle.ts";',
      'const { Clone } = await import("../clone/clone.ts");',
      'import "../metadata/check.ts";',
      'import {\n  a,\n  b,\n} from "../metadata/check.ts";',
      'import yargs from "yargs/yargs";',
      'import chalk from "chalk";',
      'import bar from "cli-progress";',
      'import { open } from "node:fs/promises";',
      'const fs = await import("node:fs");',
      'import { x } from "../elsewhere/x.ts";',
    ];
    for (const line of bad) {
      const [found, ...more] = importsOf("base/geometry.ts", line);
      expect(more).toEqual([]);
      expect(found && complaint(found), line).toBeDefined();
    }
    const good = ['import { a } from "./clock.ts";', 'import assert from "node:assert";', '// from "../cli/main.ts"'];
    for (const line of good) {
      for (const found of importsOf("base/geometry.ts", line)) expect(complaint(found), line).toBeUndefined();
    }
  });
});

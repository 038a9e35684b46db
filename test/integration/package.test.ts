// What `npm pack` puts into the package, and that it runs from there although no install script did.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, symlink } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { holds, randomFile } from "../support/files.ts";
import { clone, cloneOk } from "../support/run-clone.ts";
import { hasProgram, scratchDirectory, withReason } from "../support/scratch.ts";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const noTools = ["npm", "tar"].find((program) => !hasProgram(program));
const reason = noTools === undefined ? undefined : `needs ${noTools}`;

interface Packed {
  filename: string;
  files: { path: string; mode: number }[];
}

function pack(destination: string): Packed {
  const args = ["pack", "--json", "--ignore-scripts", "--pack-destination", destination];
  const [packed] = JSON.parse(
    execFileSync("npm", args, { cwd: ROOT, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }),
  );
  return packed as Packed;
}

test.skipIf(reason !== undefined)(
  withReason("the package holds the program, its man pages and documents, and nothing else", reason),
  async () => {
    await using place = await scratchDirectory();
    const { files } = pack(place.path);
    const paths = files.map(({ path }) => path);
    for (const needed of ["package.json", "README.md", "LICENSE", "CHANGELOG.md", "ARCHITECTURE.md", "bin/clone.js"]) {
      expect(paths).toContain(needed);
    }
    const manifest = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
    for (const file of [
      manifest.bin.clone,
      manifest.bin.dmclone,
      manifest.exports["."].default,
      manifest.exports["."].types,
    ]) {
      expect(paths).toContain(file.replace(/^\.\//, ""));
    }
    expect(manifest.man.length).toBeGreaterThan(0);
    for (const page of manifest.man) expect(paths).toContain(page.replace(/^\.\//, ""));
    const pages = readdirSync(join(ROOT, "man")).map((name) => `man/${name}`);
    expect(paths.filter((path) => path.startsWith("man/")).sort()).toEqual(pages.sort());
    for (const command of [
      "create",
      "hydrate",
      "status",
      "check",
      "dump",
      "verify",
      "finalize",
      "copy",
      "delete",
      "completion",
    ]) {
      expect(paths).toContain(`man/clone-${command}.1`);
    }
    expect(paths).toContain("man/clone.1");
    expect(paths).toContain("man/clone-metadata.5");
    expect(paths.filter((path) => /^(src|test|node_modules|\.ci|\.git)/.test(path))).toEqual([]);
    const sources = readdirSync(join(ROOT, "src"), { recursive: true, encoding: "utf8" }).filter((name) =>
      name.endsWith(".ts"),
    );
    for (const source of sources) expect(paths).toContain(`dist/${source.replace(/\.ts$/, ".js")}`);
  },
);

test.skipIf(reason !== undefined)(
  withReason("the unpacked package clones an image, its install scripts not run", reason),
  async () => {
    await using place = await scratchDirectory();
    const { filename } = pack(place.path);
    execFileSync("tar", ["-xzf", filename], { cwd: place.path });
    const unpacked = join(place.path, "package");
    await provideDependencies(unpacked);
    const program = join(unpacked, "bin/clone.js");
    const cwd = join(place.path, "work");
    await mkdir(cwd);
    const bytes = await randomFile(join(cwd, "disk.img"), 300_000);
    await cloneOk(["copy", "disk.img", "copy.img"], { cwd, program });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    expect((await clone(["hydrat"], { cwd, program })).stderr).toMatch(/Did you mean hydrate/);
  },
);

/** The dependencies that the package names and those that these name, as installed here, and no others. */
async function provideDependencies(unpacked: string): Promise<void> {
  const modules = join(ROOT, "node_modules");
  const lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")) as {
    packages: Record<string, { dev?: boolean }>;
  };
  for (const [path, { dev }] of Object.entries(lock.packages)) {
    const name = path.replace(/^node_modules\//, "");
    if (path === "" || dev === true || name.includes("node_modules/") || !existsSync(join(modules, name))) continue;
    await mkdir(join(unpacked, "node_modules", name, ".."), { recursive: true });
    await symlink(join(modules, name), join(unpacked, "node_modules", name));
  }
}

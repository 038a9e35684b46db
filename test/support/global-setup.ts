/** Compiles src to dist once before all tests where dist is missing or older: tests of the program run what is built. */
import { spawnSync } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

export default function setup(): void {
  const sources = [join(ROOT, "tsconfig.json"), join(ROOT, "tsconfig.build.json"), ...filesBelow(join(ROOT, "src"))];
  const newestSource = Math.max(...sources.map((file) => statSync(file).mtimeMs));
  // Compiling rewrites every file, so the oldest tells when that was last done in full.
  const built = filesBelow(join(ROOT, "dist")).filter((file) => file.endsWith(".js"));
  const expected = sources.filter((file) => file.startsWith(join(ROOT, "src"))).length;
  const oldestBuilt = Math.min(...built.map((file) => statSync(file).mtimeMs));
  if (built.length >= expected && oldestBuilt >= newestSource) return;
  const { status, stdout, stderr } = spawnSync("npm", ["run", "--silent", "build"], { cwd: ROOT, encoding: "utf8" });
  if (status !== 0) throw new Error(`src cannot be compiled to dist:\n${stdout}${stderr}`);
}

function filesBelow(directory: string): string[] {
  let entries: string[];
  try {
    entries = readdirSync(directory, { recursive: true, encoding: "utf8" });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
  return entries.map((name) => join(directory, name)).filter((file) => statSync(file).isFile());
}

/**
 * The program with one defence taken out: a copy of `src` and of what tests build on it, in which some text is replaced. What
 * the copy's modules do is then looked at by the same eyes as the real ones. Text that is not there, or there more than once,
 * is an error, so that no mutation is lost when the code moves.
 */
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const ROOT = resolve(import.meta.dirname, "../..");
/** What a copy has of the repository, besides the packages. */
const FOLDERS = ["src", "test/support", "test/sim", "test/fixtures"];

/** A replacement of text in one file of `src`. */
export interface Mutation {
  /** Below `src`. */
  file: string;
  /** What stands there, exactly once. */
  text: string;
  becomes: string;
}

/**
 * Hands the modules of the program with its mutations to `use`. Each has state of its own: nothing of it may be mixed with
 * what the test has imported itself.
 *
 * @param use is given what imports a module by its path below the repository: `await load("test/support/clone-device.ts")`
 * @throws {Error} for text that is not there exactly once
 */
export async function withMutations<T>(
  mutations: readonly Mutation[],
  use: (load: (path: string) => Promise<unknown>) => Promise<T>,
): Promise<T> {
  const root = await mkdtemp(join(tmpdir(), "clone-mutant-"));
  try {
    for (const folder of FOLDERS) await cp(join(ROOT, folder), join(root, folder), { recursive: true });
    await symlink(join(ROOT, "node_modules"), join(root, "node_modules"));
    await cp(join(ROOT, "package.json"), join(root, "package.json"));
    for (const { file, text, becomes } of mutations) {
      const path = join(root, "src", file);
      const parts = (await readFile(path, "utf8")).split(text);
      if (parts.length !== 2)
        throw new Error(`${JSON.stringify(text)} stands ${parts.length - 1} times in src/${file}`);
      await writeFile(path, parts.join(becomes));
    }
    return await use((path) => import(join(root, path)));
  } finally {
    await rm(root, { recursive: true });
  }
}

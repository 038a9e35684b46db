/** The files of a directory, known by their hashes. */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";

/** SHA-256 of bytes, in hex. */
export function hashOf(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** SHA-256 of every file below `root`, by its path from there, but for those named in `except`. */
export async function hashesBelow(root: string, ...except: string[]): Promise<Map<string, string>> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  const hashes = new Map<string, string>();
  for (const entry of entries) {
    const path = join(entry.parentPath, entry.name);
    const name = path.slice(root.length + 1);
    if (entry.isFile() && !except.includes(name)) hashes.set(name, hashOf(await readFile(path)));
  }
  return hashes;
}

/** Files of tests: their content, what of a directory has changed, which of their bytes are allocated. */
import { createHash } from "node:crypto";
import { lstat, open, readdir, readFile, readlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { contentBytes } from "./random.ts";

/** Makes a file of `size` random bytes and returns them. */
export async function randomFile(path: string, size: number): Promise<Buffer> {
  const bytes = contentBytes(size);
  await writeFile(path, bytes);
  return bytes;
}

/** Makes a sparse file: `data` at some offsets, holes elsewhere. Returns its content. */
export async function sparseFile(path: string, size: number, pieces: [offset: number, length: number][]) {
  const content = Buffer.alloc(size);
  await writeFile(path, "");
  await truncate(path, size);
  const file = await open(path, "r+");
  try {
    for (const [offset, length] of pieces) {
      const bytes = contentBytes(length);
      bytes.copy(content, offset);
      await file.write(bytes, 0, length, offset);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return content;
}

/** Whether a file or device holds exactly these bytes (at its start, where it is a larger device). */
export async function holds(path: string, bytes: Buffer): Promise<boolean> {
  const content = await readFile(path);
  return Buffer.compare(content, bytes) === 0;
}

/** Reads `length` bytes of a file or device from `offset`. */
export async function readRange(path: string, offset: number, length: number): Promise<Buffer> {
  const file = await open(path, "r");
  try {
    const buffer = Buffer.alloc(length);
    const { bytesRead } = await file.read(buffer, 0, length, offset);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

/** Bytes that a file takes on its file system. */
export async function allocatedBytes(path: string): Promise<number> {
  return (await lstat(path)).blocks * 512;
}

/**
 * Everything in a directory that a failed command must leave as it was: names, kinds, sizes, permissions, times of
 * change and content. For `toEqual`.
 */
export async function snapshot(directory: string): Promise<Record<string, string>> {
  const entries: Record<string, string> = {};
  const names = await readdir(directory, { recursive: true });
  for (const name of names.sort()) {
    const path = join(directory, name);
    const stats = await lstat(path);
    const { mode, size, mtimeMs, ino, nlink } = stats;
    const facts = [mode.toString(8), ino];
    if (stats.isFile()) {
      facts.push(
        nlink,
        size,
        mtimeMs,
        createHash("sha256")
          .update(await readFile(path))
          .digest("hex"),
      );
    } else if (stats.isSymbolicLink()) {
      facts.push(await readlink(path));
    }
    entries[name] = facts.join(" ");
  }
  return entries;
}

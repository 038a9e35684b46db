import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { UnnamedFile } from "../../../src/device/unnamed-file.ts";
import { scratchDirectory } from "../../support/scratch.ts";

/** No file system that can be mounted everywhere lacks O_TMPFILE, so its answer is given here. */
const kernel = vi.hoisted(() => ({ hasTmpfile: true, hasLinks: true }));
vi.mock("node:fs/promises", async (importOriginal) => {
  const fs = await importOriginal<typeof import("node:fs/promises")>();
  const open: typeof fs.open = (path, flags, mode) => {
    const wantsTmpfile = typeof flags === "number" && Math.floor(flags / 0o20000000) % 2 === 1;
    if (!wantsTmpfile || kernel.hasTmpfile) return fs.open(path, flags, mode);
    return Promise.reject(Object.assign(new Error("open"), { code: "EOPNOTSUPP", errno: -95 }));
  };
  const link: typeof fs.link = (from, to) =>
    kernel.hasLinks
      ? fs.link(from, to)
      : Promise.reject(Object.assign(new Error("link"), { code: "EPERM", errno: -1 }));
  return { ...fs, open, link };
});

async function begin(path: string): Promise<UnnamedFile> {
  const file = await UnnamedFile.create(path);
  await file.device.resize(5);
  await file.device.write(0, Buffer.from("whole"));
  await file.device.flush();
  return file;
}

async function inDirectory(directory: string): Promise<void> {
  const path = join(directory, "x.clone");
  await using file = await begin(path);
  expect(file.device.name).toBe(path);
  await using second = await begin(path);
  expect(await file.publish()).toBe(true);
  expect(await readFile(path, "utf8")).toBe("whole");
  expect(await second.publish()).toBe(false);
  await second[Symbol.asyncDispose]();
  await file[Symbol.asyncDispose]();
  expect(await readdir(directory)).toEqual(["x.clone"]);
}

describe("UnnamedFile", () => {
  test("has no name before publish(), and leaves nothing when it is given up", async () => {
    await using scratch = await scratchDirectory();
    const file = await begin(join(scratch.path, "x.clone"));
    expect(await readdir(scratch.path)).toEqual([]);
    await file[Symbol.asyncDispose]();
    expect(await readdir(scratch.path)).toEqual([]);
  });

  test("appears whole, and never in the place of another file", async () => {
    await using scratch = await scratchDirectory();
    await inDirectory(scratch.path);
  });

  test("does the same with a provisional name on a file system that has no unnamed files", async () => {
    await using scratch = await scratchDirectory();
    kernel.hasTmpfile = false;
    try {
      const file = await begin(join(scratch.path, "given-up"));
      expect(await readdir(scratch.path)).toEqual([expect.stringMatching(/^given-up\.[0-9a-f]{12}\.part$/)]);
      await file[Symbol.asyncDispose]();
      await inDirectory(scratch.path);
    } finally {
      kernel.hasTmpfile = true;
    }
  });

  test("and on one that has no hard links either, as FAT", async () => {
    await using scratch = await scratchDirectory();
    Object.assign(kernel, { hasTmpfile: false, hasLinks: false });
    try {
      await inDirectory(scratch.path);
    } finally {
      Object.assign(kernel, { hasTmpfile: true, hasLinks: true });
    }
  });

  test("leaves the file alone that stands at its name", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "precious");
    await writeFile(path, "mine");
    await using file = await begin(path);
    expect(await file.publish()).toBe(false);
    expect(await readFile(path, "utf8")).toBe("mine");
  });

  test("says which file cannot be made, and why", async () => {
    await using scratch = await scratchDirectory();
    const path = join(scratch.path, "nowhere", "x.clone");
    await expect(UnnamedFile.create(path)).rejects.toThrow(`Cannot create "${path}": no such directory (ENOENT)`);
  });
});

import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { PidFile } from "../../../src/clone/pid-file.ts";
import { scratchDirectory } from "../../support/scratch.ts";

test("PidFile holds the pid from its writing to its disposal, and leaves nothing else", async () => {
  await using directory = await scratchDirectory();
  const path = join(directory.path, "clone.pid");
  await writeFile(path, "4711\n");
  {
    await using _file = await PidFile.write(path);
    expect(await readFile(path, "utf8")).toBe(`${process.pid}\n`);
    expect(await readdir(directory.path)).toEqual(["clone.pid"]);
  }
  expect(await readdir(directory.path)).toEqual([]);
});

test("PidFile leaves a file that another process has put in its place", async () => {
  await using directory = await scratchDirectory();
  const path = join(directory.path, "clone.pid");
  {
    await using _file = await PidFile.write(path);
    await writeFile(path, "4711\n");
  }
  expect(await readFile(path, "utf8")).toBe("4711\n");
});

test("PidFile.write() names the file that cannot be written", async () => {
  const error = await PidFile.write("/nowhere/clone.pid").catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(CloneError);
  expect((error as Error).message).toBe('Cannot write the pid file "/nowhere/clone.pid": ENOENT');
});

import { lstat, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { PidFile } from "../../../src/clone/pid-file.ts";
import { run, scratchDirectory } from "../../support/scratch.ts";

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

test("PidFile.write() does not follow a symbolic link, and takes its place", async () => {
  await using directory = await scratchDirectory();
  const [path, target] = [join(directory.path, "clone.pid"), join(directory.path, "precious")];
  await writeFile(target, "precious");
  await symlink(target, path);
  await using _file = await PidFile.write(path);
  expect(await readFile(target, "utf8")).toBe("precious");
  expect((await lstat(path)).isFile()).toBe(true);
});

test.for(["mkfifo", "mkdir"])("PidFile.write() refuses to take the place of what %s makes", async (program) => {
  await using directory = await scratchDirectory();
  const path = join(directory.path, "standing");
  await run(program, path);
  await expect(PidFile.write(path)).rejects.toThrow(
    `Cannot write the pid file "${path}": what stands there is no file`,
  );
  expect(await readdir(directory.path)).toEqual(["standing"]);
});

test("PidFile does not open a FIFO that has been put in its place, which would hang", async () => {
  await using directory = await scratchDirectory();
  const path = join(directory.path, "clone.pid");
  const file = await PidFile.write(path);
  await rm(path);
  await run("mkfifo", path);
  await file[Symbol.asyncDispose]();
  expect((await lstat(path)).isFIFO()).toBe(true);
});

test("PidFile is for others to read and for its owner to write, whatever the umask", async () => {
  await using directory = await scratchDirectory();
  for (const [umask, mode] of [
    [0, 0o644],
    [0o077, 0o600],
  ] as const) {
    const before = process.umask(umask);
    try {
      await using _file = await PidFile.write(join(directory.path, "clone.pid"));
      expect((await lstat(join(directory.path, "clone.pid"))).mode % 0o1000).toBe(mode);
    } finally {
      process.umask(before);
    }
  }
});

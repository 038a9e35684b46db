import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { UnnamedFile } from "../../../src/device/unnamed-file.ts";
import { mountedRamfs, noLoopDevices, scratchDirectory, withReason } from "../../support/scratch.ts";

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

  test.skipIf(noLoopDevices !== undefined)(
    withReason("does the same with a provisional name where files must have one (ramfs)", noLoopDevices),
    async () => {
      await using scratch = await mountedRamfs();
      const file = await begin(join(scratch.path, "given-up"));
      expect(await readdir(scratch.path)).toEqual([expect.stringMatching(/^given-up\.[0-9a-f]{12}\.part$/)]);
      await file[Symbol.asyncDispose]();
      await inDirectory(scratch.path);
    },
  );

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
    await expect(UnnamedFile.create(path)).rejects.toThrow(`Cannot create "${path}": ENOENT`);
  });
});

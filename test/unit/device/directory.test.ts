import { type FileHandle, open, readlink, rm } from "node:fs/promises";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import { syncDirectoryOf } from "../../../src/device/directory.ts";
import { scratchDirectory } from "../../support/scratch.ts";

test("syncDirectoryOf() syncs the directory of a path, be that there or just removed", async () => {
  await using scratch = await scratchDirectory();
  const path = join(scratch.path, "file");
  await using handle = await open(path, "w");
  const synced: string[] = [];
  const sync = vi.spyOn(Object.getPrototypeOf(handle), "sync").mockImplementation(async function (this: FileHandle) {
    synced.push(await readlink(`/proc/self/fd/${this.fd}`));
  } as () => Promise<void>);
  try {
    await syncDirectoryOf(path);
    await rm(path);
    await syncDirectoryOf(path);
  } finally {
    sync.mockRestore();
  }
  await syncDirectoryOf(path); // and the kernel takes it
  expect(synced).toEqual([scratch.path, scratch.path]);
});

test("syncDirectoryOf() says that there is no such directory", async () => {
  const error = await syncDirectoryOf("/nowhere/file").catch((caught) => caught);
  expect(error).toBeInstanceOf(DeviceError);
  expect(error.message).toBe('Cannot flush "/nowhere": ENOENT');
});

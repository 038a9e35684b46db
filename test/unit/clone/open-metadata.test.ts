// Between opening a file and locking it somebody may remove or replace it: the lock is then on a file without a name. Here
// that happens by force, just before the lock is taken.
import { copyFile, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, describe, expect, test, vi } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { openMetadata } from "../../../src/clone/open-metadata.ts";
import { findHolder, LOCK_OFFSET } from "../../../src/device/lock.ts";
import { randomFile, sparseFile } from "../../support/files.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { create, hydrate } from "../../support/whole-clone.ts";

const hook = vi.hoisted(() => ({ beforeLock: async (): Promise<void> => {} }));

vi.mock(import("../../../src/device/lock.ts"), async (importOriginal) => {
  const original = await importOriginal();
  return {
    ...original,
    acquireLock: async (...args: Parameters<typeof original.acquireLock>) => {
      await hook.beforeLock();
      return await original.acquireLock(...args);
    },
  };
});

afterEach(() => {
  hook.beforeLock = async () => {};
});

async function madeClone(directory: string): Promise<{ copy: string; metadata: string }> {
  const [source, copy] = [join(directory, "disk.img"), join(directory, "copy.img")];
  await randomFile(source, 65536);
  return { copy, metadata: await create(source, copy) };
}

/** Puts another file with the same content in the place of one. */
async function replace(path: string): Promise<void> {
  await copyFile(path, `${path}.new`);
  await rename(`${path}.new`, path);
}

describe.each(["exclusive", "quiescent"] as const)("openMetadata() %s", (access) => {
  test("opens what stands at the path by the time it is locked", async () => {
    await using place = await scratchDirectory();
    const { copy, metadata } = await madeClone(place.path);
    let replacements = 0;
    hook.beforeLock = async () => {
      if (replacements++ === 0) await replace(metadata);
    };
    await using opened = await openMetadata(copy, access);
    expect(opened.device.path).toBe(metadata);
    expect(opened.destination).toBe(copy);
    expect(opened.device.identity.ino).toBe(String((await stat(metadata, { bigint: true })).ino));
    expect((await findHolder(opened.device.fd, LOCK_OFFSET)).pid).toBe(process.pid);
  });

  test("finds nothing where it was removed before it was locked", async () => {
    await using place = await scratchDirectory();
    const { copy, metadata } = await madeClone(place.path);
    hook.beforeLock = () => rm(metadata, { force: true });
    await rm(copy);
    await expect(openMetadata(copy, access)).rejects.toThrow(/there is neither that file nor/);
  });

  test("gives up where it is replaced again and again", async () => {
    await using place = await scratchDirectory();
    const { copy, metadata } = await madeClone(place.path);
    hook.beforeLock = () => replace(metadata);
    await expect(openMetadata(copy, access)).rejects.toThrow(/is replaced again and again/);
  });
});

test("hydrateClone() refuses a destination that is replaced before it is locked", async () => {
  await using place = await scratchDirectory();
  const { copy } = await madeClone(place.path);
  let locks = 0;
  hook.beforeLock = async () => {
    if (locks++ === 1) await replace(copy); // the first is the metadata's
  };
  await expect(hydrate(copy)).rejects.toThrow(/copy\.img" as the destination: it was replaced just now/);
});

test("createClone() does not report a clone whose destination was removed before it was locked", async () => {
  await using place = await scratchDirectory();
  const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
  await randomFile(source, 65536);
  await sparseFile(copy, 65536, []);
  let locks = 0;
  hook.beforeLock = async () => {
    if (locks++ === 0) await rm(copy);
  };
  const made = await create(source, copy).catch((error: unknown) => error);
  // It may fail, or make the destination anew; a clone without one is no clone.
  if (made instanceof Error) {
    expect(made).toBeInstanceOf(CloneError);
    await expect(stat(`${copy}.clone`)).rejects.toMatchObject({ code: "ENOENT" });
  } else await hydrate(copy);
});

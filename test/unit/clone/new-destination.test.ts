import { readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { NewDestination } from "../../../src/clone/new-destination.ts";
import { randomFile } from "../../support/files.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { create, descriptorOf } from "../../support/whole-clone.ts";

async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

describe("NewDestination", () => {
  test("removes what it made, unless that is to be kept", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "copy.img");
    const dropped = await NewDestination.open({ kind: "file", path }, 4096);
    expect((await stat(path)).size).toBe(4096);
    await dropped[Symbol.asyncDispose]();
    expect(await isThere(path)).toBe(false);

    const kept = await NewDestination.open({ kind: "file", path }, 4096);
    kept.keep();
    await kept[Symbol.asyncDispose]();
    expect((await stat(path)).size).toBe(4096);
  });

  test("leaves what was there before, and what somebody else put in its place", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "copy.img");
    await writeFile(path, "theirs");
    const found = await NewDestination.open({ kind: "file", path }, 4096);
    expect(found.isNew).toBe(false);
    await found[Symbol.asyncDispose]();
    expect(await readFile(path, "utf8")).toBe("theirs");

    await rm(path);
    const made = await NewDestination.open({ kind: "file", path }, 4096);
    expect(made.isNew).toBe(true);
    await writeFile(`${path}.other`, "another");
    await rename(`${path}.other`, path);
    await made[Symbol.asyncDispose]();
    expect(await readFile(path, "utf8")).toBe("another");
  });

  test("is locked as long as it is open", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "copy.img");
    for (const isNew of [true, false]) {
      const held = await NewDestination.open({ kind: "file", path }, 4096);
      expect(held.isNew).toBe(isNew);
      await expect(NewDestination.open({ kind: "file", path }, 4096)).rejects.toMatchObject({
        code: "busy",
        pid: process.pid,
      });
      expect(await isThere(path)).toBe(true); // the loser has not removed it
      held.keep();
      await held[Symbol.asyncDispose]();
    }
    await using again = await NewDestination.open({ kind: "file", path }, 4096);
    expect(again.isNew).toBe(false);
  });
});

test("of two createClone() on one destination at once one succeeds, and has its destination", async () => {
  await using place = await scratchDirectory();
  const source = join(place.path, "disk.img");
  await randomFile(source, 65536);
  for (let round = 0; round < 50; round++) {
    const copy = join(place.path, `copy-${round}.img`);
    const late = async () => {
      await sleep((round % 10) / 2);
      return await create(source, copy);
    };
    const results = await Promise.allSettled([create(source, copy), late()]);
    const failures = results.flatMap((result) => (result.status === "rejected" ? [result.reason] : []));
    for (const failure of failures) expect(failure).toBeInstanceOf(CloneError);
    expect(failures, `round ${round}`).toHaveLength(1);
    const inode = String((await stat(copy, { bigint: true })).ino);
    expect((await descriptorOf(copy)).destination.fingerprint.inode).toBe(inode);
  }
});

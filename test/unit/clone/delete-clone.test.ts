import { stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { Clone } from "../../../src/clone/clone.ts";
import { deleteClone } from "../../../src/clone/delete-clone.ts";
import { randomFile } from "../../support/files.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { create } from "../../support/whole-clone.ts";

test("of deleteClone() and Clone.open() at once one succeeds, and an open clone's metadata has its name", async () => {
  await using place = await scratchDirectory();
  const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
  await randomFile(source, 65536);
  const won = { opened: 0, deleted: 0 };
  for (let round = 0; round < 50; round++) {
    if ((await stat(`${copy}.clone`).catch(() => undefined)) === undefined) await create(source, copy);
    const open = async () => {
      await sleep((round % 10) / 4);
      return await Clone.open({ name: copy, access: "exclusive" });
    };
    const [deleted, opened] = await Promise.allSettled([deleteClone(copy, async () => true), open()]);
    expect([deleted.status, opened.status].sort(), `round ${round}`).toEqual(["fulfilled", "rejected"]);
    if (opened.status === "fulfilled") {
      won.opened++;
      await stat(`${copy}.clone`);
      await opened.value[Symbol.asyncDispose]();
    } else {
      won.deleted++;
      expect(opened.reason).toBeInstanceOf(CloneError);
    }
  }
  expect(won.deleted).toBeGreaterThan(0);
});

test("deleteClone() changes nothing where that is not confirmed, and lets the metadata go", async () => {
  await using place = await scratchDirectory();
  const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
  await randomFile(source, 65536);
  const metadata = await create(source, copy);
  expect(await deleteClone(copy, async () => false)).toBeUndefined();
  const deletion = await deleteClone(copy, async (asked) => {
    expect(asked).toEqual({ metadata, destination: copy });
    return true;
  });
  expect(deletion).toEqual({ metadata, destination: copy });
  await expect(stat(metadata)).rejects.toMatchObject({ code: "ENOENT" });
});

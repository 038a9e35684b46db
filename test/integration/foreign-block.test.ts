// An array block with other bits, everything else about it right, stands in the place of the true one: what a write that went
// astray leaves, and what the kernel's format cannot tell. No command believes it.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { MetadataImage } from "../support/metadata-image.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

test("Bits of another time in a sound block are found, refused, and not believed by a repair", async () => {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  await randomFile(join(cwd, "disk.img"), 32 * 65536);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img", "--limit", "512K", "--threshold", "1", "--batch-size", "1"], { cwd });
  expect(await cloneOk(["check", "copy.img"], { cwd })).toMatch(/: clean, 8 of 32 regions hydrated/);

  const path = join(cwd, "copy.img.clone");
  const image = new MetadataImage(await readFile(path));
  const [array] = image.arrayBlocks() as [number];
  image.edit(array, "array", (block) => block.fill(0xff, 24, 28));
  await writeFile(path, image.bytes);
  const checked = await clone(["check", "copy.img", "--json"], { cwd });
  expect(checked.code).toBe(3);
  expect(JSON.parse(checked.stdout)).toMatchObject({ ok: false, fatal: [{ block: null, structure: "bitset" }] });
  for (const command of ["hydrate", "dump"]) {
    expectFailure(await clone([command, "copy.img"], { cwd }), 3, /not what the clone was left with/, /clone repair/);
  }
  // All of them are compared: those that were copied are equal, the others are copied again.
  await cloneOk(["repair", "copy.img", "--compare", "--assume", "unhydrated"], { cwd });
  expect(await cloneOk(["check", "copy.img.clone.repaired"], { cwd })).toMatch(/: clean, 8 of 32 regions hydrated/);
});

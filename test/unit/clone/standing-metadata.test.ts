// A link that leads to itself is what anybody can make that is there and cannot be opened.
import { copyFile, mkdir, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { findMetadata } from "../../../src/clone/metadata-file.ts";
import { holdsMetadata, probeMetadata } from "../../../src/clone/standing-metadata.ts";
import { randomFile } from "../../support/files.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { create } from "../../support/whole-clone.ts";

test("holdsMetadata() and probeMetadata() find none where nothing can stand, or no file does, and fail where one cannot be opened", async () => {
  await using place = await scratchDirectory();
  const at = (name: string): string => join(place.path, name);
  await writeFile(at("file"), "");
  await mkdir(at("directory"));
  await symlink("nowhere", at("dangling"));
  await symlink("loop", at("loop"));
  for (const name of ["missing", "file/below", "x".repeat(300), "directory", "dangling"]) {
    expect(await holdsMetadata(at(name)), name).toBe(false);
    expect(await probeMetadata(at(name)), name).toBeUndefined();
  }
  expect(await holdsMetadata("/dev/null")).toBe(false);
  expect(await holdsMetadata(at("file"))).toBe(false);
  await expect(holdsMetadata(at("loop"))).rejects.toMatchObject({ name: "DeviceError", errno: "ELOOP" });
  await expect(probeMetadata(at("loop"))).rejects.toMatchObject({ name: "DeviceError", errno: "ELOOP" });
});

test("findMetadata() does not guess whether a name that cannot be read is metadata where other metadata stands beside it", async () => {
  await using place = await scratchDirectory();
  const at = (name: string): string => join(place.path, name);
  await randomFile(at("disk.img"), 65536);
  const metadata = await create(at("disk.img"), at("copy.img"));
  await symlink("loop", at("loop"));
  // Alone it is what is meant: opening it says what is wrong.
  expect(await findMetadata(at("loop"))).toEqual({ path: at("loop"), destination: undefined });
  await copyFile(metadata, at("loop.clone"));
  await expect(findMetadata(at("loop"))).rejects.toMatchObject({
    errno: "ELOOP",
    hint: expect.stringContaining(at("loop.clone")),
  });
  expect(await findMetadata(at("loop.clone"))).toEqual({ path: at("loop.clone"), destination: undefined });
});

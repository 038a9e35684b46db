import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { Clone } from "../../../src/clone/clone.ts";
import { openLiveSocket } from "../../../src/clone/live-socket.ts";
import { lookAtSocket } from "../../../src/clone/socket-path.ts";
import type { ControlTarget } from "../../../src/control/control-target.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { clonedTo } from "../../support/whole-clone.ts";

// A file system that has gone down refuses to look at anything; a directory that has become a file does so, too.
test("a live socket that cannot be looked at any more is closed all the same", async () => {
  await using place = await scratchDirectory();
  const directory = join(place.path, "disks");
  await mkdir(directory);
  const { copy } = await clonedTo(directory, 0);
  await using clone = await Clone.open({ name: copy, access: "exclusive" });
  const socket = await openLiveSocket(clone, {} as ControlTarget);
  const path = socket?.path ?? "";
  const moved = join(place.path, "moved");
  await rename(directory, moved);
  await writeFile(directory, "");

  await socket?.close();
  const there = path.replace(directory, moved);
  expect(await lookAtSocket(there)).toBe("leftover");
  await rename(directory, join(place.path, "file"));
  await rename(moved, directory);
});

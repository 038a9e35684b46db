// Who may use a file that is made after another one: its mode for each mode and group of the other, under a umask that takes nothing.
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createLike } from "../../../src/clone/like-file.ts";
import { scratchDirectory } from "../../support/scratch.ts";

describe("createLike()", () => {
  let before: number;
  beforeEach(() => {
    before = process.umask(0);
  });
  afterEach(() => {
    process.umask(before);
  });

  test.for([
    { mode: 0o640, group: "same", made: 0o640 },
    { mode: 0o755, group: "same", made: 0o644 },
    { mode: 0o604, group: "same", made: 0o604 },
    { mode: 0o000, group: "same", made: 0o600 },
    // The new file's group is anybody to the other one; and the other's group is anybody to the new one.
    { mode: 0o640, group: "another", made: 0o600 },
    { mode: 0o664, group: "another", made: 0o644 },
    { mode: 0o604, group: "another", made: 0o600 },
    { mode: 0o666, group: "another", made: 0o666 },
    { mode: 0o646, group: "another", made: 0o644 },
  ])("gives nobody more than a file of mode $mode and $group group does", async ({ mode, group, made }) => {
    await using directory = await scratchDirectory();
    const { gid } = await stat(directory.path);
    await using file = await createLike(join(directory.path, "new"), { mode, gid: group === "same" ? gid : gid + 1 });
    await file.publish();
    expect((await stat(join(directory.path, "new"))).mode % 0o1000).toBe(made);
  });
});

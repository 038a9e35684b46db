import { chown, open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { strangerOwning } from "../../../src/clone/metadata-owner.ts";
import { scratchDirectory, withReason } from "../../support/scratch.ts";

const noRoot = process.getuid?.() === 0 ? undefined : "needs root, to give files away";

describe.skipIf(noRoot !== undefined)(withReason("strangerOwning()", noRoot), () => {
  test.for([
    ["root's", 0, { uid: 1000, sudoUid: undefined }, undefined],
    ["the user's", 1000, { uid: 1000, sudoUid: undefined }, undefined],
    ["another user's", 1001, { uid: 1000, sudoUid: undefined }, 1001],
    ["a user's, to root", 1000, { uid: 0, sudoUid: undefined }, 1000],
    ["a user's, to root by sudo", 1000, { uid: 0, sudoUid: "1000" }, undefined],
    ["another user's, to root by sudo", 1001, { uid: 0, sudoUid: "1000" }, 1001],
    ["another user's, to who is not root whatever SUDO_UID says", 1001, { uid: 1000, sudoUid: "1001" }, 1001],
    ["nonsense in SUDO_UID", 1001, { uid: 0, sudoUid: "1001 " }, 1001],
  ] as const)("tells whose metadata is a stranger's: %s", async ([, owner, runner, expected]) => {
    await using directory = await scratchDirectory();
    const path = join(directory.path, "x.clone");
    await writeFile(path, "");
    await chown(path, owner, owner);
    await using file = await open(path);
    expect(await strangerOwning(file, runner)).toBe(expected);
  });
});

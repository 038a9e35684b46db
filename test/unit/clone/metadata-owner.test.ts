import { chown, open, readdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
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
    expect(await strangerOwning({ fd: file.fd, path }, runner)).toBe(expected);
    expect(await readdir(directory.path)).toEqual(["x.clone"]); // nothing is left of what was tried
  });

  // NFS that squashes root, and mounts that make up owners, are told by what they make of a file of ours: here we say it.
  test.for([
    ["of the same owner on the same file system", { uid: 1001n }, undefined],
    ["of another owner", { uid: 0n }, 1001],
    ["on another file system, as the directory was exchanged", { uid: 1001n, dev: -1n }, 1001],
    ["that cannot be made", new DeviceError("Cannot create it: EROFS", { errno: "EROFS" }), 1001],
  ] as const)("believes an owner by a file of ours %s", async ([, ours, expected]) => {
    await using directory = await scratchDirectory();
    const path = join(directory.path, "x.clone");
    await writeFile(path, "");
    await chown(path, 1001, 1001);
    await using file = await open(path);
    const { dev } = await stat(path, { bigint: true });
    const made = async () => (ours instanceof DeviceError ? Promise.reject(ours) : { dev, ...ours });
    expect(await strangerOwning({ fd: file.fd, path }, { uid: 0, sudoUid: undefined }, made)).toBe(expected);
  });
});

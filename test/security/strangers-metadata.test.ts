// Metadata names what is read and what is overwritten. These clones were made by somebody else: they belong to another user, or
// were sent and name files here by paths that could be guessed. What they name must be neither read nor written, whatever
// else they say; the snapshot of the directory before and after shows it. As the names stand on the command line, all goes on.
import { chmod, chown, copyFile, mkdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { holds, randomFile } from "../support/files.ts";
import { forgeDescriptor } from "../support/forged-descriptor.ts";
import { asOrdinaryUser } from "../support/other-user.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { scratchDirectory, withReason } from "../support/scratch.ts";

const SIZE = 1024 * 1024;
/** A user that nothing on this machine belongs to. */
const STRANGER = 54_321;
const noRoot = process.getuid?.() === 0 ? undefined : "needs root, to give files away";

/** A fresh clone `copy.img` of `source.img`, its metadata `x.clone`. */
async function freshClone() {
  const directory = await scratchDirectory();
  const cwd = directory.path;
  const image = await randomFile(join(cwd, "source.img"), SIZE);
  await cloneOk(["create", "source.img", "copy.img", "--metadata", "x.clone", "-q"], { cwd });
  return Object.assign(directory, { cwd, image, metadata: join(cwd, "x.clone") });
}

const NAMED = ["--source", "source.img", "--destination", "copy.img"];

describe.skipIf(noRoot !== undefined)(withReason("Metadata of another user", noRoot), () => {
  test.for([
    ["hydrate", "x.clone"],
    ["serve", "x.clone", "--socket", "s.sock", "--exit-when-hydrated"],
  ])("does not say to %s where source and destination are", async (args) => {
    await using made = await freshClone();
    const { cwd, metadata, image } = made;
    await chown(metadata, STRANGER, STRANGER);
    const before = await stat(join(cwd, "copy.img"), { bigint: true });
    const failed = await clone(args, { cwd });
    expectFailure(failed, 1, /only ".*x\.clone" says where it is, and that belongs to another user \(uid 54321\)/);
    expect(failed.stderr).toMatch(/see `clone status`, and name it with --(source|destination)/);
    expect((await stat(join(cwd, "copy.img"), { bigint: true })).mtimeNs).toBe(before.mtimeNs);
    await cloneOk([...args, ...NAMED], { cwd });
    expect(await holds(join(cwd, "copy.img"), image)).toBe(true);
  });

  test("is believed as to the destination that the user names as the clone, and not as to the source", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await cloneOk(["create", "source.img", "other.img", "-q"], { cwd });
    await chown(join(cwd, "other.img.clone"), STRANGER, STRANGER);
    expectFailure(await clone(["hydrate", "other.img"], { cwd }), 1, /Cannot open the source: only/);
    await cloneOk(["hydrate", "other.img", "--source", "source.img"], { cwd });
  });

  test("does not choose what `clone copy` takes for copied", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await cloneOk(["create", "source.img", "other.img", "-q"], { cwd });
    await chown(join(cwd, "other.img.clone"), STRANGER, STRANGER);
    const failed = await clone(["copy", "source.img", "other.img"], { cwd });
    expectFailure(failed, 1, /Cannot go on with ".*other\.img\.clone": it belongs to another user/, /--metadata/);
    await cloneOk(["copy", "source.img", "other.img", "--metadata", "other.img.clone"], { cwd });
  });

  test("is believed of root by everybody, and of who has become root by sudo", async () => {
    await using made = await freshClone();
    const { cwd, metadata } = made;
    await chown(metadata, STRANGER, STRANGER);
    expectFailure(await clone(["hydrate", "x.clone"], { cwd, env: { SUDO_UID: "54322" } }), 1, /another user/);
    await cloneOk(["hydrate", "x.clone"], { cwd, env: { SUDO_UID: String(STRANGER) } });
    await chown(metadata, 0, 0);
    await chmod(cwd, 0o755);
    await chmod(metadata, 0o644);
    await cloneOk(["verify", "x.clone"], { cwd, ...asOrdinaryUser });
  });

  test("is shown to everybody: `clone status`, `check` and `dump` open nothing else", async () => {
    await using made = await freshClone();
    const { cwd, metadata } = made;
    await chown(metadata, STRANGER, STRANGER);
    await forgeDescriptor(metadata, (descriptor) => ({
      ...descriptor,
      source: { ...descriptor.source, uri: "nbd+unix:///?socket=/nowhere" },
    }));
    for (const command of ["status", "check", "dump"]) await cloneOk([command, "x.clone"], { cwd });
  });
});

test("Metadata that everybody may write to is warned of by whoever changes the clone", async () => {
  await using made = await freshClone();
  const { cwd, metadata } = made;
  await chmod(metadata, 0o666);
  const run = await clone(["hydrate", "x.clone"], { cwd });
  expect(run.stderr).toMatch(/Warning: Every user of this machine may write to ".*x\.clone"/);
  expect(run.code).toBe(0);
});

describe("Metadata that was sent by a stranger", () => {
  test("fits no file here if it does not know when that was written last", async () => {
    await using made = await freshClone();
    const { cwd, metadata } = made;
    await forgeDescriptor(metadata, ({ source, ...descriptor }) => {
      const { mtimeNs: _, ...fingerprint } = source.fingerprint;
      return { ...descriptor, source: { ...source, fingerprint } };
    });
    const failed = await clone(["hydrate", "x.clone"], { cwd });
    expectFailure(failed, 1, /the metadata does not say enough to know it again/);
    expect(await holds(join(cwd, "copy.img"), Buffer.alloc(SIZE))).toBe(true);
  });

  test("that names another's files by their paths alone reads and overwrites none of them", async () => {
    await using made = await freshClone();
    const { cwd, image } = made;
    await mkdir(join(cwd, "home"));
    await copyFile(join(cwd, "source.img"), join(cwd, "home", "secret.img"));
    await writeFile(join(cwd, "home", "work.img"), Buffer.alloc(SIZE, 7));
    for (const role of ["source", "destination"] as const) {
      const name = `${role}.clone`;
      await copyFile(join(cwd, "x.clone"), join(cwd, name));
      const file = role === "source" ? "secret.img" : "work.img";
      const uri = `file://${join(cwd, "home", file)}`;
      await forgeDescriptor(join(cwd, name), (descriptor) => ({ ...descriptor, [role]: { ...descriptor[role], uri } }));
      const failed = await clone(["hydrate", name], { cwd });
      expectFailure(failed, 1, /it is another file \(inode \d+, not \d+\)|has changed since/);
    }
    expect(await holds(join(cwd, "home", "work.img"), Buffer.alloc(SIZE, 7))).toBe(true);
    expect(await holds(join(cwd, "copy.img"), image)).toBe(false);
  });
});

// Clones are damaged and repaired by the real program, which then goes on with them to the end: the copy must be equal to the
// source. Then everything that must be refused, with nothing changed.
import { chmod, chown, link, lstat, readFile, rename, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { randomFile, snapshot } from "../support/files.ts";
import { readFixtureImage } from "../support/kernel-fixtures.ts";
import { flipBit, MetadataImage } from "../support/metadata-image.ts";
import { asOrdinaryUser, noOrdinaryUser } from "../support/other-user.ts";
import { type CloneRun, clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import { noLoopDevices, scratchDirectory, scratchLoopDevice, withReason } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const REGIONS = 16;
const SIZE = REGIONS * 65536;
const noRoot = process.getuid?.() === 0 ? undefined : "needs root, to give files away";

/** A clone half of which is hydrated, in commits of one region each. */
async function halfHydrated(cwd: string): Promise<void> {
  await randomFile(join(cwd, "disk.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img", "--limit", "512K", "--threshold", "1", "--batch-size", "1"], { cwd });
}

async function damage(path: string, strike: (image: MetadataImage) => void): Promise<Buffer> {
  const image = new MetadataImage(await readFile(path));
  strike(image);
  await writeFile(path, image.bytes);
  return image.bytes;
}

const breakArray = (image: MetadataImage): void => flipBit(image, image.arrayBlocks()[0] as number);
const breakCounts = (image: MetadataImage): void => flipBit(image, image.bitmapBlock(0));

async function expectEqualCopy(cwd: string): Promise<void> {
  await cloneOk(["hydrate", "copy.img"], { cwd });
  await cloneOk(["finalize", "copy.img"], { cwd });
  expect(Buffer.compare(await readFile(join(cwd, "disk.img")), await readFile(join(cwd, "copy.img")))).toBe(0);
}

/** A server that was killed: clients may have written, and nothing was recorded of the state that the clone was left in. */
async function servedOnce(cwd: string): Promise<void> {
  await using server = await startServe({ cwd, clone: "copy.img", args: ["--no-hydrate"] });
  await server.kill9();
}

/** What was found is the result; why nothing was written is the error. */
function expectRefusal(run: CloneRun, message: RegExp, hint: RegExp): void {
  expect(run.stdout).toMatch(/^fatal /);
  expectFailure({ ...run, stdout: "" }, 3, message, hint);
}

describe("clone repair", () => {
  test("makes counts anew in a new file, and says how to use it", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    const damaged = await damage(join(cwd, "copy.img.clone"), breakCounts);
    const run = await clone(["repair", "copy.img"], { cwd });
    const repaired = join(cwd, "copy.img.clone.repaired");
    expect(run.code).toBe(0);
    expect(run.stdout).toContain(`Wrote ${repaired}: sound, 8 of 16 regions hydrated\n`);
    expect(run.stderr).toBe(`To use it: mv -- ${repaired} ${join(cwd, "copy.img.clone")}\n`);
    expect(Buffer.compare(await readFile(join(cwd, "copy.img.clone")), damaged)).toBe(0);
    expect(await cloneOk(["check", repaired], { cwd })).toMatch(/clean, 8 of 16/);
    await rename(repaired, join(cwd, "copy.img.clone"));
    await expectEqualCopy(cwd);
  });

  test("copies again what is not known of a clone that no client has written to", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await damage(join(cwd, "copy.img.clone"), breakArray);
    const report = oneJson(await cloneOk(["repair", "copy.img", "--in-place", "--json"], { cwd }));
    expect(report).toMatchObject({ repaired: true, unknown: [], assumed: [], lost: [], reason: null });
    await expectEqualCopy(cwd);
  });

  test("refuses to decide on a clone that was served, lists the regions, and takes a comparison and a word for them", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await servedOnce(cwd);
    await damage(join(cwd, "copy.img.clone"), breakArray);
    const before = await snapshot(cwd);
    const refused = await clone(["repair", "copy.img"], { cwd });
    expectRefusal(refused, /regions are hydrated cannot be known/, /--compare.*--assume unhydrated/);
    expect(refused.stdout).toMatch(/unknown {2}regions \d+–15\n/);
    expect((await clone(["repair", "copy.img", "--compare"], { cwd })).code).toBe(3);
    expect(await snapshot(cwd)).toEqual(before);

    const options = ["--compare", "--assume", "unhydrated", "--json", "--progress", "none"];
    const report = oneJson(await cloneOk(["repair", "copy.img", "--in-place", ...options], { cwd }));
    expect(report).toMatchObject({ repaired: true, assumed: [[8, 16]], assumedAs: "unhydrated" });
    expect(await cloneOk(["check", "copy.img"], { cwd })).toMatch(/clean, 8 of 16/);
    await expectEqualCopy(cwd);
  });

  test("replaces a file in place behind a symbolic link, with its mode, and keeps it byte for byte", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    const metadata = join(cwd, "copy.img.clone");
    await rename(metadata, join(cwd, "real"));
    await symlink("real", metadata);
    await chmod(join(cwd, "real"), 0o640);
    const damaged = await damage(metadata, breakCounts);
    await cloneOk(["repair", "copy.img", "--in-place", "--backup", "kept"], { cwd });
    expect((await lstat(metadata)).isSymbolicLink()).toBe(true);
    expect((await stat(metadata)).mode % 0o1000).toBe(0o640);
    expect(Buffer.compare(await readFile(join(cwd, "kept")), damaged)).toBe(0);
    const again = await clone(["repair", "copy.img", "--in-place"], { cwd });
    expect(again).toMatchObject({ code: 0, stdout: expect.stringContaining("nothing is wrong") });
    await expectEqualCopy(cwd);
  });

  test("makes a new file that is for nobody else than the old one", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await chmod(join(cwd, "copy.img.clone"), 0o600);
    await cloneOk(["repair", "copy.img"], { cwd });
    expect((await stat(join(cwd, "copy.img.clone.repaired"))).mode % 0o1000).toBe(0o600);
  });

  test.skipIf(noRoot !== undefined)(withReason("gives the new file to the old one's owner", noRoot), async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await chown(join(cwd, "copy.img.clone"), 54_321, 54_322);
    await chmod(join(cwd, "copy.img.clone"), 0o640);
    await cloneOk(["repair", "copy.img"], { cwd });
    const { mode, uid, gid } = await stat(join(cwd, "copy.img.clone.repaired"));
    expect([mode % 0o1000, uid, gid]).toEqual([0o640, 54_321, 54_322]);
  });

  test.skipIf(noRoot !== undefined || noOrdinaryUser !== undefined)(
    withReason("of somebody else's metadata is done in a new file, and refused in place", noRoot ?? noOrdinaryUser),
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await halfHydrated(cwd);
      const metadata = join(cwd, "copy.img.clone");
      const damaged = await damage(metadata, breakCounts);
      await chown(metadata, 54_321, 0);
      await chmod(metadata, 0o666);
      await chmod(cwd, 0o777);
      const refused = await clone(["repair", "copy.img", "--in-place"], { cwd, ...asOrdinaryUser });
      expect(refused.code).toBe(1);
      expect(refused.stderr).toMatch(/Cannot replace .*: EPERM\n.*--output FILE writes to a new file/);
      expect((await readFile(metadata)).equals(damaged)).toBe(true);
      const run = await clone(["repair", "copy.img"], { cwd, ...asOrdinaryUser });
      expect(run.code, run.stderr).toBe(0);
    },
  );

  test("that was cut off is named by what finds its mark, and restored over with --force", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    const metadata = join(cwd, "copy.img.clone");
    await writeFile(join(cwd, "dump"), await cloneOk(["dump", "copy.img"], { cwd }));
    await damage(metadata, (image) => {
      image.block(0).fill(0).write("dmclone: a repair in place was cut off; backup: /srv/b\n");
    });
    const found = await clone(["check", "copy.img"], { cwd });
    expect(found.stdout).toContain("the mark of a repair in place that was cut off");
    expectFailure(
      await clone(["hydrate", "copy.img"], { cwd }),
      3,
      /A repair of .* in place was cut off/,
      /"\/srv\/b"/,
    );
    await cloneOk(["restore", "--input", "dump", "--output", metadata, "--force"], { cwd });
    await expectEqualCopy(cwd);
  });

  test("goes on where a repair in place was killed between backup and replacement", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await damage(join(cwd, "copy.img.clone"), breakCounts);
    await link(join(cwd, "copy.img.clone"), join(cwd, "copy.img.clone.backup"));
    await cloneOk(["repair", "copy.img", "--in-place"], { cwd });
    await expectEqualCopy(cwd);
  });

  test("makes a zeroed superblock anew, which the kernel would have formatted", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await damage(join(cwd, "copy.img.clone"), (image) => image.block(0).fill(0));
    await cloneOk(["repair", "copy.img.clone", "--in-place"], { cwd });
    expect(await cloneOk(["check", "copy.img"], { cwd })).toMatch(/clean, 8 of 16/);
    await expectEqualCopy(cwd);
  });

  test("repairs what the kernel made, told the sizes that its superblock has lost", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    const image = new MetadataImage(readFixtureImage("writes-64m-4k"));
    const truth = image.hydratedRanges();
    image.bytes.fill(0xff, 172, 188); // both sizes; the checksum is still there
    await writeFile(join(cwd, "kernel.meta"), image.bytes);
    expectRefusal(await clone(["repair", "kernel.meta"], { cwd }), /nothing tells the size/, /--region-size/);
    await cloneOk(["repair", "kernel.meta", "--size", "64M", "--region-size", "4K"], { cwd });
    expect(new MetadataImage(await readFile(join(cwd, "kernel.meta.repaired"))).hydratedRanges()).toEqual(truth);
  });

  test("writes nothing with --dry-run, and says what it would", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await damage(join(cwd, "copy.img.clone"), breakCounts);
    const before = await snapshot(cwd);
    const run = await clone(["repair", "copy.img", "--dry-run"], { cwd });
    expect(run).toMatchObject({ code: 0, stderr: "Nothing was written; it would have 8 of 16 regions hydrated.\n" });
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("refuses with --dry-run what it refuses without", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await damage(join(cwd, "copy.img.clone"), breakCounts);
    await writeFile(join(cwd, "copy.img.clone.repaired"), "mine");
    await writeFile(join(cwd, "copy.img.clone.backup"), "mine");
    await symlink("nowhere", join(cwd, "dangling"));
    const before = await snapshot(cwd);
    const refused: [string[], number, RegExp][] = [
      [[], 2, /a file stands there already/],
      [["--in-place"], 2, /a file stands there already/],
      [["--output", "dangling"], 2, /a file stands there already/],
      [["--in-place", "--backup", "dangling"], 2, /a file stands there already/],
      [["--output", "none/new"], 1, /no such directory/],
      [["--in-place", "--backup", "none/new"], 1, /no such directory/],
    ];
    for (const [options, code, message] of refused) {
      expectFailure(await clone(["repair", "copy.img", ...options, "--dry-run"], { cwd }), code, message);
    }
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("refuses the metadata itself as its backup, by whatever path, and takes another name of it", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    const metadata = join(cwd, "copy.img.clone");
    const damaged = await damage(metadata, breakCounts);
    await symlink(".", join(cwd, "here"));
    for (const backup of ["copy.img.clone", metadata, "here/copy.img.clone"]) {
      const run = await clone(["repair", "copy.img", "--in-place", "--backup", backup], { cwd });
      expectFailure(run, 2, /it is the metadata itself/, /^--backup FILE names another one/);
    }
    expect(Buffer.compare(await readFile(metadata), damaged)).toBe(0);
    await link(metadata, join(cwd, "kept"));
    await cloneOk(["repair", "copy.img", "--in-place", "--backup", "kept"], { cwd });
    expect(Buffer.compare(await readFile(join(cwd, "kept")), damaged)).toBe(0);
  });

  test("refuses a clone in use, what stands where a file is to be made, and options that cannot work", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    const server = await startServe({ cwd, clone: "copy.img", args: ["--no-hydrate"] });
    expectFailure(await clone(["repair", "copy.img"], { cwd }), 4, /in use/);
    expectFailure(await clone(["repair", "copy.img", "--in-place"], { cwd }), 4, /in use/);
    await stopServe(server);

    await damage(join(cwd, "copy.img.clone"), breakCounts);
    await writeFile(join(cwd, "other"), "mine");
    const before = await snapshot(cwd);
    const refused: [string[], RegExp][] = [
      [["--output", "other"], /a file stands there already/],
      [["--in-place", "--backup", "other"], /a file stands there already/],
      [["--in-place", "--output", "new"], /one or the other/],
      [["--backup", "new"], /only --in-place/],
      [["--size", "1M"], /--region-size/],
      [["--size", "1M", "--region-size", "5K"], /power of two/],
      [["--assume", "maybe"], /assume/],
    ];
    for (const [options, message] of refused) {
      expectFailure(await clone(["repair", "copy.img", ...options], { cwd }), 2, message);
    }
    expect((await clone(["repair", "disk.img"], { cwd })).code).toBe(3);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test.skipIf(noLoopDevices !== undefined)(
    withReason("overwrites a block device after a copy was made, and only then", noLoopDevices),
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await using device = await scratchLoopDevice(2 ** 21);
      await randomFile(join(cwd, "disk.img"), SIZE);
      await cloneOk(["create", "disk.img", "copy.img", "--metadata", device.path], { cwd });
      await cloneOk(["hydrate", device.path, "--limit", "512K"], { cwd });
      const damaged = await damage(device.path, breakCounts);
      expectFailure(await clone(["repair", device.path], { cwd }), 2, /it is a device/, /--backup/);
      // To move a file to where the device's node is would replace the node.
      const { stderr } = await clone(["repair", device.path, "--output", "new"], { cwd });
      expect(stderr).toContain(`To use it: name ${join(cwd, "new")} instead of ${device.path}, or overwrite`);
      expect(stderr).not.toContain("mv ");
      await cloneOk(["repair", device.path, "--in-place", "--backup", "kept"], { cwd });
      expect(
        Buffer.compare(await readFile(join(cwd, "kept")), damaged.subarray(0, (await stat(join(cwd, "kept"))).size)),
      ).toBe(0);
      expect(await cloneOk(["check", device.path], { cwd })).toMatch(/clean, 8 of 16/);
      await cloneOk(["hydrate", device.path], { cwd });
      expect(Buffer.compare(await readFile(join(cwd, "disk.img")), await readFile(join(cwd, "copy.img")))).toBe(0);
    },
  );
});

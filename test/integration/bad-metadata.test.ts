// Metadata that is missing, damaged, of another kind or another clone's is refused in one line by every command that opens
// it, with exit code 3 where it is damaged or no clone's, and nothing is changed.
import { copyFile, mkdir, open, readFile, truncate, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { randomFile, snapshot } from "../support/files.ts";
import { asOrdinaryUser, noOrdinaryUser } from "../support/other-user.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import { scratchDirectory, withReason } from "../support/scratch.ts";

const SIZE = 16 * 65536;

/** A clone half of which is hydrated, in a directory. */
async function halfHydrated(cwd: string): Promise<void> {
  await randomFile(join(cwd, "disk.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img", "--limit", "512K", "--threshold", "1", "--batch-size", "1"], { cwd });
}

/** Overwrites some bytes of a file. */
async function patch(path: string, offset: number, bytes: Uint8Array): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.write(bytes, 0, bytes.length, offset);
  } finally {
    await file.close();
  }
}

/** Like a thin-pool's superblock: the magic of that target where clone's would be. */
function thinPoolSuperblock(): Buffer {
  const block = Buffer.alloc(4096);
  block.writeBigUInt64LE(27022010n, 32);
  block.writeUInt32LE(2, 40);
  return block;
}

const COMMANDS: string[][] = [
  ["hydrate", "copy.img.clone"],
  ["status", "copy.img.clone"],
  ["check", "copy.img.clone"],
  ["dump", "copy.img.clone"],
  ["verify", "copy.img.clone"],
  ["finalize", "copy.img.clone"],
  ["finalize", "copy.img.clone", "--table"],
  ["copy", "disk.img", "copy.img"],
];

const DAMAGES: [name: string, damage: (metadata: string) => Promise<void>, message: RegExp][] = [
  ["empty", (path) => truncate(path, 0), /too short|empty/],
  ["shorter than a block", (path) => truncate(path, 1000), /too short|truncated/],
  ["truncated to one block", (path) => truncate(path, 4096), /too short|truncated/],
  ["truncated behind its live blocks", (path) => truncate(path, 64 * 4096), /truncated/],
  ["thin-pool metadata", (path) => patch(path, 0, thinPoolSuperblock()), /thin-pool metadata/],
  ["a LUKS volume", (path) => writeFile(path, `LUKS\xba\xbe\0\x01${"\0".repeat(70000)}`, "latin1"), /LUKS/],
  ["text", (path) => writeFile(path, "These are my notes.\n".repeat(400)), /text/],
  ["short text", (path) => writeFile(path, "hello\n"), /text/],
  ["a file system", (path) => patch(path, 0, ext4Like()), /ext4/],
  [
    "random bytes",
    (path) => writeFile(path, Buffer.alloc(262144, "\x91\x03\xfe\x55\xc7", "latin1")),
    /not clone metadata/,
  ],
  ["with a broken checksum in the superblock", (path) => patch(path, 200, Buffer.of(1)), /checksum/],
  ["with a zeroed first block", (path) => patch(path, 0, Buffer.alloc(4096)), /zeroed|first block/],
  ["of a later version", (path) => patch(path, 40, Buffer.of(2)), /checksum|version/],
  ["all zero", (path) => writeFile(path, Buffer.alloc(262144)), /not formatted|zero/],
];

function ext4Like(): Buffer {
  const block = Buffer.alloc(4096);
  block.writeUInt16LE(0xef53, 1080);
  return block;
}

/** Looks at all of them; the rest of the commands open metadata by one and the same way, tried with one damage. */
const OPENED_OWN_WAY = ["hydrate", "status", "check"];

let soundMetadata: Buffer;
beforeAll(async () => {
  await using place = await scratchDirectory();
  await halfHydrated(place.path);
  soundMetadata = await readFile(join(place.path, "copy.img.clone"));
});

describe.each(DAMAGES)("metadata that is %s", (name, damage, message) => {
  test("is refused with exit code 3, and left as it is", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    // Its devices are not looked at before the metadata itself is found sound.
    await randomFile(join(cwd, "disk.img"), SIZE);
    await writeFile(join(cwd, "copy.img"), "");
    await writeFile(join(cwd, "copy.img.clone"), soundMetadata);
    await damage(join(cwd, "copy.img.clone"));
    const before = await snapshot(cwd);
    const commands = name === "text" ? COMMANDS : COMMANDS.filter(([command = ""]) => OPENED_OWN_WAY.includes(command));
    for (const args of commands) {
      const run = await clone(args, { cwd });
      if (args[0] !== "check") {
        expectFailure(run, 3, message);
        continue;
      }
      expect(run.code, run.stderr).toBe(3); // what it finds is its result
      expect(run.stdout).toMatch(/^fatal {4}\S.*\n(.*\n)*.*copy\.img\.clone: damaged/);
      expect(run.stderr).toBe("");
    }
    expect(await snapshot(cwd)).toEqual(before);
  });
});

test("metadata with a broken checksum in every live block in turn is refused by what reads it, and check names the block", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await halfHydrated(cwd);
  const metadata = join(cwd, "copy.img.clone");
  const sound = await readFile(metadata);
  for (const block of liveBlocks(sound)) {
    const broken = Buffer.from(sound);
    broken[block * 4096 + 4000] = (broken[block * 4096 + 4000] ?? 0) ^ 0x10;
    await writeFile(metadata, broken);
    const before = await snapshot(cwd);
    const check = await clone(["check", "copy.img.clone", "--json"], { cwd });
    expect(check.code, `block ${block}: ${check.stderr}`).toBe(3);
    const report = oneJson<{ ok: boolean; fatal: { block: number; structure: string; message: string }[] }>(
      check.stdout,
    );
    expect(report.ok).toBe(false);
    expect(report.fatal.map((finding) => finding.block)).toContain(block);
    const run = await clone(["hydrate", "copy.img"], { cwd });
    expectFailure(run, 3, /checksum/);
    expect(await snapshot(cwd)).toEqual(before);
  }
});

/** Numbers of the blocks that the superblock's tree reaches; the tree of so small a clone has one leaf. */
function liveBlocks(image: Buffer): number[] {
  const u64 = (offset: number): number => Number(image.readBigUInt64LE(offset));
  const index = u64(60);
  const bitset = u64(188);
  // Without the empty leaf of the reference counts, which like the kernel only a count above 2 makes anybody read.
  return [0, index, u64(index * 4096 + 16), bitset, u64(bitset * 4096 + 2048)];
}

test.each([
  ...COMMANDS.filter(([command]) => command !== "copy").map((args) => [args.join(" "), args] as const),
  ["delete --yes", ["delete", "copy.img.clone", "--yes"]] as const,
])("clone %s fails with exit code 1 where there is no such clone", async (_, args) => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), SIZE);
  const before = await snapshot(cwd);
  expectFailure(await clone(args, { cwd }), 1, /copy\.img\.clone"/);
  expect(await snapshot(cwd)).toEqual(before);
});

test("a destination without metadata beside it is no clone", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await halfHydrated(cwd);
  await unlink(join(cwd, "copy.img.clone"));
  const before = await snapshot(cwd);
  const run = await clone(["hydrate", "copy.img"], { cwd });
  expectFailure(run, 3, /copy\.img" is not clone metadata|no clone/);
  expect(await snapshot(cwd)).toEqual(before);
});

test("a directory is no clone", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await mkdir(join(cwd, "folder"));
  expectFailure(await clone(["status", "folder"], { cwd }), 2, /it is a directory/);
});

test("clone delete --yes takes away damaged metadata of a clone, but nothing that is not a clone's", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await halfHydrated(cwd);
  const metadata = join(cwd, "copy.img.clone");
  const sound = await readFile(metadata);
  await writeFile(metadata, "These are my notes.\n");
  const before = await snapshot(cwd);
  expectFailure(await clone(["delete", "copy.img.clone", "--yes"], { cwd }), 3, /text/);
  expectFailure(await clone(["delete", "disk.img", "--yes"], { cwd }), 3, /disk\.img/);
  expect(await snapshot(cwd)).toEqual(before);
  sound[300] = 1; // the superblock's checksum is wrong now
  await writeFile(metadata, sound);
  await cloneOk(["delete", "copy.img.clone", "--yes"], { cwd });
  expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "disk.img"]);
});

test("clone copy refuses metadata beside the destination that belongs to another source", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await halfHydrated(cwd);
  await randomFile(join(cwd, "other.img"), SIZE);
  const before = await snapshot(cwd);
  expectFailure(await clone(["copy", "other.img", "copy.img"], { cwd }), 2, /belongs to .*disk\.img/, /clone delete/);
  const force = await clone(["copy", "other.img", "copy.img", "--force"], { cwd });
  expectFailure(force, 2, /belongs to .*disk\.img/);
  expect(await snapshot(cwd)).toEqual(before);
});

test("another clone's metadata put in the place of one's own is refused", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await halfHydrated(cwd);
  await randomFile(join(cwd, "disk2.img"), SIZE);
  await cloneOk(["create", "disk2.img", "copy2.img"], { cwd });
  await copyFile(join(cwd, "copy2.img.clone"), join(cwd, "copy.img.clone"));
  const before = await snapshot(cwd);
  const run = await clone(["hydrate", "copy.img"], { cwd });
  // It would hydrate copy2.img, which is not what was asked for.
  expectFailure(run, 1, /belongs to .*copy2\.img/);
  expect(await snapshot(cwd)).toEqual(before);
});

test.skipIf(noOrdinaryUser !== undefined)(
  withReason("metadata that may not be read or written is refused with exit code 1", noOrdinaryUser),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await halfHydrated(cwd);
    const file = await open(join(cwd, "copy.img.clone"));
    const directory = await open(cwd);
    try {
      await directory.chmod(0o755);
      await file.chmod(0o444);
      const before = await snapshot(cwd);
      const options = { cwd, ...asOrdinaryUser };
      expectFailure(await clone(["hydrate", "copy.img"], options), 1, /copy\.img\.clone": permission denied/);
      expectFailure(await clone(["delete", "copy.img", "--yes"], options), 1, /copy\.img\.clone": permission denied/);
      expect((await clone(["status", "copy.img"], options)).code).toBe(0);
      await cloneOk(["check", "copy.img.clone"], options);
      await file.chmod(0);
      expectFailure(await clone(["status", "copy.img.clone"], options), 1, /permission denied/);
      await file.chmod(0o444);
      const { "copy.img.clone": meta, ...rest } = await snapshot(cwd);
      const { "copy.img.clone": metaBefore, ...restBefore } = before;
      expect(rest).toEqual(restBefore);
      expect(meta).toEqual(metaBefore);
    } finally {
      await file.close();
      await directory.close();
    }
  },
);

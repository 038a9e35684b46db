// Metadata that cannot be read, or is not known for what it is any more, still belongs to a clone: its destination, which has
// holes and what clients wrote, is neither copied nor overwritten, and nothing is changed. Each kind of damage in turn.
import { chmod, readFile, symlink, truncate, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { describe, expect, test } from "vitest";
import { SLOT_BYTES } from "../../src/metadata/descriptor-slot.ts";
import { failingSource, noFailingSource } from "../support/failing-source.ts";
import { randomFile, snapshot, sparseFile } from "../support/files.ts";
import { asOrdinaryUser, noOrdinaryUser } from "../support/other-user.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, run, scratchDirectory, scratchLoopDevice, withReason } from "../support/scratch.ts";

const MIB = 1024 * 1024;
const METADATA = "copy.img.clone";

/** An unfinished clone, copy.img, and its metadata's bytes. */
async function unfinished(cwd: string, metadata = METADATA): Promise<Buffer> {
  await randomFile(join(cwd, "disk.img"), MIB);
  await randomFile(join(cwd, "other.img"), MIB);
  await cloneOk(["create", "disk.img", "copy.img", "--metadata", metadata], { cwd });
  await cloneOk(["hydrate", metadata, "--limit", "512K", "--progress", "none"], { cwd });
  return await readFile(resolve(cwd, metadata));
}

const MOST_DANGEROUS = ["copy", "other.img", "copy.img", "--force", "--metadata", "x.clone"];

/** Whatever would copy it, or overwrite it. */
const ATTEMPTS = [
  ["create", "copy.img", "c2.img"],
  ["copy", "copy.img", "c2.img"],
  ["create", "other.img", "copy.img", "--force"],
  ["create", "other.img", "copy.img", "--force", "--metadata", "x.clone"],
  ["copy", "other.img", "copy.img", "--force"],
  MOST_DANGEROUS,
];

async function expectRefused(cwd: string, attempts: string[][], code: number, message: RegExp): Promise<void> {
  const before = await snapshot(cwd);
  for (const args of attempts) {
    const failed = await clone(args, { cwd });
    expectFailure(failed, code, message);
    expect(failed.stderr, args.join(" ")).not.toMatch(/--metadata FILE|--force/);
  }
  expect(await snapshot(cwd)).toEqual(before);
}

describe("an unfinished clone", () => {
  const damages: [string, (bytes: Buffer) => Buffer, RegExp][] = [
    ["whose superblock was overwritten", (bytes) => bytes.fill(0xa5, 0, 512), /magic number is wrong/],
    ["whose metadata was cut", (bytes) => bytes.subarray(0, 20480), /too short|truncated/],
    ["whose metadata was emptied", (bytes) => bytes.subarray(0, 0), /too short/],
  ];
  test.each(damages)("%s is neither copied nor overwritten, whatever is forced", async (_what, damage, message) => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await unfinished(cwd);
    await writeFile(join(cwd, METADATA), damage(bytes));
    await expectRefused(cwd, [["copy", "copy.img", "c2.img"], MOST_DANGEROUS], 3, message);
  });

  test("whose metadata was damaged is refused in every command that would touch it, with no way round it named", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await writeFile(join(cwd, METADATA), (await unfinished(cwd)).fill(0, 0, 512));
    const byMetadata = ["create", "other.img", "new.img", "--metadata", METADATA];
    await expectRefused(cwd, [...ATTEMPTS, byMetadata], 3, /first block .* is zeroed/);
  });

  test("is given up by `clone delete`, which the refusal names, and its destination then free again", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await writeFile(join(cwd, METADATA), (await unfinished(cwd)).fill(0, 0, 512));
    const create = ["create", "other.img", "copy.img", "--force"];
    expectFailure(
      await clone(create, { cwd }),
      3,
      /may belong to an unfinished clone/,
      /clone check.*clone repair.*clone delete/,
    );
    // What is left of metadata is no destination, either.
    const over = ["create", "other.img", METADATA, "--force"];
    await truncate(join(cwd, METADATA), 2 * MIB);
    expectFailure(await clone(over, { cwd }), 3, /may be the metadata of an unfinished clone/);
    await cloneOk(["delete", "copy.img", "--yes"], { cwd });
    await cloneOk(create, { cwd });
  });

  test("of whose metadata only the descriptor is left is neither copied nor overwritten", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const { length } = await unfinished(cwd);
    await writeFile(join(cwd, METADATA), Buffer.alloc(length - 131072), { flag: "r+" });
    await expectRefused(cwd, ATTEMPTS, 3, /first block .* is zeroed, but metadata blocks follow it/);
  });

  test("whose metadata is empty is neither copied nor overwritten, and a copy of it says what can be done", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await unfinished(cwd);
    await truncate(join(cwd, METADATA), 0);
    await expectRefused(cwd, ATTEMPTS, 3, /too short for clone metadata: 0 bytes/);
    expectFailure(await clone(["copy", "disk.img", "copy.img"], { cwd }), 3, /too short/, /remove it/);
  });

  test.skipIf(noFailingSource !== undefined)(
    withReason("whose metadata cannot be read is neither copied nor overwritten", noFailingSource),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await unfinished(cwd, "good.clone");
      await using metadata = await failingSource(join(cwd, "good.clone"), { start: 0, end: 512 });
      await symlink(metadata.path, join(cwd, METADATA));
      await expectRefused(cwd, ATTEMPTS, 1, /Cannot read 4096 bytes at 0 .*EIO/);
    },
  );

  test.skipIf(noFailingSource !== undefined)(
    withReason("whose descriptor cannot be read is not told from a finalized one, and status says so", noFailingSource),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const { length } = await unfinished(cwd, "good.clone");
      const slots = length - 2 * SLOT_BYTES;
      const bad = { start: slots, end: slots + 2 * SLOT_BYTES };
      await using metadata = await failingSource(join(cwd, "good.clone"), bad);
      await symlink(metadata.path, join(cwd, METADATA));
      const shown = await clone(["status", "copy.img", "--json"], { cwd });
      expect(oneJson(shown.stdout)).toMatchObject({ hydratedRegions: 8, descriptorUnreadable: true });
      expect(oneJson(await cloneOk(["status", "good.clone", "--json"], { cwd }))).toMatchObject({
        descriptorUnreadable: false,
      });
      const before = await snapshot(cwd);
      for (const args of ATTEMPTS.filter((words) => !words.includes("--force") || words.includes("--metadata"))) {
        expectFailure(await clone(args, { cwd }), 1, /^clone: Cannot read 65536 bytes at \d+ .*EIO/, /clone repair/);
      }
      expect(await snapshot(cwd)).toEqual(before);
    },
  );
});

test.skipIf(noOrdinaryUser !== undefined)(
  withReason("a destination that only its owner can read is a name of its clone for others, too", noOrdinaryUser),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await unfinished(cwd);
    await chmod(cwd, 0o755);
    await chmod(join(cwd, "copy.img"), 0o600);
    const shown = await cloneOk(["status", "copy.img", "--json"], { cwd, ...asOrdinaryUser });
    expect(oneJson(shown)).toMatchObject({ hydratedRegions: 8 });
    // But who may not read the metadata does not know whether the file is whole.
    await chmod(join(cwd, "copy.img"), 0o644);
    await chmod(join(cwd, METADATA), 0o600);
    await chmod(cwd, 0o777);
    const copy = await clone(["copy", "copy.img", "c2.img"], { cwd, ...asOrdinaryUser });
    if (asOrdinaryUser.uid !== undefined) expectFailure(copy, 1, /unfinished clone.*permission denied/, /clone status/);
  },
);

test("what is without doubt no clone's metadata keeps nobody from copying the file beside it", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), MIB);
  await writeFile(join(cwd, "disk.img.clone"), "notes about the clone\n");
  await cloneOk(["copy", "disk.img", "1.img"], { cwd });
  await randomFile(join(cwd, "disk.img.clone"), MIB); // another disk
  await cloneOk(["copy", "disk.img", "2.img"], { cwd });
  await sparseFile(join(cwd, "disk.img.clone"), MIB, []); // an empty one
  await cloneOk(["copy", "disk.img", "3.img"], { cwd });
  await sparseFile(join(cwd, "disk.img.clone"), 5000, []); // a small one
  await cloneOk(["copy", "disk.img", "4.img"], { cwd });
  await cloneOk(["copy", "1.img", "disk.img", "--force", "--metadata", "x.clone"], { cwd });
});

describe.skipIf(noLoopDevices !== undefined)(withReason("metadata on a block device", noLoopDevices), () => {
  test("that was damaged while a copy was interrupted is said to be, not that --force overwrites the copy", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await using device = await scratchLoopDevice(4 * MIB);
    await unfinished(cwd, device.path);
    await writeFile(device.path, Buffer.alloc(512, 0xa5), { flag: "r+" });
    const before = await snapshot(cwd);
    const copy = ["copy", "disk.img", "copy.img", "--metadata", device.path];
    expectFailure(await clone(copy, { cwd }), 3, /magic number is wrong, but metadata blocks follow it/);
    expectFailure(await clone([...copy, "--force"], { cwd }), 3, /magic number is wrong/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("with a zeroed first block is not taken for blank where nothing behind it can be read", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await writeFile(join(cwd, "backing"), await unfinished(cwd));
    await writeFile(join(cwd, "dump.json"), await cloneOk(["dump", "copy.img"], { cwd }));
    await truncate(join(cwd, "backing"), 2 * MIB);
    await writeFile(join(cwd, "backing"), Buffer.alloc(4096), { flag: "r+" });
    await using device = await loopDevice(join(cwd, "backing"));
    await truncate(join(cwd, "backing"), 4096); // the loop device answers EIO from here on
    await run("blockdev", "--flushbufs", device.path);
    for (const args of [
      ["restore", "--input", "dump.json", "--output", device.path],
      ["delete", device.path, "--yes"],
      ["status", device.path],
    ]) {
      expectFailure(await clone(args, { cwd }), 1, /^clone: Cannot read .*EIO/);
    }
  });
});

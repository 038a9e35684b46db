/** Commands that make metadata of what there is, killed at each of their system calls: `restore` and `repair`. */
import { existsSync } from "node:fs";
import { open, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { clone, cloneOk } from "../support/run-clone.ts";
import { created, expectCopy, expectNames, expectTrue, type KilledCommand, QUIET } from "./command-surroundings.ts";

const METADATA = "copy.img.clone";
const BACKUP = "copy.img.clone.backup";
const REPAIRED = "copy.img.clone.repaired";
/** What the metadata was before, for comparison; no program knows of it. */
const BEFORE = "before";
const RESTORE = ["restore", "--input", "dump", "--output", METADATA] as const;

/** Restore to a new file and over another, repair to a new file and in place. */
export const KILLED_REPAIRS: readonly KilledCommand[] = [
  {
    name: "restore",
    args: RESTORE,
    async prepare(cwd) {
      const bytes = await dumped(cwd);
      await rm(join(cwd, METADATA));
      return bytes;
    },
    settle: settleRestore,
  },
  { name: "restore over metadata", args: [...RESTORE, "--force"], prepare: dumped, settle: settleRestoreOver },
  { name: "repair", args: ["repair", METADATA], prepare: damaged, settle: settleRepair },
  { name: "repair in place", args: ["repair", METADATA, "--in-place"], prepare: damaged, settle: settleRepairInPlace },
];

async function halfHydrated(cwd: string): Promise<Buffer> {
  const bytes = await created(cwd);
  await cloneOk(["hydrate", "copy.img", "--limit", "1M", ...QUIET], { cwd });
  return bytes;
}

async function dumped(cwd: string): Promise<Buffer> {
  const bytes = await halfHydrated(cwd);
  await writeFile(join(cwd, "dump"), await cloneOk(["dump", METADATA], { cwd }));
  return bytes;
}

/** Its superblock is lost; the blocks behind it tell what it was. */
async function damaged(cwd: string): Promise<Buffer> {
  const bytes = await halfHydrated(cwd);
  const file = await open(join(cwd, METADATA), "r+");
  await file.write(Buffer.alloc(4096), 0, 4096, 0);
  await file.close();
  await writeFile(join(cwd, BEFORE), await readFile(join(cwd, METADATA)));
  return bytes;
}

/** Removes what a kill between two names of the same whole file leaves: that file. */
async function expectWholeParts(cwd: string, bytes: Buffer): Promise<void> {
  for (const name of (await readdir(cwd)).filter((name) => /^copy\.img\.clone\.[0-9a-f]{12}\.part$/.test(name))) {
    await expectTrue(cwd, bytes, name);
    await rm(join(cwd, name));
  }
}

async function settleRestore(cwd: string, bytes: Buffer): Promise<void> {
  await expectNames(cwd, "disk.img", "copy.img", "dump", METADATA);
  const isThere = existsSync(join(cwd, METADATA));
  if (isThere) await expectTrue(cwd, bytes);
  expect((await clone(RESTORE, { cwd })).code).toBe(isThere ? 2 : 0);
  await expectUse(cwd, bytes);
  await expectNames(cwd, "disk.img", "copy.img", "dump", METADATA);
}

async function settleRestoreOver(cwd: string, bytes: Buffer): Promise<void> {
  await expectWholeParts(cwd, bytes);
  await expectNames(cwd, "disk.img", "copy.img", "dump", METADATA);
  await expectTrue(cwd, bytes); // the old one or the new one
  await cloneOk([...RESTORE, "--force"], { cwd });
  await expectUse(cwd, bytes);
}

async function settleRepair(cwd: string, bytes: Buffer): Promise<void> {
  await expectNames(cwd, "disk.img", "copy.img", BEFORE, METADATA, REPAIRED);
  expect(await same(cwd, METADATA, BEFORE), "what was damaged").toBe(true);
  const isThere = existsSync(join(cwd, REPAIRED));
  if (isThere) await expectTrue(cwd, bytes, REPAIRED);
  expect((await clone(["repair", METADATA], { cwd })).code).toBe(isThere ? 2 : 0);
  await rename(join(cwd, REPAIRED), join(cwd, METADATA));
  await expectUse(cwd, bytes);
}

async function settleRepairInPlace(cwd: string, bytes: Buffer): Promise<void> {
  await expectWholeParts(cwd, bytes);
  await expectNames(cwd, "disk.img", "copy.img", BEFORE, METADATA, BACKUP);
  const isDone = !(await same(cwd, METADATA, BEFORE));
  if (isDone) await expectTrue(cwd, bytes);
  await cloneOk(["repair", METADATA, "--in-place"], { cwd });
  await expectTrue(cwd, bytes);
  expect(await same(cwd, BACKUP, BEFORE), "the backup").toBe(true);
  await expectUse(cwd, bytes);
}

/** What was made is a clone that goes on to its end. */
async function expectUse(cwd: string, bytes: Buffer): Promise<void> {
  await expectTrue(cwd, bytes);
  await cloneOk(["hydrate", "copy.img", ...QUIET], { cwd });
  await expectCopy(cwd, bytes);
}

async function same(cwd: string, one: string, other: string): Promise<boolean> {
  return Buffer.compare(await readFile(join(cwd, one)), await readFile(join(cwd, other))) === 0;
}

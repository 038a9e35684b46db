/** Commands that are killed at each of their system calls: what they need, and what must hold whatever they have done of it. */
import { existsSync } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { allocatedBytes, randomFile } from "../support/files.ts";
import { clone, cloneOk, oneJson } from "../support/run-clone.ts";
import {
  created,
  expectCopy,
  expectNames,
  expectTrue,
  hydrated,
  type KilledCommand,
  QUIET,
  SIZE,
  source,
} from "./command-surroundings.ts";

/** Those that make, use and end clones. */
export const KILLED_COMMANDS: readonly KilledCommand[] = [
  { name: "create", args: ["create", "disk.img", "copy.img"], prepare: source, settle: settleCreation },
  {
    name: "create on a file that is there",
    args: ["create", "disk.img", "copy.img", "--force"],
    async prepare(cwd) {
      await randomFile(join(cwd, "copy.img"), SIZE + 12345);
      return await source(cwd);
    },
    settle: settleCreationOver,
  },
  { name: "hydrate", args: ["hydrate", "copy.img", ...QUIET], prepare: created, settle: settleHydration },
  {
    name: "hydrate over garbage",
    args: ["hydrate", "copy.img", "--verify", ...QUIET],
    async prepare(cwd) {
      await randomFile(join(cwd, "copy.img"), SIZE);
      return await created(cwd, "--force");
    },
    settle: settleHydration,
  },
  {
    name: "serve",
    args: ["serve", "copy.img", "--pidfile", "pid", "--rate", "max", "--run", "true"],
    prepare: created,
    settle: settleHydration,
  },
  {
    name: "serve and finalize",
    args: ["serve", "copy.img", "--socket", "nbd.sock", "--pidfile", "pid", "--finalize-when-hydrated"],
    prepare: created,
    settle: settleFinalization,
  },
  { name: "finalize", args: ["finalize", "copy.img", ...QUIET], prepare: hydrated, settle: settleFinalization },
  {
    name: "finalize and keep",
    args: ["finalize", "copy.img", "--keep-metadata", ...QUIET],
    prepare: hydrated,
    settle: settleKept,
  },
  { name: "copy", args: ["copy", "disk.img", "copy.img", ...QUIET], prepare: source, settle: settleCopy },
  { name: "delete", args: ["delete", "copy.img", "--yes"], prepare: hydrated, settle: settleDeletion },
];

async function settleCreation(cwd: string, bytes: Buffer): Promise<void> {
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone");
  if (existsSync(join(cwd, "copy.img"))) {
    expect((await stat(join(cwd, "copy.img"))).size).toBe(SIZE);
    expect(await allocatedBytes(join(cwd, "copy.img"))).toBe(0);
  }
  await settleCreationOver(cwd, bytes);
}

async function settleCreationOver(cwd: string, bytes: Buffer): Promise<void> {
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone");
  const isThere = existsSync(join(cwd, "copy.img.clone"));
  if (isThere) await expectTrue(cwd, bytes);
  const again = await clone(["create", "disk.img", "copy.img", "--force"], { cwd });
  expect(again.code, again.stderr).toBe(isThere ? 2 : 0);
  await cloneOk(["hydrate", "copy.img", ...QUIET], { cwd });
  await expectCopy(cwd, bytes);
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone");
}

async function settleHydration(cwd: string, bytes: Buffer): Promise<void> {
  const sockets = ["copy.img.clone.sock", "copy.img.clone.soc~"];
  const privately = (await readdir(cwd)).filter((name) => /^clone-/.test(name)); // of --run, where TMPDIR is
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone", "pid", ...sockets, ...privately);
  await expectTrue(cwd, bytes);
  await cloneOk(["hydrate", "copy.img", ...QUIET], { cwd });
  await expectTrue(cwd, bytes);
  await expectCopy(cwd, bytes);
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone", "pid", ...privately);
}

async function settleFinalization(cwd: string, bytes: Buffer): Promise<void> {
  const sockets = ["nbd.sock", "copy.img.clone.sock", "copy.img.clone.soc~"];
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone", "pid", ...sockets);
  if (existsSync(join(cwd, "copy.img.clone"))) {
    await expectTrue(cwd, bytes);
    const { state } = oneJson<{ state: string }>(await cloneOk(["status", "copy.img", "--json"], { cwd }));
    if (state !== "finalized") await cloneOk(["hydrate", "copy.img", ...QUIET], { cwd });
    await cloneOk(["finalize", "copy.img", ...QUIET], { cwd });
    // Whoever finalizes takes along what a killed server has left of the clone's own.
    await expectNames(cwd, "disk.img", "copy.img", "pid", "nbd.sock");
  }
  await expectCopy(cwd, bytes);
  expect((await stat(join(cwd, "copy.img"))).size).toBe(SIZE);
}

async function settleKept(cwd: string, bytes: Buffer): Promise<void> {
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone");
  await expectTrue(cwd, bytes);
  await cloneOk(["finalize", "copy.img", "--keep-metadata", ...QUIET], { cwd });
  const { state } = oneJson<{ state: string }>(await cloneOk(["status", "copy.img", "--json"], { cwd }));
  expect(state).toBe("finalized");
  await expectCopy(cwd, bytes);
}

async function settleCopy(cwd: string, bytes: Buffer): Promise<void> {
  const sockets = ["copy.img.clone.sock", "copy.img.clone.soc~"];
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone", ...sockets);
  const isThere = existsSync(join(cwd, "copy.img.clone"));
  if (isThere) await expectTrue(cwd, bytes);
  const copy = join(cwd, "copy.img");
  const isWhole = !isThere && existsSync(copy) && (await allocatedBytes(copy)) > 0;
  if (!isWhole) await cloneOk(["copy", "disk.img", "copy.img", ...QUIET], { cwd });
  await expectCopy(cwd, bytes);
  await expectNames(cwd, "disk.img", "copy.img");
}

async function settleDeletion(cwd: string, bytes: Buffer): Promise<void> {
  await expectNames(cwd, "disk.img", "copy.img", "copy.img.clone");
  await expectCopy(cwd, bytes);
  if (existsSync(join(cwd, "copy.img.clone"))) {
    await expectTrue(cwd, bytes);
    await cloneOk(["delete", "copy.img", "--yes"], { cwd });
  }
  await expectNames(cwd, "disk.img", "copy.img");
  await expectCopy(cwd, bytes);
}

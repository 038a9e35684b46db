/** What commands that are killed need, and what is looked at when they were. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { sparseFile } from "../support/files.ts";
import { cloneOk, oneJson } from "../support/run-clone.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
/** Regions that are not whole at the end, and sectors neither. */
export const SIZE = 3 * MIB + 5 * KIB + 100;
const REGION = 65536;
export const QUIET = ["--progress", "none"] as const;

/** A command and its surroundings. */
export interface KilledCommand {
  name: string;
  args: readonly string[];
  /** Makes what it needs in an empty directory; resolves to what the source holds. */
  prepare(cwd: string): Promise<Buffer>;
  /** Looks at what the killed command has left, does it again, and looks at what came of it. */
  settle(cwd: string, bytes: Buffer): Promise<void>;
}

export async function source(cwd: string): Promise<Buffer> {
  const bytes = await sparseFile(join(cwd, "disk.img"), SIZE, [
    [0, MIB],
    [2 * MIB, SIZE - 2 * MIB],
  ]);
  return bytes;
}

export async function created(cwd: string, ...more: string[]): Promise<Buffer> {
  const bytes = await source(cwd);
  await cloneOk(["create", "disk.img", "copy.img", ...more], { cwd });
  return bytes;
}

export async function hydrated(cwd: string): Promise<Buffer> {
  const bytes = await created(cwd);
  await cloneOk(["hydrate", "copy.img", ...QUIET], { cwd });
  return bytes;
}

/** Fails where a name stands in the directory that matches none of these. */
export async function expectNames(cwd: string, ...names: string[]): Promise<void> {
  const strange = (await readdir(cwd)).filter((name) => !names.includes(name));
  expect(strange, "left behind").toEqual([]);
}

/** The metadata is sound, and what it calls hydrated is there. */
export async function expectTrue(cwd: string, bytes: Buffer, metadata = "copy.img.clone"): Promise<void> {
  const checked = oneJson(await cloneOk(["check", metadata, "--json"], { cwd }));
  expect(checked).toEqual({ ok: true, fatal: [], warnings: [] });
  const { hydrated } = oneJson<{ hydrated: [number, number][] }>(await cloneOk(["dump", metadata, "--json"], { cwd }));
  const copy = await readFile(join(cwd, "copy.img"));
  for (const [start, end] of hydrated) {
    const [from, to] = [start * REGION, Math.min(end * REGION, bytes.length)];
    expect(Buffer.compare(copy.subarray(from, to), bytes.subarray(from, to)), `regions [${start}, ${end})`).toBe(0);
  }
}

export async function expectCopy(cwd: string, bytes: Buffer): Promise<void> {
  const copy = await readFile(join(cwd, "copy.img"));
  expect(Buffer.compare(copy.subarray(0, bytes.length), bytes), "the copy").toBe(0);
}

// I/O errors of the metadata, a file or a block device, under the commands that read or write nothing else: `create`, `check`, `dump`, `restore` and
// `repair`. Each fails in one line that names the file and EIO, or says what cannot be known; what it was to make is whole or not
// there; what it was to read stays as it is.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { campaign } from "../support/campaign.ts";
import { type FailingRequest, failingDisk } from "../support/failing-disk.ts";
import { noNbdLoop } from "../support/nbd-loop.ts";
import { type Needs, testWith } from "../support/needs.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, scratchDirectory } from "../support/scratch.ts";
import { stampSectors } from "../support/stamped-sectors.ts";
import { OPTIONS } from "./options.ts";

const { shard, shards, report } = campaign(OPTIONS);
const SIZE = 2 * 2 ** 20;
const needs: Needs = { programs: ["nbdkit", "nbdfuse", "fusermount3"], machine: noNbdLoop };
const loopNeeds: Needs = { ...needs, machine: noNbdLoop ?? noLoopDevices };

/** A half hydrated clone, and a file or block device that may fail: with its metadata, or with anything else of that size. */
async function metadataPlace({
  form,
  flushes = false,
  content = (healthy) => healthy,
}: {
  form: "file" | "block device";
  flushes?: boolean;
  content?: (healthy: Buffer) => Buffer;
}) {
  const place = await scratchDirectory();
  const cwd = place.path;
  const bytes = stampSectors(Buffer.alloc(SIZE), 0, 1);
  await writeFile(join(cwd, "disk.img"), bytes);
  await cloneOk(["create", "disk.img", "copy.img", "--metadata", "own.clone"], { cwd });
  await cloneOk(["hydrate", "own.clone", "--limit", "512K", "--progress", "none"], { cwd });
  const healthy = await readFile(join(cwd, "own.clone"));
  const file = join(cwd, "backing");
  await writeFile(file, content(healthy));
  const disk = await failingDisk({ cwd, file, size: healthy.length, form: "file", flushes });
  const device = form === "file" ? undefined : await loopDevice(disk.at);
  return {
    at: device?.path ?? disk.at,
    cwd,
    bytes,
    disk,
    healthy,
    backing: () => readFile(file),
    async [Symbol.asyncDispose]() {
      await disk.heal();
      await device?.[Symbol.asyncDispose]();
      await disk[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
}

const WRITES: FailingRequest[] = ["pwrite", "flush"];
const WRITERS: [string, (at: string) => string[], string[]][] = [
  ["create", (at) => ["create", "disk.img", "second.img", "--metadata", at], ["second.img"]],
  ["restore", (at) => ["restore", "--input", "dump.json", "--output", at], []],
];
const writings = WRITERS.flatMap((writer) => WRITES.map((request) => [request, ...writer] as const));

describe("metadata that is written", () => {
  for (const [request, command, args, made] of writings.filter((_, index) => index % shards === shard)) {
    const what = `by \`clone ${command}\` to a disk whose ${request} fails is not there, and can be made afterwards`;
    testWith(loopNeeds, what, async () => {
      const content = (healthy: Buffer): Buffer => Buffer.alloc(healthy.length);
      await using place = await metadataPlace({ form: "block device", flushes: request === "flush", content });
      const { cwd, disk, at } = place;
      await writeFile(join(cwd, "dump.json"), await cloneOk(["dump", "own.clone"], { cwd }));
      const before = (await readdir(cwd)).sort();
      await disk.fail(request);
      const run = await clone(args(at), { cwd });
      expectFailure(run, 1, /EIO/);
      expect(run.stderr).toContain(at);
      await disk.heal();
      expect((await readdir(cwd)).sort()).toEqual(before);
      expect(await clone(["check", at], { cwd })).toMatchObject({ code: 3 }); // no clone's metadata
      await cloneOk(args(at), { cwd });
      await cloneOk(["check", at], { cwd });
      expect((await readdir(cwd)).sort()).toEqual([...before, ...made].sort());
      report({ "devices that failed": 1 });
    });
  }
});

const READERS: [string, (at: string) => string[]][] = [
  ["check", (at) => ["check", at]],
  ["dump", (at) => ["dump", at]],
  ["repair", (at) => ["repair", at, "--output", "new.clone"]],
  ["repair --in-place", (at) => ["repair", at, "--in-place", "--backup", "backup.clone"]],
];

describe("metadata that cannot be read", () => {
  for (const [command, args] of READERS.filter((_, index) => index % shards === shard)) {
    testWith(needs, `is refused by \`clone ${command}\`, and left as it is`, async () => {
      await using place = await metadataPlace({ form: "file" });
      const { cwd, disk, healthy, at } = place;
      const before = await readdir(cwd);
      await disk.fail("pread");
      const run = await clone(args(at), { cwd });
      expect([1, 3], run.stderr).toContain(run.code);
      expect(`${run.stdout}${run.stderr}`).toMatch(/EIO|I\/O error/);
      expect(run.stderr).not.toMatch(/fault of the program/);
      await disk.heal();
      expect((await readdir(cwd)).sort()).toEqual(before.sort());
      expect(Buffer.compare(await place.backing(), healthy)).toBe(0);
      const again = await clone(args(at), { cwd });
      expect(again.code, again.stderr).toBe(0);
      report({ "devices that failed": 1 });
    });
  }
});

describe("a repair in place", () => {
  for (const request of WRITES.filter((_, index) => index % shards === shard)) {
    testWith(loopNeeds, `whose ${request} fails says so, and leaves what it can be done from`, async () => {
      const content = (healthy: Buffer): Buffer => Buffer.concat([Buffer.alloc(4096), healthy.subarray(4096)]);
      await using place = await metadataPlace({ form: "block device", flushes: request === "flush", content });
      const { cwd, disk, bytes, healthy, at } = place;
      await disk.fail(request);
      const run = await clone(["repair", at, "--in-place", "--backup", "backup.clone"], { cwd });
      expectFailure(run, 1, /EIO/);
      await disk.heal();
      expect(Buffer.compare(await readFile(join(cwd, "backup.clone")), content(healthy)), "the backup").toBe(0);
      await cloneOk(["repair", "backup.clone", "--output", "new.clone"], { cwd });
      await cloneOk(["hydrate", "new.clone", "--progress", "none"], { cwd });
      await cloneOk(["finalize", "new.clone", "--keep-metadata"], { cwd });
      expect(Buffer.compare(await readFile(join(cwd, "copy.img")), bytes)).toBe(0);
      report({ "devices that failed": 1 });
    });
  }
});

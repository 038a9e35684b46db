// A file system is mounted from its clone at once, before anything is copied: its files are there and can be changed, what is
// trimmed is never copied, and in the end the destination alone is a sound file system with the changed files.
import { mkdir, open, readFile, rename, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { hashesBelow, hashOf } from "../support/file-hashes.ts";
import { type ByteRange, bytesWithin, loggedSource } from "../support/logged-source.ts";
import { mountedDevice, nbdLoopDevice, noNbdLoop } from "../support/nbd-loop.ts";
import { type Program, testWith } from "../support/needs.ts";
import { contentBytes } from "../support/random.ts";
import { cloneOk } from "../support/run-clone.ts";
import { loopDevice, run, scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const REGION = 64 * KIB;
const DOOMED = 16 * MIB;

interface FileSystem {
  type: "ext4" | "xfs";
  size: number;
  mkfs: Program;
  /** Finds fault with the file system on an image, or exits 0. */
  fsck: readonly [Program, ...string[]];
}

const FILE_SYSTEMS: readonly FileSystem[] = [
  { type: "ext4", size: 96 * MIB, mkfs: "mkfs.ext4", fsck: ["e2fsck", "-f", "-n"] },
  // mkfs.xfs makes no smaller ones.
  { type: "xfs", size: 320 * MIB, mkfs: "mkfs.xfs", fsck: ["xfs_repair", "-n", "-f"] },
];

describe.each(FILE_SYSTEMS)("an $type file system", ({ type, size, mkfs, fsck }) => {
  const programs = [mkfs, fsck[0], "nbdfuse", "nbdkit", "fusermount3", "losetup"] as const;
  testWith(
    { programs, machine: noNbdLoop },
    "is mounted from its clone at once, changed, trimmed, hydrated and left to itself",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const image = join(cwd, "disk.img");
      await writeFile(image, "");
      await truncate(image, size);
      await run(mkfs, "-q", image);
      let doomed: ByteRange[];
      {
        await using device = await loopDevice(image);
        await using mounted = await mountedDevice(device.path, type);
        await fillWithFiles(mounted.path);
        await writeFile(join(mounted.path, "doomed"), contentBytes(DOOMED));
        await run("sync", "-f", mounted.path);
        doomed = wholeRegions(await extentsOf(join(mounted.path, "doomed")));
      }
      expect(bytesOf(doomed)).toBeGreaterThan(DOOMED / 2);
      await using source = await loggedSource(image);
      await cloneOk(["create", source.path, "copy.img"], { cwd });

      let files: Map<string, string>;
      let beforeTrim: number;
      {
        await using server = await startServe({ clone: "copy.img", cwd, args: ["--no-hydrate"] });
        {
          await using device = await nbdLoopDevice(server.uri);
          await using mounted = await mountedDevice(device.path, type);
          const original = await hashesBelow(mounted.path, "doomed");
          expect(original.size).toBe(FILES + 1);
          files = await change(mounted.path, original);
          await rm(join(mounted.path, "doomed"));
          await run("sync", "-f", mounted.path);
          // What the kernel has read ahead until then is not held against anybody.
          beforeTrim = source.reads().length;
          await run("fstrim", mounted.path);
          expect(await hashesBelow(mounted.path)).toEqual(files);
          // It goes on being used while the rest is copied.
          await server.tune("--resume");
          await writeFile(join(mounted.path, "late"), contentBytes(3 * MIB));
          files.set("late", hashOf(await readFile(join(mounted.path, "late"))));
          await server.hydrated();
        }
        await stopServe(server);
      }
      const reads = source.reads();
      expect(doomed.map((range) => bytesWithin(reads.slice(beforeTrim), range))).toEqual(doomed.map(() => 0));
      // But for what was trimmed or written, all of the source was read.
      expect(bytesWithin(reads.slice(beforeTrim), { start: 0, end: size })).toBeLessThan(size - bytesOf(doomed));
      expect(bytesWithin(reads, { start: 0, end: size })).toBeGreaterThan(BALLAST);

      await cloneOk(["finalize", "copy.img"], { cwd });
      const [checker, ...options] = fsck;
      await run(checker, ...options, join(cwd, "copy.img"));
      await using device = await loopDevice(join(cwd, "copy.img"));
      await using mounted = await mountedDevice(device.path, type);
      expect(await hashesBelow(mounted.path)).toEqual(files);
    },
    120_000,
  );
});

const FILES = 120;
const BALLAST = 8 * MIB;

/** Files of many sizes in directories, and a large one. */
async function fillWithFiles(root: string): Promise<void> {
  for (let index = 0; index < FILES; index++) {
    const directory = join(root, `d${index % 7}`);
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, `f${index}`), contentBytes((index * 7919) % (96 * KIB)));
  }
  await writeFile(join(root, "ballast"), contentBytes(BALLAST));
}

/** Changes files in all the ways there are, and returns what they are then. */
async function change(root: string, original: Map<string, string>): Promise<Map<string, string>> {
  const files = new Map(original);
  const note = async (name: string) => files.set(name, hashOf(await readFile(join(root, name))));

  const ballast = await open(join(root, "ballast"), "r+");
  await ballast.write(contentBytes(5000), 0, 5000, 3 * MIB + 17);
  await ballast.sync();
  await ballast.close();
  await note("ballast");
  await writeFile(join(root, "d1", "f8"), contentBytes(200 * KIB), { flag: "a" });
  await note("d1/f8");
  await truncate(join(root, "d2", "f9"), 1000);
  await note("d2/f9");
  await rename(join(root, "d3", "f10"), join(root, "d4", "renamed"));
  files.delete("d3/f10");
  await note("d4/renamed");
  await rm(join(root, "d5"), { recursive: true });
  for (const name of original.keys()) if (name.startsWith("d5/")) files.delete(name);
  await mkdir(join(root, "new"));
  for (let index = 0; index < 30; index++) {
    await writeFile(join(root, "new", `n${index}`), contentBytes(index * 3000));
    await note(`new/n${index}`);
  }
  return files;
}

/** Where on its device a file lies. */
async function extentsOf(path: string): Promise<ByteRange[]> {
  const told = await run("filefrag", "-e", "-b512", path);
  return [...told.matchAll(/^ *\d+: +\d+\.\. +\d+: +(\d+)\.\. +(\d+):/gm)].map(([, first, last]) => ({
    start: Number(first) * 512,
    end: (Number(last) + 1) * 512,
  }));
}

/** What of the ranges are whole regions. */
function wholeRegions(ranges: ByteRange[]): ByteRange[] {
  return ranges
    .map(({ start, end }) => ({
      start: Math.ceil(start / REGION) * REGION,
      end: Math.floor(end / REGION) * REGION,
    }))
    .filter(({ start, end }) => start < end);
}

function bytesOf(ranges: ByteRange[]): number {
  return ranges.reduce((sum, { start, end }) => sum + end - start, 0);
}

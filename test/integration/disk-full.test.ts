// A destination that fills up in the middle of a hydration stops it cleanly; when there is space again it goes on.
import { readFile, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { holds, randomFile, readRange } from "../support/files.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import {
  mountedFileSystem,
  mountedTmpfs,
  noFileSystem,
  noLoopDevices,
  scratchDirectory,
  withReason,
} from "../support/scratch.ts";

const MIB = 1024 * 1024;

const FILE_SYSTEMS = [
  { type: "tmpfs", reason: noLoopDevices, mount: () => mountedTmpfs(12 * MIB) },
  { type: "ext4", reason: noFileSystem("ext4"), mount: () => mountedFileSystem("ext4", 16 * MIB) },
] as const;

for (const { type, reason, mount } of FILE_SYSTEMS) {
  test.skipIf(reason !== undefined)(
    withReason(
      `hydration to a ${type} that fills up stops, lies about nothing, and goes on when there is space`,
      reason,
    ),
    async () => {
      await using place = await scratchDirectory();
      await using small = await mount();
      const cwd = small.path;
      const source = join(place.path, "disk.img");
      const bytes = await randomFile(source, 6 * MIB);
      await cloneOk(["create", source, "copy.img"], { cwd });
      // Ballast that leaves some 3 MiB.
      const ballast = join(cwd, "ballast");
      await fill(ballast, 3 * MIB);
      const run = await clone(["hydrate", "copy.img", "--progress", "none"], { cwd });
      expectFailure(run, 1, /no space|ENOSPC/i);
      expect(run.stderr).toContain("copy.img");
      await cloneOk(["check", "copy.img.clone"], { cwd });
      const dump = oneJson<{ hydrated: [number, number][] }>(
        await cloneOk(["dump", "copy.img.clone", "--json"], { cwd }),
      );
      for (const [start, end] of dump.hydrated) {
        const [from, length] = [start * 65536, (end - start) * 65536];
        const copied = await readRange(join(cwd, "copy.img"), from, length);
        expect(Buffer.compare(copied, bytes.subarray(from, from + length))).toBe(0);
      }
      expectFailure(await clone(["hydrate", "copy.img", "--progress", "none"], { cwd }), 1, /no space|ENOSPC/i);
      await unlink(ballast);
      await cloneOk(["hydrate", "copy.img"], { cwd });
      await cloneOk(["verify", "copy.img"], { cwd });
      await cloneOk(["finalize", "copy.img"], { cwd });
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
  );
}

/** Fills a file system with a file, but for `left` bytes. */
async function fill(path: string, left: number): Promise<void> {
  const piece = Buffer.alloc(MIB / 4, 1);
  let length = 0;
  try {
    for (;;) {
      await writeFile(path, piece, { flag: "a" });
      length += piece.length;
    }
  } catch (error) {
    expect((error as NodeJS.ErrnoException).code).toBe("ENOSPC");
  }
  const kept = (await readFile(path)).subarray(0, Math.max(0, length - left));
  await unlink(path);
  await writeFile(path, kept);
}

test.skipIf(noLoopDevices !== undefined)(
  withReason("clone copy to a full file system keeps what it has, and the same command goes on", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    await using small = await mountedTmpfs(8 * MIB);
    const cwd = small.path;
    const source = join(place.path, "disk.img");
    const bytes = await randomFile(source, 4 * MIB);
    await fill(join(cwd, "ballast"), 3 * MIB);
    const run = await clone(["copy", source, "copy.img", "--progress", "none"], { cwd });
    expectFailure(run, 1, /no space|ENOSPC/i);
    await cloneOk(["check", "copy.img.clone"], { cwd });
    await unlink(join(cwd, "ballast"));
    await cloneOk(["copy", source, "copy.img"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  },
);

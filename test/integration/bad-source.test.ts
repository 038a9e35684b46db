// A source that cannot be cloned is refused in one line, and nothing is made, changed or lost by the attempt.
import { execFileSync } from "node:child_process";
import { chmod, mkdir, readFile, rename, symlink, truncate, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { randomFile, readRange, snapshot } from "../support/files.ts";
import { asOrdinaryUser, noOrdinaryUser } from "../support/other-user.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import { scratchDirectory, withReason } from "../support/scratch.ts";

const SIZE = 4 * 65536;

describe.each(["create", "copy"])("clone %s", (command) => {
  test("fails where the source is missing", async () => {
    await using place = await scratchDirectory();
    const run = await clone([command, "none.img", "copy.img"], { cwd: place.path });
    expectFailure(run, 1, /^clone: Cannot open "[^"]*none\.img": no such file/);
    expect(await snapshot(place.path)).toEqual({});
  });

  test("refuses an empty source", async () => {
    await using place = await scratchDirectory();
    await writeFile(join(place.path, "empty.img"), "");
    const before = await snapshot(place.path);
    const run = await clone([command, "empty.img", "copy.img"], { cwd: place.path });
    expectFailure(run, 2, /"[^"]*empty\.img": it is empty/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("refuses a directory as the source", async () => {
    await using place = await scratchDirectory();
    await mkdir(join(place.path, "folder"));
    const before = await snapshot(place.path);
    const run = await clone([command, "folder", "copy.img"], { cwd: place.path });
    expectFailure(run, 2, /"[^"]*folder": it is a directory/);
    expect(await snapshot(place.path)).toEqual(before);
  });
});

// What `create` and `copy` check in one and the same way, tried by `create` alone.
describe("clone create", () => {
  const command = "create";

  test("refuses a FIFO as the source, without waiting for a writer", async () => {
    await using place = await scratchDirectory();
    execFileSync("mkfifo", [join(place.path, "pipe")]);
    const before = await snapshot(place.path);
    const run = await clone([command, "pipe", "copy.img"], { cwd: place.path });
    expectFailure(run, 2, /"[^"]*pipe": it is a pipe/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test.each(["/dev/null", "/dev/zero"])("refuses %s as the source", async (device) => {
    await using place = await scratchDirectory();
    const run = await clone([command, device, "copy.img"], { cwd: place.path });
    expectFailure(run, 2, /"\/dev\/(null|zero)": it is a character device/);
    expect(await snapshot(place.path)).toEqual({});
  });

  test("fails where the source is a symbolic link to nothing", async () => {
    await using place = await scratchDirectory();
    await symlink("nowhere", join(place.path, "link.img"));
    const before = await snapshot(place.path);
    const run = await clone([command, "link.img", "copy.img"], { cwd: place.path });
    expectFailure(run, 1, /"[^"]*link\.img": no such file/);
    expect(await snapshot(place.path)).toEqual(before);
  });

  test("fails where the source is below something that is no directory", async () => {
    await using place = await scratchDirectory();
    await randomFile(join(place.path, "file"), 100);
    const run = await clone([command, "file/disk.img", "copy.img"], { cwd: place.path });
    expectFailure(run, 1, /"[^"]*file\/disk\.img": /);
  });

  test.skipIf(noOrdinaryUser !== undefined)(
    withReason("fails where the source may not be read", noOrdinaryUser),
    async () => {
      await using place = await scratchDirectory();
      await chmod(place.path, 0o777);
      await randomFile(join(place.path, "disk.img"), SIZE);
      await chmod(join(place.path, "disk.img"), 0);
      const run = await clone([command, "disk.img", "copy.img"], { cwd: place.path, ...asOrdinaryUser });
      expectFailure(run, 1, /"[^"]*disk\.img": permission denied/);
      await chmod(join(place.path, "disk.img"), 0o600);
      expect(Object.keys(await snapshot(place.path))).toEqual(["disk.img"]);
    },
  );

  test("never takes an image for its bytes, unless --source-format raw says so", async () => {
    await using place = await scratchDirectory();
    const bytes = await randomFile(join(place.path, "disk.qcow2"), SIZE);
    bytes.write("QFI\xfb\0\0\0\x03", "latin1");
    await writeFile(join(place.path, "disk.qcow2"), bytes);
    const before = await snapshot(place.path);
    const run = await clone([command, "disk.qcow2", "copy.img"], { cwd: place.path });
    expectFailure(run, 1, /disk\.qcow2/); // it is none that qemu, or anybody, could open
    expect(await snapshot(place.path)).toEqual(before);
    await cloneOk([command, "disk.qcow2", "copy.img", "--source-format", "raw"], { cwd: place.path });
  });

  test("refuses a URI of a kind that it cannot open, and never prints its password", async () => {
    await using place = await scratchDirectory();
    const run = await clone([command, "gopher://user:secret@host/disk", "copy.img"], { cwd: place.path });
    expectFailure(run, 2, /gopher:\/\/host\/disk/);
    expect(run.stderr).not.toContain("secret");
    expect(await snapshot(place.path)).toEqual({});
  });
});

test("clone create takes a file:/// URI with escaped characters", async () => {
  await using place = await scratchDirectory();
  await randomFile(join(place.path, "my disk %.img"), SIZE);
  const uri = `file://${place.path}/my%20disk%20%25.img`;
  const out = oneJson(await cloneOk(["create", uri, "copy.img", "--json"], { cwd: place.path }));
  expect(out).toMatchObject({ source: join(place.path, "my disk %.img"), size: SIZE });
});

/** A clone half of which is hydrated. */
async function halfHydrated(cwd: string): Promise<Buffer> {
  const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img", "--limit", "128K", "--threshold", "1", "--batch-size", "1"], { cwd });
  return bytes;
}

async function hydratedRanges(cwd: string): Promise<[number, number][]> {
  return oneJson<{ hydrated: [number, number][] }>(await cloneOk(["dump", "copy.img.clone", "--json"], { cwd }))
    .hydrated;
}

describe("a source that is not what it was when the clone was created", () => {
  const changes: [name: string, change: (disk: string) => Promise<void>, message: RegExp][] = [
    ["has shrunk", (disk) => truncate(disk, SIZE - 65536), /size is 196608 bytes now and was 262144/],
    ["has grown", (disk) => truncate(disk, SIZE + 1), /size is 262145 bytes now and was 262144/],
    ["was written to", (disk) => utimes(disk, 1, 1_000_000_000), /last written at 2001-09-09/],
    [
      "was replaced by another file",
      async (disk) => {
        await rename(disk, `${disk}.old`);
        await writeFile(disk, await readFile(`${disk}.old`));
      },
      /it is another file/,
    ],
  ];

  test.each(changes)("clone hydrate refuses one that %s, and loses nothing", async (_, change, message) => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await halfHydrated(cwd);
    const ranges = await hydratedRanges(cwd);
    expect(ranges.length).toBeGreaterThan(0);
    await change(join(cwd, "disk.img"));
    const before = await snapshot(cwd);
    const run = await clone(["hydrate", "copy.img"], { cwd });
    expectFailure(run, 1, message, /--accept-changed-source/);
    expect(run.stderr).toContain("has changed since the clone was created");
    expect(await snapshot(cwd)).toEqual(before);
    expect(await hydratedRanges(cwd)).toEqual(ranges);
    for (const [start, end] of ranges) {
      const [from, length] = [start * 65536, (end - start) * 65536];
      const copied = await readRange(join(cwd, "copy.img"), from, length);
      expect(Buffer.compare(copied, bytes.subarray(from, from + length))).toBe(0);
    }
  });

  test("clone hydrate --accept-changed-source goes on and says what that means", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const old = await halfHydrated(cwd);
    const ranges = await hydratedRanges(cwd);
    const now = await randomFile(join(cwd, "disk.img"), SIZE);
    const run = await clone(["hydrate", "copy.img", "--accept-changed-source"], { cwd });
    expect(run.code).toBe(0);
    expect(run.stderr).toMatch(/^clone: Warning: .*has changed/m);
    const expected = Buffer.from(now);
    for (const [start, end] of ranges) old.copy(expected, start * 65536, start * 65536, end * 65536);
    expect(Buffer.compare(await readFile(join(cwd, "copy.img")), expected)).toBe(0);
    expect((await clone(["hydrate", "copy.img"], { cwd })).code).toBe(0); // the new one is pinned now
  });

  test("clone hydrate --accept-changed-source still refuses one that is too small", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await halfHydrated(cwd);
    await truncate(join(cwd, "disk.img"), SIZE - 1);
    const before = await snapshot(cwd);
    expectFailure(await clone(["hydrate", "copy.img", "--accept-changed-source"], { cwd }), 1, /fewer/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("clone verify and clone finalize --verify refuse it", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    await utimes(join(cwd, "disk.img"), 1, 1_000_000_000);
    const before = await snapshot(cwd);
    expectFailure(await clone(["verify", "copy.img"], { cwd }), 1, /has changed/, /--accept-changed-source/);
    expectFailure(await clone(["finalize", "copy.img", "--verify"], { cwd }), 1, /has changed/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("clone copy refuses to go on with it", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await halfHydrated(cwd);
    await utimes(join(cwd, "disk.img"), 1, 1_000_000_000);
    const before = await snapshot(cwd);
    expectFailure(await clone(["copy", "disk.img", "copy.img"], { cwd }), 1, /has changed/, /--accept-changed-source/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("clone hydrate that sees it change while it copies stops, and commits nothing more", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), 4 * 1024 * 1024);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    const running = clone(["hydrate", "copy.img", "--rate", "2M", "--progress", "none"], { cwd });
    await new Promise((resolve) => setTimeout(resolve, 500));
    await utimes(join(cwd, "disk.img"), 1, 1_000_000_000);
    expectFailure(await running, 1, /has changed since/, /--accept-changed-source/);
    await cloneOk(["check", "copy.img.clone"], { cwd });
    expect(oneJson(await cloneOk(["status", "copy.img", "--json"], { cwd })).state).toBe("idle");
  });
});

test("a clone whose source is gone is refused, and goes on with --source where it was moved to", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const bytes = await halfHydrated(cwd);
  await rename(join(cwd, "disk.img"), join(cwd, "moved.img"));
  const before = await snapshot(cwd);
  expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /Cannot open "[^"]*disk\.img": no such file/);
  expect(await snapshot(cwd)).toEqual(before);
  await cloneOk(["hydrate", "copy.img", "--source", "moved.img"], { cwd });
  expect(Buffer.compare(await readFile(join(cwd, "copy.img")), bytes)).toBe(0);
  await cloneOk(["verify", "copy.img"], { cwd }); // remembers where it is now
});

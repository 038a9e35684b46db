// What is opened, or made, may have been put there by somebody else: a FIFO that hangs whoever opens it, a device that something
// happens to, a link to what is not theirs. Each stands in each place where a file is expected; every command must end by
// itself with one clear line, and what stood there must stand there still.
import { lstat, readdir, readFile, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { openFile } from "../../src/device/open-file.ts";
import { randomFile } from "../support/files.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";

/** What is not a file: how it is made at a path. */
const SPECIAL: Record<string, (path: string) => Promise<unknown>> = {
  fifo: (path) => run("mkfifo", path),
  socket: async (path) => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen({ path, readableAll: true }, resolve));
    await run("cp", "-a", path, `${path}.kept`); // closing removes the name that was bound
    await new Promise((resolve) => server.close(resolve));
    await run("mv", `${path}.kept`, path);
  },
  "link to a device": (path) => symlink("/dev/zero", path),
};

describe.each(Object.keys(SPECIAL))("A %s", (kind) => {
  test("is opened neither for reading nor for writing, and not for an answer as to what it is", async () => {
    await using directory = await scratchDirectory();
    const path = join(directory.path, "special");
    await SPECIAL[kind]?.(path);
    for (const access of ["read-only", "read-write"] as const) {
      await expect(openFile(path, { access })).rejects.toThrow(/it is a (pipe|socket|character device), not a file/);
    }
  });

  test("in place of the metadata, the source, the destination or a trace is refused, and stays", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await randomFile(join(cwd, "source.img"), 65536);
    await SPECIAL[kind]?.(join(cwd, "special"));
    await cloneOk(["create", "source.img", "good.img", "-q"], { cwd });
    const before = await lstat(join(cwd, "special"));
    const runs = await Promise.all([
      clone(["create", "source.img", "copy.img", "--metadata", "special"], { cwd }),
      clone(["create", "special", "copy2.img"], { cwd }),
      clone(["create", "source.img", "special", "--metadata", "x.clone"], { cwd }),
      clone(["status", "special"], { cwd }),
      clone(["serve", "good.img", "--socket", "s", "--exit-when-hydrated", "--record-trace", "special"], { cwd }),
    ]);
    for (const failed of runs) {
      expectFailure(failed, failed.code === 2 ? 2 : 1, /special/);
    }
    const after = await lstat(join(cwd, "special"));
    expect([after.ino, after.mode]).toEqual([before.ino, before.mode]);
    const standing = (await readdir(cwd)).filter((name) => !name.startsWith("good.img")).sort();
    expect(standing).toEqual(["source.img", "special"]);
  });
});

test("A link to nothing where new metadata or a new destination is to be is not followed", async () => {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  await randomFile(join(cwd, "source.img"), 65536);
  for (const name of ["copy.img", "x.clone"]) await symlink(join(cwd, "elsewhere"), join(cwd, name));
  expectFailure(await clone(["create", "source.img", "copy.img"], { cwd }), 2, /it is a symbolic link to nothing/);
  const failed = await clone(["create", "source.img", "other.img", "--metadata", "x.clone"], { cwd });
  expectFailure(failed, 2, /Cannot create ".*x\.clone": a file stands there already/);
  expect((await readdir(cwd)).sort()).toEqual(["copy.img", "source.img", "x.clone"]);
});

test("A path that comes to name something else while it is opened is opened as what was looked at", async () => {
  await using directory = await scratchDirectory();
  const [path, fifo] = [join(directory.path, "file"), join(directory.path, "fifo")];
  await run("mkfifo", fifo);
  const opened = [];
  for (let attempt = 0; attempt < 20; attempt++) {
    await writeFile(path, "content");
    // Both begin before either is done: whichever way they meet, what is opened is the file, or the FIFO is refused.
    const [result] = await Promise.allSettled([
      openFile(path, { access: "read-only" }),
      run("cp", "-a", "-f", fifo, path),
    ]);
    if (result.status === "fulfilled") opened.push(result.value);
    else expect(String(result.reason)).toMatch(/it is a pipe|no such file/);
    await run("rm", "-f", path);
  }
  for (const { fd, kind } of opened) {
    expect(kind).toBe("file");
    await readFile(`/proc/self/fd/${fd}`);
    (await import("node:fs")).closeSync(fd);
  }
});

// Clones in each state are dumped and restored by the real program: the dump of the result is the same but for what it records of
// its own metadata, the checker finds nothing, and the clone goes on. Then everything that must be refused, with nothing changed.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readlinkSync } from "node:fs";
import { chmod, open, readFile, rm, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import { randomFile, snapshot } from "../support/files.ts";
import { readFixtureImage } from "../support/kernel-fixtures.ts";
import { until } from "../support/nbd-server.ts";
import { CLONE, clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { noLoopDevices, scratchDirectory, scratchLoopDevice, withReason } from "../support/scratch.ts";

const SIZE = 16 * 65536;

/** A clone half of which is hydrated, and its dump. */
async function halfHydrated(cwd: string): Promise<string> {
  await randomFile(join(cwd, "disk.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  await cloneOk(["hydrate", "copy.img", "--limit", "512K", "--threshold", "1", "--batch-size", "1"], { cwd });
  return await dumpTo(cwd, "copy.img", "dump.json");
}

/** What a process has open. */
function openedPaths(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
    } catch {
      return []; // closed just now
    }
  });
}

async function dumpTo(cwd: string, metadata: string, file: string, ...options: string[]): Promise<string> {
  const stdout = await cloneOk(["dump", metadata, ...options], { cwd });
  await writeFile(join(cwd, file), stdout);
  return stdout;
}

/** A dump without what it records of the metadata that it is of: this is another one. */
function withoutWitness(dump: string): unknown {
  const { descriptor, ...rest } = JSON.parse(dump);
  if (descriptor === null) return rest;
  const { superblock: _, free: __, ...settled } = descriptor.destination.settled;
  return { ...rest, descriptor: { ...descriptor, destination: { ...descriptor.destination, settled } } };
}

describe("clone restore", () => {
  test("makes metadata whose dump is the same, which is clean, and with which the clone goes on", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    const dump = await halfHydrated(cwd);
    const stdout = await cloneOk(["restore", "--input", "dump.json", "--output", "new.clone"], { cwd });
    expect(stdout).toBe(
      "Restored new.clone: 1.00 MiB in 16 regions of 64K, 8 hydrated\n".replace("new.clone", join(cwd, "new.clone")),
    );
    expect(withoutWitness(await cloneOk(["dump", "new.clone"], { cwd }))).toEqual(withoutWitness(dump));
    expect(await cloneOk(["check", "new.clone"], { cwd })).toMatch(/clean, 8 of 16 regions/);
    await cloneOk(["hydrate", "new.clone"], { cwd });
    await cloneOk(["verify", "new.clone"], { cwd });
    expect(Buffer.compare(await readFile(join(cwd, "disk.img")), await readFile(join(cwd, "copy.img")))).toBe(0);
  });

  test("reads standard input, also what dump --json prints, and keeps what finalize has recorded", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await cloneOk(["hydrate", "copy.img"], { cwd });
    await cloneOk(["finalize", "copy.img", "--keep-metadata"], { cwd });
    const dump = await dumpTo(cwd, "copy.img", "dump.json", "--json");
    const child = spawn(process.execPath, [CLONE, "restore", "--input", "-", "--output", "new.clone"], { cwd });
    child.stdin.end(dump);
    const [printed] = await Promise.all([text(child.stdout), text(child.stderr)]);
    expect(printed).toMatch(/16 hydrated\n$/);
    expect(withoutWitness(await cloneOk(["dump", "new.clone", "--json"], { cwd }))).toEqual(withoutWitness(dump));
    expect(await cloneOk(["status", "new.clone", "--json"], { cwd })).toContain('"state":"finalized"');
  });

  // All metadata of a size that was restored has the same superblock: that of the first one must not vouch for the second.
  test("takes the edited bits of a clone that was restored before for the truth", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await cloneOk(["restore", "--input", "dump.json", "--output", "copy.img.clone", "--force"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    const dump = JSON.parse(await dumpTo(cwd, "copy.img", "whole.json"));
    expect(dump.hydrated).toEqual([[0, 16]]);
    const edited = {
      ...dump,
      hydrated: [
        [0, 5],
        [6, 16],
      ],
    };
    await writeFile(join(cwd, "edited.json"), JSON.stringify(edited));
    await cloneOk(["restore", "--input", "edited.json", "--output", "copy.img.clone", "--force"], { cwd });
    expect(await cloneOk(["check", "copy.img"], { cwd })).toMatch(/clean, 15 of 16/);
    expect(await cloneOk(["hydrate", "copy.img"], { cwd })).toContain("64.0 KiB copied");
    await cloneOk(["finalize", "copy.img"], { cwd });
  });

  test("does not forget how the destination was left: what somebody else has written since is noticed", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    const copy = await open(join(cwd, "copy.img"), "r+");
    await copy.write(Buffer.from("STRANGER"), 0, 8, 0);
    await copy.utimes(1, 1);
    await copy.close();
    await dumpTo(cwd, "copy.img", "dump.json");
    await cloneOk(["restore", "--input", "dump.json", "--output", "copy.img.clone", "--force"], { cwd });
    expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /region 0 is called hydrated, but differs/);
  });

  test("restores what the kernel has left, and says that no devices are named", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await writeFile(join(cwd, "kernel.meta"), readFixtureImage("mid-1g-4k"));
    const dump = await dumpTo(cwd, "kernel.meta", "dump.json");
    const { stderr } = await clone(["restore", "--input", "dump.json", "--output", "new.meta"], { cwd });
    expect(stderr).toMatch(/names no devices/);
    expect(withoutWitness(await cloneOk(["dump", "new.meta"], { cwd }))).toEqual(withoutWitness(dump));
  });

  test("replaces metadata with --force only, in one step, mode and symbolic link kept", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    const dump = await halfHydrated(cwd);
    await cloneOk(["hydrate", "copy.img"], { cwd });
    await chmod(join(cwd, "copy.img.clone"), 0o640);
    await symlink("copy.img.clone", join(cwd, "link.clone"));
    const before = await snapshot(cwd);
    const args = ["restore", "--input", "dump.json", "--output", "link.clone"];
    expectFailure(await clone(args, { cwd }), 2, /a clone's metadata stands there already/, /^--force replaces it/);
    expect(await snapshot(cwd)).toEqual(before);
    await cloneOk([...args, "--force"], { cwd });
    expect(withoutWitness(await cloneOk(["dump", "copy.img.clone"], { cwd }))).toEqual(withoutWitness(dump));
    expect((await stat(join(cwd, "copy.img.clone"))).mode % 0o1000).toBe(0o640);
    expect(Object.keys(await snapshot(cwd)).sort()).toEqual(Object.keys(before).sort());
  });

  test("replaces damaged metadata with --force, and an empty file", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    const dump = await halfHydrated(cwd);
    await truncate(join(cwd, "copy.img.clone"), 20_000);
    await writeFile(join(cwd, "empty"), "");
    for (const output of ["copy.img.clone", "empty"]) {
      const args = ["restore", "--input", "dump.json", "--output", output];
      expectFailure(await clone(args, { cwd }), 2, /stands there already/);
      await cloneOk([...args, "--force"], { cwd });
      expect(withoutWitness(await cloneOk(["dump", output], { cwd }))).toEqual(withoutWitness(dump));
    }
  });

  test("takes a file that begins with zeros only where it can have been metadata, and never a destination", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    await writeFile(join(cwd, "image"), Buffer.alloc(65536).fill("data", 8192));
    await writeFile(join(cwd, "short"), Buffer.alloc(8192).fill("data", 4096));
    await writeFile(join(cwd, "large"), Buffer.alloc(2 ** 22));
    await writeFile(join(cwd, "blank"), Buffer.alloc(65536));
    await symlink("nowhere", join(cwd, "dangling"));
    const copy = await readFile(join(cwd, "copy.img"));
    await writeFile(join(cwd, "copy.img"), copy.fill(0, 0, 4096));
    const before = await snapshot(cwd);
    const restore = (output: string, ...options: string[]) =>
      clone(["restore", "--input", "dump.json", "--output", output, ...options], { cwd });
    expectFailure(await restore("image", "--force"), 2, /it holds data that is not clone metadata/);
    expectFailure(await restore("short", "--force"), 2, /it holds data that is not clone metadata/);
    expectFailure(await restore("large", "--force"), 2, /it holds zeros at its beginning, and is larger/);
    expectFailure(await restore("copy.img", "--force"), 2, /it is the destination of the clone ".*copy.img.clone"/);
    expectFailure(await restore("blank"), 2, /a file stands there already/);
    expectFailure(await restore("dangling"), 2, /it is a symbolic link that leads nowhere/);
    expect(await snapshot(cwd)).toEqual(before);

    // What is left of metadata whose first block was zeroed, and what a tool made for it that never came to write.
    const metadata = await readFile(join(cwd, "copy.img.clone"));
    await writeFile(join(cwd, "copy.img.clone"), metadata.fill(0, 0, 4096));
    for (const output of ["copy.img.clone", "blank"]) {
      expect(await restore(output, "--force")).toMatchObject({ code: 0 });
      expect(await cloneOk(["check", output], { cwd })).toMatch(/clean, 8 of 16 regions/);
    }
  });

  // The pipe of a shell's redirection is read to its end; one that nobody writes to must not keep the program.
  test("reads a named pipe, and is interrupted while nobody writes to it", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    const dump = await halfHydrated(cwd);
    execFileSync("mkfifo", ["pipe"], { cwd });
    const start = () =>
      spawn(process.execPath, [CLONE, "restore", "--input", "pipe", "--output", "new.clone"], {
        cwd,
        stdio: ["ignore", "ignore", "pipe"],
      });
    const reading = start();
    const read = once(reading, "exit");
    await writeFile(join(cwd, "pipe"), dump);
    expect((await read)[0]).toBe(0);
    expect(await cloneOk(["check", "new.clone"], { cwd })).toMatch(/clean, 8 of 16 regions/);

    await rm(join(cwd, "new.clone"));
    const waiting = start();
    try {
      const ended = once(waiting, "exit");
      const pipe = join(cwd, "pipe");
      await until(() => openedPaths(waiting.pid as number).includes(pipe));
      waiting.kill("SIGINT");
      expect((await ended)[0]).toBe(130);
    } finally {
      waiting.kill("SIGKILL");
    }
    await expect(stat(join(cwd, "new.clone"))).rejects.toThrow(/ENOENT/);
  });

  test("refuses what is not metadata to replace, and input that is no dump, and leaves everything as it was", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    const dump = await halfHydrated(cwd);
    await writeFile(join(cwd, "cut.json"), dump.slice(0, -20));
    await writeFile(join(cwd, "edited.json"), dump.replace("[0, 8]", "[0, 8], [7, 9]"));
    await writeFile(join(cwd, "noise"), Buffer.alloc(4096, 0x7f)); // not the random disk, which may begin with a digit
    const before = await snapshot(cwd);
    const refused = async (input: string, output: string, code: number, message: RegExp) =>
      expectFailure(await clone(["restore", "--input", input, "--output", output, "--force"], { cwd }), code, message);
    await refused("dump.json", "disk.img", 2, /it holds data that is not clone metadata/);
    await refused("dump.json", "dump.json", 2, /it holds text/);
    await refused("dump.json", ".", 2, /it is a directory/);
    await refused("dump.json", "missing/new.clone", 1, /no such directory/);
    await refused("missing.json", "new.clone", 1, /Cannot read the dump "missing.json": no such file/);
    await refused(".", "new.clone", 1, /it is a directory \(EISDIR\)/);
    await refused("cut.json", "new.clone", 3, /"cut.json": it ends too early/);
    await refused("edited.json", "copy.img.clone", 3, /\[7, 9\] begins before the one before it ends, at 8/);
    await refused("noise", "new.clone", 3, /it is no JSON/);
    await refused("copy.img.clone", "new.clone", 3, /it is metadata itself/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("refuses metadata that another process uses, with or without --force", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await halfHydrated(cwd);
    const server = spawn(
      process.execPath,
      [CLONE, "serve", "copy.img", "--socket", "s", "--no-hydrate", "--run", "cat"],
      {
        cwd,
        stdio: ["pipe", "ignore", "inherit"],
      },
    );
    try {
      // It is served as soon as it says so.
      let state = "";
      while (!state.includes('"server":{')) state = (await clone(["status", "copy.img", "--json"], { cwd })).stdout;
      const args = ["restore", "--input", "dump.json", "--output", "copy.img.clone"];
      expectFailure(await clone(args, { cwd }), 4, /in use/);
      expectFailure(await clone([...args, "--force"], { cwd }), 4, /in use/);
    } finally {
      const ended = new Promise((resolve) => server.once("exit", resolve));
      server.stdin?.end();
      await ended;
    }
  });

  test.skipIf(noLoopDevices !== undefined)(
    withReason("fills a blank block device, and a used one with --force", noLoopDevices),
    async () => {
      await using directory = await scratchDirectory();
      await using device = await scratchLoopDevice(2 ** 20);
      await using small = await scratchLoopDevice(65536);
      const cwd = directory.path;
      const dump = await halfHydrated(cwd);
      const args = ["restore", "--input", "dump.json", "--output"];
      await cloneOk([...args, device.path], { cwd });
      expect(withoutWitness(await cloneOk(["dump", device.path], { cwd }))).toEqual(withoutWitness(dump));
      expectFailure(await clone([...args, device.path], { cwd }), 2, /a clone's metadata stands there/);
      // A superblock that was wiped leaves the rest of a clone behind.
      const file = await readFile(device.path);
      await writeFile(device.path, file.fill(0, 0, 4096), { flag: "r+" });
      expectFailure(await clone([...args, device.path], { cwd }), 2, /a clone's metadata stands there/);
      await cloneOk([...args, device.path, "--force"], { cwd });
      expect(await cloneOk(["check", device.path], { cwd })).toMatch(/: clean/);
      expectFailure(await clone([...args, small.path], { cwd }), 2, /bytes are needed/);
    },
  );
});

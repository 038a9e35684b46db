// Who may read and write what is made, under each umask, as root and as anybody else: files are made by the program itself, and
// their modes looked at.
import { chmod, chown, stat } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { asOrdinaryUser, noOrdinaryUser } from "../support/other-user.ts";
import {
  type CloneOptions,
  type CloneRun,
  clone,
  eventually,
  expectFailure,
  startClone,
} from "../support/run-clone.ts";
import { scratchDirectory, withReason } from "../support/scratch.ts";

const SIZE = 256 * 1024;
const noRoot = process.getuid?.() === 0 ? undefined : "needs root, to give files away";

/** A process inherits the umask of the moment when it is started. */
function started<T>(umask: number, start: () => T): T {
  const before = process.umask(umask);
  try {
    return start();
  } finally {
    process.umask(before);
  }
}

function cloneUnder(umask: number, args: readonly string[], options: CloneOptions): Promise<CloneRun> {
  return started(umask, () => clone(args, options));
}

async function modeOf(path: string): Promise<string> {
  return ((await stat(path)).mode % 0o10000).toString(8);
}

describe("A new clone", () => {
  test.for([
    // Of a private image the copy is private. Metadata holds no secret, but who writes it chooses what is copied where.
    { umask: 0o000, source: 0o600, copy: "600", metadata: "664" },
    { umask: 0o000, source: 0o444, copy: "644", metadata: "664" },
    { umask: 0o022, source: 0o666, copy: "644", metadata: "644" },
    { umask: 0o022, source: 0o640, copy: "640", metadata: "644" },
    { umask: 0o077, source: 0o644, copy: "600", metadata: "600" },
  ])("may be read by nobody who may not read its source, nor written by everybody: %j", async (modes) => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await randomFile(join(cwd, "source.img"), SIZE);
    await chmod(join(cwd, "source.img"), modes.source);
    const run = await cloneUnder(modes.umask, ["create", "source.img", "copy.img", "-q"], { cwd });
    expect(run.code, run.stderr).toBe(0);
    expect(await modeOf(join(cwd, "copy.img"))).toBe(modes.copy);
    expect(await modeOf(join(cwd, "copy.img.clone"))).toBe(modes.metadata);
  });

  test.skipIf(noRoot !== undefined)(
    withReason("of a source that another group may read is for its owner alone: its group is not that one", noRoot),
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      const source = join(cwd, "source.img");
      await randomFile(source, SIZE);
      await chown(source, 54_321, 54_322);
      await chmod(source, 0o640);
      expect((await cloneUnder(0, ["create", "source.img", "copy.img", "-q"], { cwd })).code).toBe(0);
      expect(await modeOf(join(cwd, "copy.img"))).toBe("600");
    },
  );

  test.skipIf(noOrdinaryUser !== undefined)(
    withReason("under a umask that leaves nothing is made, or refused in one line with nothing left", noOrdinaryUser),
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await chmod(cwd, 0o777);
      await randomFile(join(cwd, "source.img"), SIZE);
      const run = await cloneUnder(0o777, ["create", "source.img", "copy.img"], { cwd, ...asOrdinaryUser });
      expectFailure(run, 1, /Cannot create ".*copy\.img": permission denied \(EACCES\)/);
      await expect(stat(join(cwd, "copy.img"))).rejects.toThrow("ENOENT");
    },
  );
});

describe("A server", () => {
  test.for(["000", "077"])(
    "makes sockets for its user alone under umask %s, and nothing that others write",
    async (octal) => {
      const umask = Number.parseInt(octal, 8);
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await randomFile(join(cwd, "source.img"), SIZE);
      expect((await cloneUnder(umask, ["create", "source.img", "copy.img", "-q"], { cwd })).code).toBe(0);
      const files = ["--socket", "nbd.sock", "--pidfile", "pid", "--record-trace", "trace"];
      const server = started(umask, () => startClone(["serve", "copy.img", ...files, "--no-hydrate"], { cwd }));
      try {
        await eventually("the server is ready", () =>
          stat(join(cwd, "pid")).then(
            () => true,
            () => false,
          ),
        );
        const rest = umask === 0 ? "644" : "600";
        expect(await modeOf(join(cwd, "nbd.sock"))).toBe("600");
        expect(await modeOf(join(cwd, "copy.img.clone.sock"))).toBe("600");
        expect(await modeOf(join(cwd, "pid"))).toBe(rest);
        expect(await modeOf(join(cwd, "trace"))).toBe(rest);
      } finally {
        server.child.kill("SIGTERM");
        await server.done;
      }
    },
  );
});

// `[ COMMAND … ]` and images as sources of the program itself: nbdkit and qemu-nbd on the socket that they are handed, ended in the
// middle, and when clone is.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { CloneError, DeviceError } from "../../src/base/errors.ts";
import { ChildDevice } from "../../src/clone/child-device.ts";
import { openImage } from "../../src/clone/image-source.ts";
import { ChildServer } from "../../src/device/child-server.ts";
import { NbdDevice } from "../../src/nbd/client/nbd-device.ts";
import { nodeProgram } from "../support/child-programs.ts";
import { holds, sparseFile } from "../support/files.ts";
import { imageOf } from "../support/image.ts";
import { testWith } from "../support/needs.ts";
import { childrenNamed } from "../support/processes.ts";
import { CLONE, clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";

const MIB = 2 ** 20;

async function withDisk(size = 8 * MIB) {
  const directory = await scratchDirectory();
  const raw = join(directory.path, "disk.raw");
  const content = await sparseFile(raw, size, [
    [0, 100_000],
    [MIB, size - 2 * MIB],
  ]);
  return {
    cwd: directory.path,
    raw,
    content,
    path: (name: string): string => join(directory.path, name),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

async function contentOf(words: string[]): Promise<Buffer> {
  await using device = await openImage({ kind: "command", words });
  return await imageOf(device);
}

async function failure(words: string[], options: Parameters<typeof openImage>[1] = {}): Promise<CloneError> {
  const error = await openImage({ kind: "command", words }, options).then(
    async (device) => {
      await device[Symbol.asyncDispose]();
      return expect.fail("it was opened");
    },
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(CloneError);
  return error as CloneError;
}

describe("openImage() of a command", () => {
  testWith({ programs: ["nbdkit"] }, "reads what nbdkit serves, whichever plugin and filters", async () => {
    await using disk = await withDisk();
    expect(Buffer.compare(await contentOf(["nbdkit", "file", disk.raw]), disk.content)).toBe(0);
    expect(Buffer.compare(await contentOf(["nbdkit", "--no-sr", "file", disk.raw]), disk.content)).toBe(0);
    const pattern = await contentOf(["nbdkit", "pattern", "1M"]);
    expect(pattern.readBigUInt64BE(4096)).toBe(4096n);
    expect(await contentOf(["nbdkit", "eval", "get_size=echo 1024", "pread=head -c $3 /dev/zero"])).toHaveLength(1024);
    const sliced = await contentOf(["nbdkit", "--filter=offset", "file", disk.raw, "offset=1M", "range=1M"]);
    expect(Buffer.compare(sliced, disk.content.subarray(MIB, 2 * MIB))).toBe(0);
  });

  testWith(
    { programs: ["qemu-img", "qemu-nbd"] },
    "reads what qemu-nbd serves, which accepts one client only",
    async () => {
      await using disk = await withDisk();
      await run("qemu-img", "convert", "-O", "qcow2", disk.raw, disk.path("image.qcow2"));
      expect(Buffer.compare(await contentOf(["qemu-nbd", "-r", disk.path("image.qcow2")]), disk.content)).toBe(0);
    },
  );

  testWith({ programs: ["nbdkit"] }, "goes on with another one where it ends, or was told to", async () => {
    await using disk = await withDisk();
    const notes: string[] = [];
    await using device = await openImage(
      { kind: "command", words: ["nbdkit", "file", disk.raw] },
      { onNote: (line) => notes.push(line) },
    );
    const found = Buffer.alloc(device.size);
    for (let offset = 0; offset < device.size; offset += MIB) {
      const [pid] = await childrenNamed("nbdkit");
      if (offset === MIB || offset === 5 * MIB) process.kill(pid as number, "SIGKILL");
      if (offset === 3 * MIB) process.kill(pid as number, "SIGTERM");
      await device.read(offset, found.subarray(offset, offset + MIB));
    }
    expect(Buffer.compare(found, disk.content)).toBe(0);
    expect(notes.filter((line) => line.includes("was started again"))).toHaveLength(3);
  });

  testWith({ programs: ["nbdkit"] }, "what it says is told, and is the error where it ends", async () => {
    const notes: string[] = [];
    const error = await failure(["nbdkit", "file", "/no/such/file"], { onDetail: (line) => notes.push(line) });
    expect(error).toBeInstanceOf(DeviceError);
    expect(error.message).toMatch(/^Cannot open "\[ nbdkit … \]": nbdkit ended with status 1: nbdkit: .*No such file/);
    expect(notes.join()).toContain("/no/such/file");
    const noPlugin = await failure(["nbdkit", "no-such-plugin"]);
    expect(noPlugin.message).toMatch(/no-such-plugin/);
  });

  testWith({ programs: ["nbdkit"] }, "a disk that changes its size while it is restarted is another one", async () => {
    await using directory = await scratchDirectory();
    const size = join(directory.path, "size");
    await run("sh", "-c", `echo 1048576 > ${size}`);
    const words = ["nbdkit", "eval", `get_size=cat ${size}`, "pread=head -c $3 /dev/zero"];
    await using device = await openImage({ kind: "command", words });
    await run("sh", "-c", `echo 2097152 > ${size}`);
    process.kill((await childrenNamed("nbdkit"))[0] as number, "SIGKILL");
    await expect(device.read(0, new Uint8Array(512))).rejects.toThrow("size");
    expect(device.changed).toContain("size");
  });

  test("a command that prints rubbish and ends, and one that says nothing, are errors of one line", async () => {
    const rubbish = nodeProgram(
      'for (let i = 0; i < 1000; i++) console.log("\\u001b[2Jrubbish\\u0007"); process.exitCode = 1;',
    );
    expect((await failure(rubbish)).message).toMatch(/^Cannot open "\[ .* … \]": node ended with status 1: rubbish$/);
    const other = nodeProgram(
      'require("node:net").createServer((c) => c.end("HTTP/1.1 400 Bad Request\\r\\n\\r\\n".repeat(9))).listen({ fd: socket });',
    );
    expect((await failure(other)).message).toMatch(/^Cannot open "\[ .* … \]": .*NBD/);
    expect((await failure(["no-such-command-here"])).message).toBe(
      'Cannot open "[ no-such-command-here ]": no-such-command-here is not installed',
    );
  });

  test("a command that hangs is ended where the user does not want to wait", async () => {
    const words = nodeProgram("setInterval(() => {}, 1e6)");
    const abort = new AbortController();
    const opening = failure(words, { signal: abort.signal });
    await eventually("it runs", async () => (await childrenNamed("node")).length > 0);
    abort.abort(new CloneError("failed", "Cannot wait: interrupted"));
    expect((await opening).message).toContain("interrupted");
    expect(await childrenNamed("node")).toEqual([]);
  });
});

describe("clone with a source behind a program", () => {
  testWith(
    { programs: ["nbdkit"] },
    "a command is a source; its words are kept nowhere, and have to be said again",
    async () => {
      await using disk = await withDisk();
      const words = ["[", "nbdkit", "file", disk.raw, "--exit-with-parent", "]"];
      await cloneOk(["create", ...words, "out"], { cwd: disk.cwd });
      const metadata = await readFile(disk.path("out.clone"), "latin1");
      expect(metadata).toContain("command:nbdkit");
      expect(metadata).not.toContain("disk.raw");
      const status = oneJson<{ source: { uri: string } }>(
        await cloneOk(["status", "out", "--json"], { cwd: disk.cwd }),
      );
      expect(status.source.uri).toBe("command:nbdkit");
      expectFailure(await clone(["hydrate", "out"], { cwd: disk.cwd }), 2, /"nbdkit"/, /--source \[ COMMAND … \]/);
      await cloneOk(["hydrate", "out", "--source", ...words], { cwd: disk.cwd });
      expect(await holds(disk.path("out"), disk.content)).toBe(true);
    },
  );

  testWith(
    { programs: ["qemu-img", "qemu-nbd"] },
    "an image is recognised and cloned as the disk inside, or byte for byte on purpose",
    async () => {
      await using disk = await withDisk();
      await run("qemu-img", "convert", "-O", "qcow2", disk.raw, disk.path("image"));
      await cloneOk(["copy", "image", "out"], { cwd: disk.cwd });
      expect(await holds(disk.path("out"), disk.content)).toBe(true);
      await cloneOk(["copy", "image", "bytes", "--source-format", "raw"], { cwd: disk.cwd });
      expect(await holds(disk.path("bytes"), await readFile(disk.path("image")))).toBe(true);
    },
  );

  testWith(
    { programs: ["qemu-img", "qemu-nbd"] },
    "an overlay is cloned with all beneath it where its format is named",
    async () => {
      await using disk = await withDisk();
      await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk.raw, "-F", "raw", disk.path("top.qcow2"));
      expectFailure(
        await clone(["copy", "top.qcow2", "out"], { cwd: disk.cwd }),
        1,
        /backing file/,
        /--source-format qcow2/,
      );
      expect(readdirSync(disk.cwd)).not.toContain("out");
      await cloneOk(["copy", "top.qcow2", "out", "--source-format", "qcow2"], { cwd: disk.cwd });
      expect(await holds(disk.path("out"), disk.content)).toBe(true);
    },
  );

  testWith(
    { programs: ["qemu-img", "qemu-nbd", "nbdkit"] },
    "an image behind an NBD server is read through us",
    async () => {
      await using disk = await withDisk();
      await run("qemu-img", "convert", "-O", "qcow2", disk.raw, disk.path("image"));
      await using server = await nbdkit("file", disk.path("image"));
      await cloneOk(["copy", server.uri, "out"], { cwd: disk.cwd });
      expect(await holds(disk.path("out"), disk.content)).toBe(true);
    },
  );

  testWith(
    { programs: ["qemu-img", "qemu-nbd"] },
    "qemu-nbd killed in the middle costs nothing but a moment",
    async () => {
      await using disk = await withDisk(48 * MIB);
      await run("qemu-img", "convert", "-O", "qcow2", disk.raw, disk.path("image"));
      await cloneOk(["create", "image", "out"], { cwd: disk.cwd });
      const running = startClone(["hydrate", "out", "--rate", "12M", "-v"], { cwd: disk.cwd });
      let pids: number[] = [];
      await eventually("qemu-nbd runs, and some is copied", async () => {
        pids = await childrenNamed("qemu-nbd", running.pid);
        const status = oneJson<{ hydratedRegions: number }>(
          await cloneOk(["status", "out", "--json"], { cwd: disk.cwd }),
        );
        return pids.length > 0 && status.hydratedRegions > 0;
      });
      process.kill(pids[0] as number, "SIGKILL");
      const { code, stderr } = await running.done;
      expect(code, stderr).toBe(0);
      expect(await holds(disk.path("out"), disk.content)).toBe(true);
    },
  );

  testWith({ programs: ["nbdkit"] }, "Ctrl-C stops clone as ever: the program is not ended before it", async () => {
    await using disk = await withDisk();
    const words = ["[", "nbdkit", "file", disk.raw, "]"];
    await cloneOk(["create", ...words, "out"], { cwd: disk.cwd });
    // A process group of its own, which gets the signal as a whole, as from a terminal.
    const args = [CLONE, "hydrate", "out", "--source", ...words, "--rate", "2M", "--progress", "none"];
    const child = spawn(process.execPath, args, { cwd: disk.cwd, detached: true, stdio: ["ignore", "ignore", "pipe"] });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    let pids: number[] = [];
    await eventually("nbdkit runs, and some is copied", async () => {
      pids = await childrenNamed("nbdkit", child.pid);
      const status = oneJson<{ hydratedRegions: number }>(
        await cloneOk(["status", "out", "--json"], { cwd: disk.cwd }),
      );
      return pids.length > 0 && status.hydratedRegions > 0;
    });
    process.kill(-(child.pid as number), "SIGINT");
    const [code] = await once(child, "close");
    expect(code, said).toBe(130);
    expect(said).not.toMatch(/nbdkit (ended|was ended)/);
    await eventually("nbdkit has ended", async () => !(await isAlive(pids[0] as number)));
    await cloneOk(["hydrate", "out", "--source", ...words], { cwd: disk.cwd });
    expect(await holds(disk.path("out"), disk.content)).toBe(true);
  });

  testWith({ programs: ["qemu-img", "qemu-nbd"] }, "kill -9 of clone leaves no process and no directory", async () => {
    await using disk = await withDisk();
    await using places = await scratchDirectory();
    await run("qemu-img", "convert", "-O", "qcow2", disk.raw, disk.path("image"));
    await cloneOk(["create", "image", "out"], { cwd: disk.cwd });
    const env = { TMPDIR: places.path, XDG_RUNTIME_DIR: undefined };
    const running = startClone(["hydrate", "out", "--rate", "1M"], { cwd: disk.cwd, env });
    let pids: number[] = [];
    await eventually("qemu-nbd runs, and some is copied", async () => {
      pids = await childrenNamed("qemu-nbd", running.pid);
      const status = oneJson<{ hydratedRegions: number }>(
        await cloneOk(["status", "out", "--json"], { cwd: disk.cwd }),
      );
      return pids.length > 0 && status.hydratedRegions > 0;
    });
    running.child.kill("SIGKILL");
    await running.done;
    await eventually("qemu-nbd has ended", async () => !(await isAlive(pids[0] as number)));
    expect(readdirSync(places.path)).toEqual([]);
    await cloneOk(["hydrate", "out"], { cwd: disk.cwd });
    expect(await holds(disk.path("out"), disk.content)).toBe(true);
    expect(tmpdir()).not.toBe(places.path);
  });
});

async function isAlive(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return stat !== undefined && !/^\d+ \([\s\S]*\) Z/.test(stat);
}

/** An nbdkit of its own, on a socket of its own. */
async function nbdkit(...words: string[]) {
  const directory = await scratchDirectory();
  const socket = join(directory.path, "s");
  const child = spawn("nbdkit", ["-f", "-U", socket, ...words], { stdio: "ignore" });
  await eventually("nbdkit listens", () => readdirSync(directory.path).includes("s"));
  return {
    uri: `nbd+unix:///?socket=${socket}`,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await directory[Symbol.asyncDispose]();
    },
  };
}

describe("ChildDevice", () => {
  /** A device behind nbdkit that fails as long as the nbdkit runs that was started while `mode` said so. */
  async function start(directory: string, renews: boolean) {
    const script = `after_fork=cp ${directory}/mode $tmpdir/mode`;
    const pread = 'pread=if [ "$(cat $tmpdir/mode)" = bad ]; then echo EIO lost >&2; exit 1; fi; head -c $3 /dev/zero';
    const words = ["nbdkit", "eval", script, "get_size=echo 1048576", pread];
    const { server, opened } = await ChildServer.start({ words, name: "disk" }, (path, signal) =>
      NbdDevice.open({ place: { path }, exportName: "" }, { access: "read-only", name: "disk", signal }),
    );
    return await ChildDevice.open({ client: opened, server, renews });
  }

  testWith(
    { programs: ["nbdkit"] },
    "has another program started where the one that runs has lost its connection",
    async () => {
      await using directory = await scratchDirectory();
      await writeFile(join(directory.path, "mode"), "bad");
      await using device = await start(directory.path, true);
      await using other = await start(directory.path, false);
      await writeFile(join(directory.path, "mode"), "good");
      await expect(other.read(0, new Uint8Array(512))).rejects.toMatchObject({ errno: "EIO", away: false });
      await Promise.all([0, 1, 2, 3].map((i) => device.read(i * 4096, new Uint8Array(4096))));
    },
  );

  testWith(
    { programs: ["nbdkit"] },
    "tells an error that another program has too, and starts no third one for it",
    async () => {
      await using directory = await scratchDirectory();
      await writeFile(join(directory.path, "mode"), "bad");
      await using device = await start(directory.path, true);
      const [first] = await childrenNamed("nbdkit");
      await expect(device.read(0, new Uint8Array(512))).rejects.toMatchObject({ errno: "EIO" });
      const [second] = await childrenNamed("nbdkit");
      expect(second).not.toBe(first);
      await expect(device.read(0, new Uint8Array(512))).rejects.toMatchObject({ errno: "EIO" });
      expect(await childrenNamed("nbdkit")).toEqual([second]);
    },
  );
});

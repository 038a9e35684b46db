// The life of a served clone from outside: how it starts, what it leaves behind, and the ways in which it ends.
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { holds, randomFile } from "../support/files.ts";
import { NbdSession } from "../support/nbd-session.ts";
import { testWith } from "../support/needs.ts";
import { clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { run, type Scratch, scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const REGION = 65536;
const SIZE = 64 * REGION;

interface Made extends Scratch {
  image: Buffer;
  cwd: string;
}

/** A fresh clone `disk.img` of `base.img`. */
async function freshClone({ size = SIZE } = {}): Promise<Made> {
  const directory = await scratchDirectory();
  const image = await randomFile(join(directory.path, "base.img"), size);
  await cloneOk(["create", "base.img", "disk.img", "-q"], { cwd: directory.path });
  return Object.assign(directory, { image, cwd: directory.path });
}

describe("clone serve shows the whole clone at once", () => {
  test("also one whose size is no whole number of sectors, to the byte", async () => {
    await using made = await freshClone({ size: SIZE + 4321 });
    const { cwd, image } = made;
    await using server = await startServe({ clone: "disk.img", cwd, args: ["--no-hydrate"] });
    await using client = await NbdSession.connect(server);
    expect(client.size).toBe(SIZE + 4321);
    const tail = await client.read(SIZE, 4321);
    expect(tail.equals(image.subarray(SIZE))).toBe(true);
    const change = Buffer.alloc(4321, 7);
    await client.write(SIZE, change, { fua: true });
    change.copy(image, SIZE);
    await server.tune("--resume");
    await server.hydrated();
    await client.close();
    await stopServe(server);
    expect(await holds(join(cwd, "disk.img"), image)).toBe(true);
  });

  test("with sockets that only the user can open, which are gone afterwards", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await using server = await startServe({ clone: "disk.img", cwd, args: ["--no-hydrate"] });
    for (const socket of [server.socket, join(cwd, "disk.img.clone.sock")]) {
      expect((await stat(socket)).mode % 0o1000, socket).toBe(0o600);
    }
    await stopServe(server);
    expect((await readdir(cwd)).sort()).toEqual(["base.img", "disk.img", "disk.img.clone"]);
  });

  test("read-only where that is asked for, and hydrates all the same", async () => {
    await using made = await freshClone();
    const { cwd, image } = made;
    await using server = await startServe({ clone: "disk.img", cwd, args: ["--read-only"] });
    await using client = await NbdSession.connect(server);
    await expect(client.write(0, Buffer.alloc(512))).rejects.toMatchObject({ errno: 1 });
    await server.hydrated();
    await stopServe(server);
    expect(await holds(join(cwd, "disk.img"), image)).toBe(true);
    // Nobody can have written to it: what verify finds would be damage.
    expect(await cloneOk(["verify", "disk.img"], { cwd })).not.toContain("served");
  });

  test("also without its source, once all is hydrated", async () => {
    await using made = await freshClone();
    const { cwd, image } = made;
    await cloneOk(["hydrate", "disk.img", "-q"], { cwd });
    await rm(join(cwd, "base.img"));
    await using server = await startServe({ clone: "disk.img", cwd });
    await using client = await NbdSession.connect(server);
    expect((await client.read(0, SIZE)).equals(image)).toBe(true);
    await client.write(REGION + 1, Buffer.from("written"));
    await client.close();
    await stopServe(server);
  });

  test("but not without its source before", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await rm(join(cwd, "base.img"));
    expectFailure(await clone(["serve", "disk.img", "--socket", "s"], { cwd }), 1, /base\.img/);
    expect(existsSync(join(cwd, "s"))).toBe(false);
  });
});

describe("A finalize while clients are served", () => {
  test("leaves the destination alone, which they go on using", async () => {
    await using made = await freshClone();
    const { cwd, image } = made;
    await using server = await startServe({ clone: "disk.img", cwd });
    await server.hydrated();
    await using client = await NbdSession.connect(server);
    await client.write(3 * REGION + 5, Buffer.from("before"));
    image.write("before", 3 * REGION + 5);
    await cloneOk(["finalize", "disk.img"], { cwd });
    expect(existsSync(join(cwd, "disk.img.clone"))).toBe(false);

    await client.write(4 * REGION + 5, Buffer.from("after"), { fua: true });
    image.write("after", 4 * REGION + 5);
    await client.trim(5 * REGION, REGION);
    await client.zero(6 * REGION, 100);
    image.fill(0, 6 * REGION, 6 * REGION + 100);
    await client.flush();
    expect((await client.read(0, 5 * REGION)).equals(image.subarray(0, 5 * REGION))).toBe(true);
    await client.close();
    const run = await server.process.done; // by itself, when the last client has left
    expect(run).toMatchObject({ code: 0 });
    const disk = await readFile(join(cwd, "disk.img"));
    disk.copy(image, 5 * REGION, 5 * REGION, 6 * REGION); // undefined after a trim
    expect(disk.equals(image)).toBe(true);
  });

  test("does not call a clone finalized whose source has changed since it last committed", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await using server = await startServe({ clone: "disk.img", cwd, args: ["--no-hydrate"] });
    await using client = await NbdSession.connect(server);
    await client.write(0, Buffer.alloc(SIZE - REGION, 1), { fua: true });
    await writeFile(join(cwd, "base.img"), Buffer.alloc(SIZE, 5));
    await client.write(SIZE - REGION, Buffer.alloc(REGION, 2));
    expectFailure(await clone(["finalize", "disk.img"], { cwd }), 1, /it has changed since/);
    await server.process.child.kill("SIGKILL");
    await server.process.done;
    expect(oneJson(await cloneOk(["status", "disk.img", "--json"], { cwd })).state).not.toBe("finalized");
  });

  test("is refused as long as regions are missing, and changes nothing then", async () => {
    await using made = await freshClone();
    const { cwd, image } = made;
    await using server = await startServe({ clone: "disk.img", cwd, args: ["--no-hydrate"] });
    expectFailure(await clone(["finalize", "disk.img"], { cwd }), 1, /64 of 64 regions .* are missing/);
    await using client = await NbdSession.connect(server);
    expect((await client.read(0, SIZE)).equals(image)).toBe(true);
    await server.tune("--resume");
    await server.hydrated();
    await cloneOk(["finalize", "disk.img", "--keep-metadata"], { cwd });
    await client.close();
    await server.process.done;
    expect(oneJson(await cloneOk(["status", "disk.img", "--json"], { cwd })).state).toBe("finalized");
  });
});

describe("clone serve ends", () => {
  test("with --finalize-when-hydrated by itself, the destination alone", async () => {
    await using made = await freshClone();
    const { cwd, image } = made;
    const run = await clone(["serve", "disk.img", "--socket", "s", "--finalize-when-hydrated"], { cwd });
    expect(run).toMatchObject({ code: 0, stderr: expect.stringContaining("it stands alone now") });
    expect((await readdir(cwd)).sort()).toEqual(["base.img", "disk.img"]);
    expect(await holds(join(cwd, "disk.img"), image)).toBe(true);
  });

  test("with --exit-when-hydrated when all is hydrated and the last client has left", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    const args = ["--no-hydrate", "--exit-when-hydrated"];
    await using server = await startServe({ clone: "disk.img", cwd, args });
    const client = await NbdSession.connect(server);
    await server.tune("--resume");
    await server.hydrated();
    await client.read(0, 512); // it is still there
    await client.close();
    expect(await server.process.done).toMatchObject({ code: 0 });
    expect(oneJson(await cloneOk(["status", "disk.img", "--json"], { cwd })).state).toBe("hydrated");
  });

  test("with the command that --run names, and its status", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    const command = 'test -S "$unixsocket" && test "$uri" = "$nbd" && echo "$exportname:$port"; exit 7';
    const run = await clone(["serve", "disk.img", "--export", "a b", "--run", command], { cwd });
    expect(run).toMatchObject({ code: 7, stdout: "a b:\n" });
    expect((await readdir(cwd)).sort()).toEqual(["base.img", "disk.img", "disk.img.clone"]);
  });

  test("with --run only with its command, though everything is hydrated and finalized before that connects", async () => {
    await using made = await freshClone();
    const { cwd, image } = made;
    const command = 'until test ! -e disk.img.clone; do sleep 0.1; done; test -S "$unixsocket"';
    const run = await clone(["serve", "disk.img", "--finalize-when-hydrated", "--run", command], { cwd });
    expect(run).toMatchObject({ code: 0 });
    expect((await readdir(cwd)).sort()).toEqual(["base.img", "disk.img"]);
    expect(await holds(join(cwd, "disk.img"), image)).toBe(true);
  });

  test("with --run, when it is told to: the command is told too", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    const run = startClone(
      ["serve", "disk.img", "--run", "trap 'echo told; exit 0' TERM; touch ready; while :; do sleep 0.1; done"],
      {
        cwd,
      },
    );
    await eventually("the command runs", () => existsSync(join(cwd, "ready")));
    run.child.kill("SIGTERM");
    expect(await run.done).toMatchObject({ stdout: "told\n", code: 0 });
  });

  test.for(["SIGTERM", "SIGINT", "SIGHUP"] as const)("by %s with all that was written committed", async (signal) => {
    await using made = await freshClone();
    const { cwd, image } = made;
    await using server = await startServe({ clone: "disk.img", cwd, args: ["--no-hydrate"] });
    const client = await NbdSession.connect(server);
    const block = Buffer.alloc(REGION, 9);
    await client.write(8 * REGION, block);
    await client.write(10 * REGION + 100, block.subarray(0, 1000));
    server.process.child.kill(signal);
    expect(await server.process.done).toMatchObject({ code: 0 });
    await client.close();
    const { regions, hydratedRegions } = oneJson<Record<string, number>>(
      await cloneOk(["status", "disk.img", "--json"], { cwd }),
    );
    expect([regions, hydratedRegions]).toEqual([64, 2]);
    await cloneOk(["hydrate", "disk.img", "-q"], { cwd });
    block.copy(image, 8 * REGION);
    block.copy(image, 10 * REGION + 100, 0, 1000);
    expect(await holds(join(cwd, "disk.img"), image)).toBe(true);
  });

  testWith({ programs: ["curl"] }, "on request at its control socket", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await using server = await startServe({ clone: "disk.img", cwd });
    expect(
      await run("curl", "-s", "--unix-socket", `${cwd}/disk.img.clone.sock`, "-X", "POST", "http://clone/stop"),
    ).toBe(`{"stopping":true}\n`);
    expect(await server.process.done).toMatchObject({ code: 0 });
  });
});

describe("clone serve refuses", () => {
  test.for([
    [[], 2, /^clone: Cannot serve: nothing says where to listen$/m],
    [["--socket", "s", "--listen", "localhost:0"], 2, /--socket/],
    [["--listen", "0.0.0.0:0"], 2, /others than this machine can reach it/],
    [["--listen", "10809"], 2, /^clone: Cannot use --listen: "10809"/m],
    [["--listen", "no.such.host.invalid:1"], 1, /its address is not known/],
    [["--socket", "base.img"], 1, /something else stands there/],
    [["--socket", "x".repeat(200)], 2, /at most 107 bytes/],
    [["--socket", "nowhere/s"], 1, /nowhere\/s/],
    [["--socket", "s", "--tls", "require"], 2, /^clone: Cannot use --tls require: it needs/m],
    [["--socket", "s", "--tls", "off", "--tls-psk", "base.img"], 2, /^clone: Cannot use --tls off with/m],
    [["--socket", ""], 2, /^clone: Cannot use --socket/m],
    [
      ["--socket", "s", "--export", "x".repeat(5000)],
      2,
      /^clone: Cannot use --export: a name has at most 4096 bytes$/m,
    ],
    [["--socket", "s", "--tls-verify-peer"], 2, /^clone: Cannot use --tls-verify-peer/m],
    [["--socket", "s", "--tls-certificates", "certs"], 1, /server-(cert|key)\.pem": no such file/],
    [["--socket", "s", "--tls-psk", "base.img"], 2, /^clone: Cannot use the keys in "base\.img": line 1/m],
    [["--socket", "s", "--pidfile", "nowhere/pid"], 1, /^clone: Cannot write the pid file "nowhere\/pid": ENOENT$/m],
    [["--socket", "s", "--hydrate-on-read", "maybe"], 2, /hydrate-on-read/],
    [["--socket", "s", "--max-connections", "0"], 2, /max-connections/],
  ] as const)("%j with exit %i", async ([args, code, message]) => {
    await using made = await freshClone({ size: REGION });
    const { cwd } = made;
    await mkdir(join(cwd, "certs"));
    expectFailure(await clone(["serve", "disk.img", ...args], { cwd }), code, message);
    expect((await readdir(cwd)).sort()).toEqual(["base.img", "certs", "disk.img", "disk.img.clone"]);
  });

  test("a clone that is finalized, and one that is served already", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await using server = await startServe({ clone: "disk.img", cwd });
    expectFailure(await clone(["serve", "disk.img", "--socket", "other"], { cwd }), 4, /in use by process \d+/);
    await server.hydrated();
    await stopServe(server);
    await cloneOk(["finalize", "disk.img", "--keep-metadata"], { cwd });
    expectFailure(await clone(["serve", "disk.img", "--socket", "other"], { cwd }), 1, /it is finalized/);
  });

  test.for([
    ["removed", "removed or replaced", (path: string) => rm(path)],
    ["replaced by another file", "removed or replaced", (path: string) => rename(`${path}.clone.copy`, path)],
    ["shortened", "shortened", (path: string) => truncate(path, REGION)],
  ] as const)("to go on with a destination that is %s", async ([, word, harm]) => {
    await using made = await freshClone();
    const { cwd } = made;
    await using server = await startServe({ clone: "disk.img", cwd, args: ["--no-hydrate"] });
    await using client = await NbdSession.connect(server);
    await client.write(0, Buffer.alloc(REGION, 1), { fua: true });
    await writeFile(join(cwd, "disk.img.clone.copy"), "another");
    await harm(join(cwd, "disk.img"));
    await client.write(REGION, Buffer.alloc(REGION, 2));
    await expect(client.flush()).rejects.toMatchObject({ errno: 5 });
    expect(await server.stop()).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(`somebody else has ${word} it`),
    });
  });

  test("to flush to a destination that was removed when all was hydrated", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await using server = await startServe({ clone: "disk.img", cwd });
    await using client = await NbdSession.connect(server);
    await server.hydrated();
    await client.write(0, Buffer.alloc(512, 1), { fua: true });
    await rm(join(cwd, "disk.img"));
    await client.write(0, Buffer.alloc(512, 2));
    await expect(client.flush()).rejects.toMatchObject({ errno: 5 });
    expect((await server.stop()).code).toBe(1);
  });

  test("a source that changes while it is served: nothing of it is vouched for any more", async () => {
    await using made = await freshClone();
    const { cwd } = made;
    await using server = await startServe({ clone: "disk.img", cwd, args: ["--no-hydrate"] });
    await using client = await NbdSession.connect(server);
    await client.write(0, Buffer.alloc(REGION, 1), { fua: true });
    await writeFile(join(cwd, "base.img"), Buffer.alloc(SIZE, 5));
    await client.write(REGION, Buffer.alloc(REGION, 2));
    await expect(client.flush()).rejects.toMatchObject({ errno: 5 });
    await expect(client.write(0, Buffer.alloc(512, 3))).rejects.toMatchObject({ errno: 5 });
    expect((await client.read(REGION, 512)).equals(Buffer.alloc(512, 2))).toBe(true);
    expect((await server.status()).state).toBe("failed");
    const run = await server.stop();
    expect(run).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^clone: Cannot use .* it has changed since/m),
    });
  });
});

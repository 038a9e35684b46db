// Connections that break, and servers that die and come back, under a clone at work. Whatever happens the clone goes on
// by itself, or says that it cannot and goes on when it is called again, and in the end every byte is right.
import { readFile, rm, truncate, writeFile } from "node:fs/promises";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { certificates } from "../support/certificates.ts";
import { holds, randomFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { startNginx } from "../support/nginx.ts";
import { qemuIo } from "../support/qemu-io.ts";
import {
  clone,
  cloneOk,
  eventually,
  expectFailure,
  oneJson,
  type StartedClone,
  startClone,
} from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startServe } from "../support/serve.ts";
import { type Running, startNbdkit, startNbdkitAtPort } from "../support/source-servers.ts";

const MIB = 1024 * 1024;
const SIZE = 32 * MIB;

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

interface Status {
  state: string;
  hydratedBytes: number;
  failure: string | null;
}

async function statusOf(cwd: string, name = "copy.img.clone"): Promise<Status> {
  return oneJson<Status>(await cloneOk(["status", name, "--json"], { cwd }));
}

/** A source image, and an nbdkit that serves it whenever it is started. */
async function servedSource() {
  const directory = await scratchDirectory();
  const cwd = directory.path;
  const image = join(cwd, "source.img");
  const bytes = await randomFile(image, SIZE);
  const socket = join(cwd, "source.sock");
  return {
    ...{ cwd, image, bytes, socket, uri: `nbd+unix:///?socket=${socket}` },
    start: () => startNbdkit(cwd, socket, "file", image),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

/** `clone hydrate`, from when it has copied something. */
async function startHydrating(cwd: string, name: string, rate: string): Promise<StartedClone> {
  const hydrating = startClone(["hydrate", name, "--rate", rate, "--progress", "none"], { cwd });
  const before = (await statusOf(cwd)).hydratedBytes;
  await eventually("it copies", async () => (await statusOf(cwd)).hydratedBytes > before + MIB);
  return hydrating;
}

/** A server that dies again and again, and comes back each time after a moment. */
async function killedAgainAndAgain(server: Running, times: number, start: () => Promise<Running>): Promise<Running> {
  let running = server;
  for (let time = 0; time < times; time++) {
    await sleep(50 + ((time * 37) % 100));
    await running.kill();
    await sleep((time * 53) % 150);
    running = await start();
  }
  return running;
}

describe("A source that is killed and restarted 20 times", () => {
  testWith(
    { programs: ["nbdkit"] },
    "is hydrated from to the last byte",
    async () => {
      await using place = await servedSource();
      const { cwd, bytes, uri, start } = place;
      let server = await start();
      await cloneOk(["create", uri, "copy.img"], { cwd });
      const hydrating = await startHydrating(cwd, "copy.img", "8M");
      server = await killedAgainAndAgain(server, 20, start);
      const { code, stderr } = await hydrating.done;
      expect(code, stderr).toBe(0);
      await cloneOk(["finalize", "copy.img", "--verify"], { cwd });
      await server.kill();
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
    120_000,
  );

  testWith(
    { programs: ["nbdkit", "qemu-img"] },
    "is served from, and no client sees an error",
    async () => {
      await using place = await servedSource();
      const { cwd, image, bytes, uri, start } = place;
      let source = await start();
      await cloneOk(["create", uri, "copy.img"], { cwd });
      await using server = await startServe({ clone: "copy.img", cwd, args: ["--rate", "4M"] });
      const reading = run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.uri);
      reading.catch(() => {}); // awaited below
      source = await killedAgainAndAgain(source, 20, start);
      await reading;
      await server.tune("--rate", "max");
      await server.hydrated();
      await server.stop();
      await source.kill();
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
    120_000,
  );
});

/** A way to a port of this machine that can be cut again and again: every connection on it at once. */
async function cutLink(port: number): Promise<AsyncDisposable & { port: number; cut: () => void }> {
  const sockets = new Set<Socket>();
  const link = createServer((client) => {
    const server = connect(port, "127.0.0.1");
    client.pipe(server).pipe(client);
    for (const [one, other] of [
      [client, server],
      [server, client],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy()).on("close", () => other.destroy() && sockets.delete(one));
    }
  });
  await new Promise<void>((resolve) => link.listen(0, "127.0.0.1", resolve));
  return {
    port: (link.address() as AddressInfo).port,
    cut() {
      for (const socket of sockets) socket.resetAndDestroy();
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => link.close(resolve));
    },
  };
}

async function nbdkitAtPort(cwd: string): Promise<AsyncDisposable & { port: number }> {
  const { port, kill } = await startNbdkitAtPort(cwd, "file", join(cwd, "source.img"));
  return { port, [Symbol.asyncDispose]: () => kill() };
}

async function nginxAtPort(cwd: string): Promise<AsyncDisposable & { port: number }> {
  await using keys = await certificates(); // it reads them when it starts
  return await startNginx(cwd, { root: cwd, certificates: keys.path });
}

describe("A link that is cut again and again", () => {
  for (const kind of ["nbd", "http"] as const) {
    testWith(
      { programs: kind === "nbd" ? ["nbdkit"] : ["nginx", "openssl"] },
      `to a source over ${kind} is made anew`,
      async () => {
        await using directory = await scratchDirectory();
        const cwd = directory.path;
        const bytes = await randomFile(join(cwd, "source.img"), SIZE);
        await using server = await (kind === "nbd" ? nbdkitAtPort(cwd) : nginxAtPort(cwd));
        await using link = await cutLink(server.port);
        const source = kind === "nbd" ? `nbd://127.0.0.1:${link.port}/` : `http://127.0.0.1:${link.port}/source.img`;
        await cloneOk(["create", source, "copy.img"], { cwd });
        const hydrating = await startHydrating(cwd, "copy.img", "8M");
        for (let cuts = 0; cuts < 5; cuts++) {
          link.cut();
          await sleep(400);
        }
        const { code, stderr } = await hydrating.done;
        expect(code, stderr).toBe(0);
        await cloneOk(["finalize", "copy.img", "--verify"], { cwd });
        expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
      },
      120_000,
    );
  }

  testWith(
    { programs: ["nbdkit"] },
    "by a server that leaves when it is told to (nbdkit's exitwhen)",
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      const bytes = await randomFile(join(cwd, "source.img"), SIZE);
      const socket = join(cwd, "source.sock");
      const [words, flag] = [["--filter=exitwhen", "file", join(cwd, "source.img")], join(cwd, "leave")];
      const start = () => startNbdkit(cwd, socket, ...words, `exit-when-file-created=${flag}`, "exit-when-poll=1");
      let source = await start();
      await cloneOk(["create", `nbd+unix:///?socket=${socket}`, "copy.img"], { cwd });
      await cloneOk(["hydrate", "copy.img", "--limit", "8M"], { cwd });
      const hydrating = await startHydrating(cwd, "copy.img", "4M");
      await eventually("it goes on", async () => (await statusOf(cwd)).hydratedBytes > 12 * MIB);
      await writeFile(flag, "");
      await sleep(1500); // now it lets nobody in any more, and goes when its clients have gone
      await source.kill();
      await rm(flag);
      source = await start();
      const { code, stderr } = await hydrating.done;
      expect(code, stderr).toBe(0);
      await cloneOk(["finalize", "copy.img", "--verify"], { cwd });
      await source.kill();
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
    120_000,
  );
});

describe("A source that goes away", () => {
  testWith(
    { programs: ["nbdkit"] },
    "for good ends a hydration, which goes on when called again",
    async () => {
      await using place = await servedSource();
      const { cwd, bytes, uri, start } = place;
      let source = await start();
      await cloneOk(["create", uri, "copy.img"], { cwd });
      await cloneOk(["hydrate", "copy.img", "--limit", "4M"], { cwd });
      await source.kill();
      expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /source\.sock.*(ENOENT|ECONNREFUSED)/);
      source = await start();
      await cloneOk(["hydrate", "copy.img"], { cwd });
      await source.kill();
      await cloneOk(["finalize", "copy.img"], { cwd });
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
    120_000,
  );

  testWith(
    { programs: ["nbdkit"] },
    "and comes back with another content is not mixed with the first",
    async () => {
      await using place = await servedSource();
      const { cwd, image, uri, start } = place;
      let source = await start();
      await cloneOk(["create", uri, "copy.img"], { cwd });
      const hydrating = await startHydrating(cwd, "copy.img", "4M");
      await source.kill();
      await randomFile(image, SIZE);
      source = await start();
      expectFailure(await hydrating.done, 1, /it has changed since the clone was created, its content is another/);
      expectFailure(
        await clone(["hydrate", "copy.img"], { cwd }),
        1,
        /its content is another/,
        /--accept-changed-source/,
      );
      await source.kill();
    },
    120_000,
  );

  testWith(
    { programs: ["nbdkit"] },
    "and comes back with another size is refused",
    async () => {
      await using place = await servedSource();
      const { cwd, image, uri, start } = place;
      let source = await start();
      await cloneOk(["create", uri, "copy.img"], { cwd });
      const hydrating = await startHydrating(cwd, "copy.img", "4M");
      await source.kill();
      await truncate(image, 2 * SIZE);
      source = await start();
      expectFailure(await hydrating.done, 1, /its size was 33554432 bytes, and is 67108864/);
      await source.kill();
    },
    120_000,
  );
});

/**
 * A destination whose server keeps what is written in a cache of its own until it is told to flush, and loses it when it is
 * killed: nbdkit's cache filter.
 */
async function losingDestination(cwd: string): Promise<{ disk: string; uri: string; start: () => Promise<Running> }> {
  const disk = join(cwd, "disk.raw");
  await writeFile(disk, "");
  await truncate(disk, SIZE);
  const socket = join(cwd, "destination.sock");
  const start = () => startNbdkit(cwd, socket, "--filter=cache", "file", disk, "cache=writeback");
  return { disk, uri: `nbd+unix:///?socket=${socket}`, start };
}

describe("A destination that loses what was not flushed", () => {
  testWith(
    { programs: ["nbdkit"] },
    "is given it again, however often that happens in mid-hydration",
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      const bytes = await randomFile(join(cwd, "source.img"), SIZE);
      const { disk, uri, start } = await losingDestination(cwd);
      let server = await start();
      await cloneOk(["create", "source.img", uri, "--metadata", "copy.img.clone"], { cwd });
      const hydrating = await startHydrating(cwd, "copy.img.clone", "8M");
      server = await killedAgainAndAgain(server, 10, start);
      const { code, stderr } = await hydrating.done;
      expect(code, stderr).toBe(0);
      await cloneOk(["finalize", "copy.img.clone", "--verify"], { cwd });
      await server.kill();
      expect(await holds(disk, bytes)).toBe(true);
    },
    120_000,
  );

  testWith(
    { programs: ["nbdkit", "qemu-io"] },
    "turns a clone `failed` that clients wrote to, and they hear of it",
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await randomFile(join(cwd, "source.img"), SIZE);
      const { uri, start } = await losingDestination(cwd);
      let destination = await start();
      await cloneOk(["create", "source.img", uri, "--metadata", "copy.img.clone"], { cwd });
      await using server = await startServe({ clone: "copy.img.clone", cwd, args: ["--no-hydrate"] });
      // The region is hydrated and committed first: to commit it flushes what was written before.
      await run("qemu-io", "-f", "raw", server.uri, "-c", "write -P 6 0 64k", "-c", "flush");
      await using client = await qemuIo(server.uri, "-t", "writeback");
      client.tell("write -P 7 0 64k");
      await eventually("it has written", () => client.said().includes("wrote 65536/65536"));
      await destination.kill();
      destination = await start();
      client.tell("flush");
      client.leave();
      expect(await client.status, client.said()).toBe(1);
      await eventually("the clone has failed", async () => (await statusOf(cwd)).state === "failed");
      expect((await statusOf(cwd)).failure).toMatch(/destination\.sock/);
      const { code } = await server.stop();
      expect(code).toBe(1);
      await destination.kill();
    },
    120_000,
  );

  testWith(
    { programs: ["nbdkit", "qemu-io"] },
    "goes on when all that clients wrote was flushed before",
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      const bytes = await randomFile(join(cwd, "source.img"), SIZE);
      const { disk, uri, start } = await losingDestination(cwd);
      let destination = await start();
      await cloneOk(["create", "source.img", uri, "--metadata", "copy.img.clone"], { cwd });
      await using server = await startServe({ clone: "copy.img.clone", cwd, args: ["--rate", "8M"] });
      await run("qemu-io", "-f", "raw", server.uri, "-c", "write -P 7 0 64k", "-c", "flush");
      bytes.fill(7, 0, 65536);
      destination = await killedAgainAndAgain(destination, 5, start);
      await server.hydrated();
      await cloneOk(["finalize", "copy.img.clone"], { cwd });
      await server.stop();
      await destination.kill();
      expect(await holds(disk, bytes)).toBe(true);
    },
    120_000,
  );
});

/** How many are connected to a unix socket, those included whom its server has not let in yet. */
async function connectionsAt(socket: string): Promise<number> {
  const table = await readFile("/proc/net/unix", "utf8");
  return table.split("\n").filter((line) => line.endsWith(` ${socket}`)).length - 1; // that which listens
}

describe("A source that hangs", () => {
  for (const command of ["create", "hydrate", "verify"]) {
    testWith(
      { programs: ["nbdkit"] },
      `does not hold up \`clone ${command}\` that is told to stop`,
      async () => {
        await using place = await servedSource();
        const { cwd, socket, uri, start } = place;
        await using source = await start();
        if (command !== "create") {
          await cloneOk(["create", uri, "copy.img"], { cwd });
          await cloneOk(["hydrate", "copy.img", "--limit", "8M"], { cwd });
        }
        const args = command === "create" ? ["create", uri, "copy.img"] : [command, "copy.img", "--progress", "none"];
        await eventually("all who were connected have left", async () => (await connectionsAt(socket)) === 0);
        source.child.kill("SIGSTOP"); // it takes connections, and says nothing
        const running = startClone(args, { cwd, longestMs: 60_000 });
        await eventually("it waits for the source", async () => (await connectionsAt(socket)) > 0);
        running.child.kill("SIGINT");
        const { code, stderr } = await running.done;
        source.child.kill("SIGCONT");
        await source.kill();
        expect(code, stderr).toBe(130);
        expect(stderr).toMatch(/Stopped/);
      },
      120_000,
    );
  }
});

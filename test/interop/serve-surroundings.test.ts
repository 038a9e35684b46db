// What surrounds a server fails: its socket is taken, its source cannot be read or hangs, its destination is full, it is told
// to stop in the middle. Only the request that needs what is missing fails; nothing that was flushed is lost.

import { once } from "node:events";
import { existsSync } from "node:fs";
import { readFile, stat, unlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { failingSource, noFailingSource } from "../support/failing-source.ts";
import { holds, randomFile } from "../support/files.ts";
import { hangingSource } from "../support/hanging-source.ts";
import { noNbdLoop } from "../support/nbd-loop.ts";
import { NbdSession } from "../support/nbd-session.ts";
import { testWith } from "../support/needs.ts";
import { clone, cloneOk, eventually, expectFailure } from "../support/run-clone.ts";
import { mountedTmpfs, noLoopDevices, scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const REGION = 64 * KIB;
const SIZE = 4 * MIB;
const EIO = 5;
const ENOSPC = 28;

/** A clone copy.img of disk.img, not hydrated. */
async function fresh() {
  const place = await scratchDirectory();
  const cwd = place.path;
  const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  return { cwd, bytes, [Symbol.asyncDispose]: () => place[Symbol.asyncDispose]() };
}

describe("a socket path", () => {
  test("at which another server answers is left to it, with exit code 4", async () => {
    await using made = await fresh();
    const { cwd } = made;
    await using server = await startServe({ clone: "copy.img", cwd, socket: "s" });
    const bytes = await randomFile(join(cwd, "other.img"), REGION);
    await cloneOk(["create", "other.img", "second.img"], { cwd });
    expectFailure(await clone(["serve", "second.img", "--socket", "s"], { cwd }), 4, /s"/);
    await using client = await NbdSession.connect(server);
    expect(client.size).toBe(SIZE);
    expect(bytes.length).toBe(REGION);
    await stopServe(server);
  });

  test("at which a dead server's socket lies is taken over", async () => {
    await using made = await fresh();
    const { cwd, bytes } = made;
    const dead = await startServe({ clone: "copy.img", cwd, socket: "s" });
    await dead.kill9();
    expect((await stat(join(cwd, "s"))).isSocket()).toBe(true);
    await using server = await startServe({ clone: "copy.img", cwd, socket: "s" });
    await using client = await NbdSession.connect(server);
    expect(Buffer.compare(await client.read(0, REGION), bytes.subarray(0, REGION))).toBe(0);
    await client.close();
    await stopServe(server);
    expect(existsSync(join(cwd, "s"))).toBe(false);
  });

  test("that is a port in use is refused, and says which", async () => {
    await using made = await fresh();
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as { port: number };
    const run = await clone(["serve", "copy.img", "--listen", `127.0.0.1:${port}`], { cwd: made.cwd });
    other.close();
    expectFailure(run, 1, new RegExp(`${port}.*(in use|EADDRINUSE)`));
  });
});

describe("a source", () => {
  const programs = ["nbdkit", "nbdfuse", "fusermount3"] as const;
  const bad = { start: MIB, end: MIB + 4 * KIB };

  testWith(
    { programs, machine: noFailingSource },
    "that cannot be read in a place fails what reads there, and nothing else",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "real.img"), SIZE);
      await using source = await failingSource(join(cwd, "real.img"), bad);
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      {
        await using server = await startServe({ clone: "copy.img", cwd, args: ["--retry", "0"] });
        await using client = await NbdSession.connect(server);
        const requests = await Promise.allSettled([
          client.read(0, REGION),
          client.read(MIB, 512),
          client.read(2 * MIB, REGION),
          // A write to a part of the region needs the rest of it.
          client.write(MIB + 8 * KIB, Buffer.alloc(512, 1)),
          // This one does not.
          client.write(3 * MIB + 512, Buffer.alloc(512, 2)),
        ]);
        expect(requests.map(({ status }) => status)).toEqual([
          "fulfilled",
          "rejected",
          "fulfilled",
          "rejected",
          "fulfilled",
        ]);
        for (const request of requests)
          if (request.status === "rejected") expect(request.reason).toMatchObject({ errno: EIO });
        bytes.fill(2, 3 * MIB + 512, 3 * MIB + 1024);
        // The background copies all but that region, and goes on.
        await eventually("only one region is missing", async () => {
          const { regions, hydratedRegions } = await server.status();
          return hydratedRegions === regions - 1;
        });
        // Who overwrites it whole needs no source.
        const whole = Buffer.alloc(REGION, 3);
        await client.write(MIB, whole, { fua: true });
        whole.copy(bytes, MIB);
        expect(Buffer.compare(await client.read(MIB, REGION), whole)).toBe(0);
        await server.hydrated();
        await client.close();
        await stopServe(server);
      }
      await cloneOk(["finalize", "copy.img"], { cwd });
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
  );

  testWith(
    { programs, machine: noNbdLoop },
    "that hangs fails what needs it after a while, and the rest goes on",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "real.img"), SIZE);
      await using source = await hangingSource(join(cwd, "real.img"));
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      {
        const args = ["--source-timeout", "1", "--hydrate-on-read", "on", "--no-hydrate"];
        await using server = await startServe({ clone: "copy.img", cwd, args });
        await using client = await NbdSession.connect(server);
        await using other = await NbdSession.connect(server);
        await client.write(3 * MIB, Buffer.alloc(4 * KIB, 4), { fua: true });
        await source.hang();
        const hanging = [
          client.read(MIB, 4 * KIB),
          client.write(2 * MIB + 512, Buffer.alloc(512, 1)),
          other.read(0, MIB),
        ];
        const answers = Promise.allSettled(hanging);
        // What is hydrated, or is written whole, needs no source.
        for (const one of [client, other]) {
          await one.write(3 * MIB + 8 * KIB, Buffer.alloc(512, 5));
          await one.write(3 * MIB + REGION, Buffer.alloc(REGION, 6));
          await one.flush();
          expect((await one.read(3 * MIB, 512)).equals(Buffer.alloc(512, 4))).toBe(true);
        }
        bytes.fill(4, 3 * MIB, 3 * MIB + 4 * KIB);
        bytes.fill(5, 3 * MIB + 8 * KIB, 3 * MIB + 8 * KIB + 512);
        bytes.fill(6, 3 * MIB + REGION, 3 * MIB + 2 * REGION);
        for (const answer of await answers)
          expect(answer).toMatchObject({ status: "rejected", reason: { errno: EIO } });
        await source.heal();
        expect(Buffer.compare(await client.read(MIB, MIB), bytes.subarray(MIB, 2 * MIB))).toBe(0);
        await server.tune("--resume");
        await server.hydrated();
        await Promise.all([client.close(), other.close()]);
        await stopServe(server);
      }
      await cloneOk(["finalize", "copy.img"], { cwd });
      // The write that failed changed nothing, or what it was to change.
      const copy = await readFile(join(cwd, "copy.img"));
      const failed = Buffer.alloc(512, 1);
      if (copy.subarray(2 * MIB + 512, 2 * MIB + KIB).equals(failed)) failed.copy(bytes, 2 * MIB + 512);
      expect(Buffer.compare(copy, bytes)).toBe(0);
    },
  );

  testWith(
    { programs, machine: noNbdLoop },
    "that hangs keeps no server from ending, and what was flushed is there",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(join(cwd, "real.img"), SIZE);
      await using source = await hangingSource(join(cwd, "real.img"));
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      const block = Buffer.alloc(REGION, 5);
      for (const signals of [1, 2]) {
        await source.heal();
        await using server = await startServe({ clone: "copy.img", cwd, args: ["--no-hydrate"] });
        await using client = await NbdSession.connect(server);
        await client.write(signals * REGION, block, { fua: true });
        await source.hang();
        const lost = client.read(3 * MIB, 512).catch((error: unknown) => error);
        await client.read(signals * REGION, 512);
        for (let sent = 0; sent < signals; sent++) {
          server.process.child.kill("SIGTERM");
          // Both arrive, rather than be merged into one.
          await sleep(300);
        }
        const run = await server.process.done;
        if (signals === 1) expect(run, run.stderr).toMatchObject({ code: 0 });
        else expect(run.code === 143 || run.signal === "SIGTERM", `${run.code} ${run.signal}`).toBe(true);
        expect(await lost).toBeInstanceOf(Error);
      }
      await source.heal();
      await using server = await startServe({ clone: "copy.img", cwd, args: ["--no-hydrate"] });
      await using client = await NbdSession.connect(server);
      for (const region of [1, 2]) expect((await client.read(region * REGION, REGION)).equals(block)).toBe(true);
    },
  );
});

describe("a destination", () => {
  testWith(
    { programs: [], machine: noLoopDevices },
    "that is full fails writes with ENOSPC; what was flushed is there, and with room it goes on",
    async () => {
      await using place = await scratchDirectory();
      await using small = await mountedTmpfs(12 * MIB);
      const cwd = small.path;
      const bytes = await randomFile(join(place.path, "disk.img"), 8 * MIB);
      await cloneOk(["create", join(place.path, "disk.img"), "copy.img"], { cwd });
      const flushed = Buffer.alloc(REGION, 6);
      {
        await using server = await startServe({
          clone: "copy.img",
          cwd,
          args: ["--no-hydrate"],
          socket: join(place.path, "s"),
        });
        await using client = await NbdSession.connect(server);
        await client.write(0, flushed);
        await client.flush();
        flushed.copy(bytes, 0);
        // All the room but some of it goes to somebody else.
        await fill(join(cwd, "ballast"));
        const full = Buffer.alloc(REGION, 7);
        await expect(client.write(MIB, full)).rejects.toMatchObject({ errno: ENOSPC });
        await expect(client.write(2 * MIB + 512, full.subarray(0, 512))).rejects.toMatchObject({ errno: ENOSPC });
        // What needs no room is done.
        expect((await client.read(0, REGION)).equals(flushed)).toBe(true);
        expect((await client.read(2 * MIB, REGION)).equals(bytes.subarray(2 * MIB, 2 * MIB + REGION))).toBe(true);
        await client.write(512, full.subarray(0, 512), { fua: true });
        bytes.fill(7, 512, 1024);
        await client.flush();
        // The background finds no room either, and goes on when there is some.
        await server.tune("--resume");
        await client.flush();
        await unlink(join(cwd, "ballast"));
        await client.write(MIB, full, { fua: true });
        full.copy(bytes, MIB);
        await server.hydrated();
        await client.close();
        await stopServe(server);
      }
      await cloneOk(["finalize", "copy.img"], { cwd });
      expect(Buffer.compare(await readFile(join(cwd, "copy.img")), bytes)).toBe(0);
    },
  );
});

describe("a server that is told to stop", () => {
  test("answers what it was asked before, keeps all of it, and then lets its clients go", async () => {
    await using made = await fresh();
    const { cwd, bytes } = made;
    await using server = await startServe({ clone: "copy.img", cwd, args: ["--rate", "1M"] });
    const clients = await Promise.all([1, 2, 3].map(() => NbdSession.connect(server)));
    const answered: number[] = [];
    const requests = clients.flatMap((client, index) =>
      Array.from({ length: 20 }, async (_, write) => {
        const offset = (write * 3 + index) * REGION + 8 * KIB;
        await client.write(offset, Buffer.alloc(4 * KIB, 8));
        answered.push(offset);
      }),
    );
    await Promise.race(requests);
    const [run, ...results] = await Promise.all([server.stop(), ...requests.map((one) => one.catch((error) => error))]);
    expect(run).toMatchObject({ code: 0, signal: null });
    // ESHUTDOWN, or the connection's end, is an answer too.
    expect(results.filter((result) => result !== undefined && !(result instanceof Error))).toEqual([]);
    expect(answered.length).toBeGreaterThan(0);
    await cloneOk(["hydrate", "copy.img", "--progress", "none"], { cwd });
    await cloneOk(["finalize", "copy.img"], { cwd });
    const copy = await readFile(join(cwd, "copy.img"));
    for (const offset of answered) bytes.fill(8, offset, offset + 4 * KIB);
    for (const offset of answered)
      expect(copy.subarray(offset, offset + 4 * KIB).every((byte) => byte === 8)).toBe(true);
    // What was not answered is old or new.
    for (let sector = 0; sector < SIZE; sector += 512) {
      const [found, old] = [copy.subarray(sector, sector + 512), bytes.subarray(sector, sector + 512)];
      if (!found.equals(old)) expect(found.every((byte) => byte === 8)).toBe(true);
    }
  });
});

/** Fills a file system with a file. */
async function fill(path: string): Promise<void> {
  for (const piece of [MIB / 4, 4 * KIB]) {
    try {
      for (;;) await writeFile(path, Buffer.alloc(piece, 1), { flag: "a" });
    } catch (error) {
      expect((error as NodeJS.ErrnoException).code).toBe("ENOSPC");
    }
  }
}

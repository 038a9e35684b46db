// File systems and devices that turn read-only, or go down, under a clone that is hydrated or served. What cannot be written is
// said, and ends a hydration; a server whose flush fails has failed, and goes on with its reads. When the disk can be written
// again, after whatever its file system does to recover, all that was flushed is there and the clone goes on to the end.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { campaign } from "../support/campaign.ts";
import { expectHydratedRight } from "../support/hydrated-right.ts";
import { ModelClient } from "../support/model-client.ts";
import { testWith } from "../support/needs.ts";
import { seededRandom } from "../support/random.ts";
import { clone, cloneOk, eventually, expectFailure, startClone } from "../support/run-clone.ts";
import { noLoopDevices, run, type Scratch, scratchDirectory, scratchLoopDevice } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";
import { SMALL_FILE_SYSTEMS, smallFileSystem } from "../support/small-file-system.ts";
import { SECTOR, stampSectors } from "../support/stamped-sectors.ts";
import { OPTIONS } from "./options.ts";

const { seed, shard, shards, report } = campaign(OPTIONS);
const SIZE = 4 * 2 ** 20;
const EPERM = 1;
const KINDS = (["ext4", "xfs"] as const).filter((_, index) => index % shards === shard);

/** A source, stamped. */
async function sourcePlace(): Promise<Scratch & { source: string; bytes: Buffer }> {
  const place = await scratchDirectory();
  const source = join(place.path, "disk.img");
  const bytes = stampSectors(Buffer.alloc(SIZE), 0, 1);
  await writeFile(source, bytes);
  return { ...place, source, bytes };
}

for (const kind of KINDS) {
  describe(`an ${kind}`, () => {
    const { machine, programs } = SMALL_FILE_SYSTEMS[kind];

    testWith(
      { programs, machine },
      "that goes down ends a hydration, which goes on when it is mounted again",
      async () => {
        await using place = await sourcePlace();
        await using small = await smallFileSystem(kind);
        const cwd = small.path;
        await cloneOk(["create", place.source, "copy.img"], { cwd });
        const hydrating = startClone(["hydrate", "copy.img", "--rate", "1M", "--progress", "json"], { cwd });
        await eventually("something is hydrated", () => /"done":[1-9]/.test(progressOf(hydrating)));
        await small.die();
        const ended = await hydrating.done;
        expect(ended.code, ended.stderr).toBe(1);
        expect(ended.stderr).toMatch(/^clone: Cannot .*: (EIO|EROFS)/m);
        expect(ended.stderr).not.toMatch(/fault of the program/);
        await small.revive();
        await cloneOk(["check", "copy.img.clone"], { cwd });
        await expectHydratedRight({ cwd, copy: "copy.img", bytes: place.bytes });
        await cloneOk(["hydrate", "copy.img", "--progress", "none"], { cwd });
        await cloneOk(["finalize", "copy.img"], { cwd });
        expect(Buffer.compare(await readFile(join(cwd, "copy.img")), place.bytes)).toBe(0);
        report({ "disks that could not be written": 1 });
      },
    );

    testWith({ programs, machine }, "that goes down under a server has kept what clients have flushed", async () => {
      await using place = await sourcePlace();
      await using small = await smallFileSystem(kind);
      const cwd = small.path;
      await cloneOk(["create", place.source, "copy.img"], { cwd });
      const client = new ModelClient(SIZE / SECTOR, seededRandom(seed));
      {
        await using server = await startServe({ clone: "copy.img", cwd, args: ["--rate", "1M"] });
        await client.connect(server.socket);
        for (let round = 0; round < 4; round++) {
          await client.write(10);
          await client.flush();
        }
        await client.write(5);
        await small.die();
        await client.writeAnyhow(5);
        await client.refusedFlush();
        // An XFS that is down does not even say where the server's socket is.
        if (kind === "ext4") expect((await server.status()).state).toBe("failed");
        else expectFailure(await clone(["status", "copy.img"], { cwd }), 1, /EIO/);
        // An ext4 still gives what it has; an XFS nothing.
        await (kind === "ext4" ? client.readAll() : client.readAnyhow());
        await client.refusedWrite();
        await client.disconnect();
        const end = await server.stop();
        expect(end.code, end.stderr).toBe(1);
        expect(end.stderr).not.toMatch(/fault of the program/);
      }
      client.fallBack();
      await small.revive();
      await cloneOk(["check", "copy.img.clone"], { cwd });
      await using server = await startServe({ clone: "copy.img", cwd, args: ["--rate", "max"] });
      await client.connect(server.socket);
      await client.readAll();
      await client.write(20);
      await client.flush();
      await server.hydrated();
      await client.disconnect();
      await stopServe(server);
      await cloneOk(["finalize", "copy.img"], { cwd });
      client.settle(await readFile(join(cwd, "copy.img")));
      report({ "disks that could not be written": 1, "requests refused": client.refused });
    });

    testWith(
      { programs, machine },
      "that is mounted read-only is told from one that is not, and looked at all the same",
      async () => {
        await using place = await sourcePlace();
        await using small = await smallFileSystem(kind);
        const cwd = small.path;
        await cloneOk(["create", place.source, "copy.img"], { cwd });
        await cloneOk(["hydrate", "copy.img", "--limit", "1M", "--progress", "none"], { cwd });
        await small.remount("ro");
        for (const command of ["status", "verify"]) await cloneOk([command, "copy.img"], { cwd });
        for (const command of ["check", "dump"]) await cloneOk([command, "copy.img.clone"], { cwd });
        for (const args of [
          ["hydrate", "copy.img"],
          ["finalize", "copy.img"],
          ["serve", "copy.img", "--socket", join(place.path, "s")],
        ]) {
          expectFailure(await clone(args, { cwd }), 1, /EROFS|read-only|missing/);
        }
        await small.remount("rw");
        await cloneOk(["hydrate", "copy.img", "--progress", "none"], { cwd });
        await cloneOk(["finalize", "copy.img"], { cwd });
        expect(Buffer.compare(await readFile(join(cwd, "copy.img")), place.bytes)).toBe(0);
        report({ "disks that could not be written": 1 });
      },
    );
  });
}

describe.runIf(shard === 0)("a block device", () => {
  testWith(
    { programs: ["losetup"], machine: noLoopDevices },
    "that is set read-only refuses, and goes on when it is not",
    async () => {
      await using place = await sourcePlace();
      await using device = await scratchLoopDevice(SIZE);
      const [cwd, name] = [place.path, "device.clone"];
      await cloneOk(["create", place.source, device.path, "--metadata", name], { cwd });
      const client = new ModelClient(SIZE / SECTOR, seededRandom(seed));
      await using server = await startServe({ clone: name, cwd, args: ["--rate", "1M"] });
      await client.connect(server.socket);
      await client.write(10);
      await client.flush();
      await run("blockdev", "--setro", device.path);
      expect(await client.refusedWrite()).toBe(EPERM);
      await client.readAll();
      await eventually("the hydration has stalled", async () => /EPERM/.test(JSON.stringify(await server.status())));
      await run("blockdev", "--setrw", device.path);
      await client.write(10);
      await client.flush();
      await server.hydrated();
      await client.readAll();
      await client.disconnect();
      await stopServe(server);
      await cloneOk(["finalize", name], { cwd });
      client.settle(await readFile(device.path));
      report({ "disks that could not be written": 1, "requests refused": client.refused });
    },
  );
});

function progressOf(started: ReturnType<typeof startClone>): string {
  const { stdout, stderr } = started.output();
  return stdout + stderr;
}

// Images of Ceph as sources, and as destinations behind qemu-nbd, which is killed while a clone is hydrated into it. What is in an
// image in the end is told by Ceph's own export.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, inject, test } from "vitest";
import { DiskModel } from "../support/disk-model.ts";
import { holds, randomFile, sparseFile } from "../support/files.ts";
import { NbdSession } from "../support/nbd-session.ts";
import { seededRandom, testSeed } from "../support/random.ts";
import { RandomClients } from "../support/random-clients.ts";
import { QemuNbd, RbdImage } from "../support/rbd.ts";
import { clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { type ServedStatus, startServe, stopServe } from "../support/serve.ts";
import { SECTOR, stampSectors } from "../support/stamped-sectors.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const KILLS = 6;
const ceph = inject("ceph");
const QUIET = ["--progress", "none"];

describe("an RBD image as a source", () => {
  test("is created, hydrated, verified and finalized", async () => {
    await using scratch = await scratchDirectory();
    const options = { cwd: scratch.path };
    const content = await sparseFile(join(scratch.path, "image"), 64 * MIB, [
      [MIB, 9 * MIB],
      [40 * MIB, 5 * MIB],
    ]);
    const image = await RbdImage.import(ceph, join(scratch.path, "image"), content.length);
    const created = oneJson(await cloneOk(["create", image.uri(), "disk.img", "--json"], options));
    expect(created).toMatchObject({ source: image.uri(), exactSize: content.length });
    await cloneOk(["hydrate", "disk.img", ...QUIET], options);
    expect(oneJson(await cloneOk(["verify", "disk.img", "--json", ...QUIET], options))).toMatchObject({ equal: true });
    await cloneOk(["finalize", "disk.img"], options);
    expect(await holds(join(scratch.path, "disk.img"), content)).toBe(true);
  });

  test("is copied as it was at a snapshot while somebody writes to it", async () => {
    await using scratch = await scratchDirectory();
    const content = await randomFile(join(scratch.path, "image"), 24 * MIB);
    const image = await RbdImage.import(ceph, join(scratch.path, "image"), content.length);
    await image.snapshot("monday");
    await using writer = new QemuNbd(image.uri(), scratch.path);
    await writer.start();
    await run("qemu-io", "-f", "raw", "-c", "write -P 7 0 12M", "-c", "flush", writer.uri);
    await cloneOk(["copy", image.uri("monday"), "disk.img", ...QUIET], { cwd: scratch.path });
    expect(await holds(join(scratch.path, "disk.img"), content)).toBe(true);
  });

  test("is served while it is hydrated", async () => {
    await using scratch = await scratchDirectory();
    const options = { cwd: scratch.path };
    const content = await randomFile(join(scratch.path, "image"), 40 * MIB);
    const image = await RbdImage.import(ceph, join(scratch.path, "image"), content.length);
    await cloneOk(["create", image.uri(), "disk.img"], options);
    await using server = await startServe({ clone: "disk.img", args: ["--rate", "20M"], ...options });
    await run("nbdcopy", server.uri, join(scratch.path, "read"));
    expect(await holds(join(scratch.path, "read"), content)).toBe(true);
    await server.tune("--rate", "max");
    await server.hydrated();
    await stopServe(server);
    await cloneOk(["finalize", "disk.img"], options);
    expect(await holds(join(scratch.path, "disk.img"), content)).toBe(true);
  });

  test("is refused where there is no such image, with what qemu says, and nothing is left", async () => {
    await using scratch = await scratchDirectory();
    const name = `rbd:rbd/none:conf=${ceph.conf}`;
    const refused = await clone(["create", name, "disk.img"], { cwd: scratch.path });
    expectFailure(refused, 1, /No such file or directory|error opening image/);
    expect(refused.stderr).toContain("rbd:rbd/none");
  });
});

describe("an RBD image as a destination", () => {
  test("is hydrated, verified, and finalized; zeros take no room in it", async () => {
    await using scratch = await scratchDirectory();
    const options = { cwd: scratch.path };
    const content = await sparseFile(join(scratch.path, "source.img"), 256 * MIB, [
      [0, 4 * MIB],
      [128 * MIB, 4 * MIB],
    ]);
    const image = await RbdImage.create(ceph, content.length);
    await using server = new QemuNbd(image.uri(), scratch.path);
    await server.start();
    await cloneOk(["create", "source.img", server.uri, "--metadata", "meta"], options);
    await cloneOk(["hydrate", "meta", ...QUIET], options);
    expect(oneJson(await cloneOk(["verify", "meta", "--json", ...QUIET], options))).toMatchObject({ equal: true });
    await cloneOk(["finalize", "meta"], options);
    await image.export(join(scratch.path, "exported"));
    expect(await holds(join(scratch.path, "exported"), content)).toBe(true);
    expect(await image.usedBytes()).toBeLessThanOrEqual(16 * MIB);
  });

  test("is copied to from another image of the same Ceph, where it is the larger one", async () => {
    await using scratch = await scratchDirectory();
    const content = await randomFile(join(scratch.path, "image"), 24 * MIB + 4096);
    const from = await RbdImage.import(ceph, join(scratch.path, "image"), content.length);
    const to = await RbdImage.create(ceph, 32 * MIB);
    await using server = new QemuNbd(to.uri(), scratch.path);
    await server.start();
    await cloneOk(["copy", from.uri(), server.uri, "--metadata", "meta", ...QUIET], { cwd: scratch.path });
    await to.export(join(scratch.path, "exported"));
    const exported = await readFile(join(scratch.path, "exported"));
    expect(Buffer.compare(exported.subarray(0, content.length), content)).toBe(0);
  });

  test("is served from while it is hydrated: clients find, and leave, what a disk would hold", async () => {
    const seed = testSeed();
    const random = seededRandom(seed);
    await using scratch = await scratchDirectory();
    const options = { cwd: scratch.path };
    const sectors = (24 * MIB) / SECTOR;
    await writeFile(join(scratch.path, "source.img"), stampSectors(Buffer.alloc(sectors * SECTOR), 0, 1));
    const image = await RbdImage.create(ceph, sectors * SECTOR);
    await using destination = new QemuNbd(image.uri(), scratch.path);
    await destination.start();
    await cloneOk(["create", "source.img", destination.uri, "--metadata", "meta"], options);

    const model = new DiskModel(new Array(sectors).fill(1));
    const clients = new RandomClients(model, random, 16);
    await using server = await startServe({ clone: "meta", args: ["--rate", "8M"], ...options });
    await clients.connect(server.socket);
    await clients.run(1500);
    await server.tune("--rate", "max");
    await clients.run(500);
    await clients.disconnect();
    await server.hydrated();
    await stopServe(server);
    model.stopped();
    await cloneOk(["finalize", "meta"], options);
    await image.export(join(scratch.path, "exported"));
    const wrong = model.settle(await readFile(join(scratch.path, "exported")));
    clients.hold(wrong, `in the image at the end, CLONE_TEST_SEED=${seed}`);
  });

  test(`is what the source is although qemu-nbd was killed ${KILLS} times with writes that it had not flushed`, async () => {
    const seed = testSeed();
    const random = seededRandom(seed);
    await using scratch = await scratchDirectory();
    const options = { cwd: scratch.path, longestMs: 170_000 };
    const content = await randomFile(join(scratch.path, "source.img"), 48 * MIB);
    const image = await RbdImage.create(ceph, content.length);
    await using server = new QemuNbd(image.uri(), scratch.path);
    await server.start();
    await cloneOk(["create", "source.img", server.uri, "--metadata", "meta"], options);
    const hydration = startClone(["hydrate", "meta", "--rate", "8M", "--progress", "plain"], options);
    const regions = async () => oneJson<ServedStatus>(await cloneOk(["status", "meta", "--json"], options));
    for (let kill = 0; kill < KILLS; kill++) {
      const step = Math.ceil((random.integer(2, 8) * MIB) / (64 * KIB));
      const { hydratedRegions: before } = await regions();
      await eventually("more is hydrated", async () => {
        const { hydratedRegions, regions: all } = await regions();
        return hydration.child.exitCode !== null || hydratedRegions >= Math.min(all, before + step);
      });
      await server.kill9();
      await server.start();
    }
    const ended = await hydration.done;
    expect(ended.code, `CLONE_TEST_SEED=${seed}: ${ended.stderr}`).toBe(0);
    await cloneOk(["finalize", "meta"], options);
    await image.export(join(scratch.path, "exported"));
    expect(await holds(join(scratch.path, "exported"), content), `CLONE_TEST_SEED=${seed}`).toBe(true);
  });

  test("may go away and come back under clients that only read", async () => {
    await using scratch = await scratchDirectory();
    const options = { cwd: scratch.path };
    const content = await randomFile(join(scratch.path, "source.img"), 32 * MIB);
    const image = await RbdImage.create(ceph, content.length);
    await using destination = new QemuNbd(image.uri(), scratch.path);
    await destination.start();
    await cloneOk(["create", "source.img", destination.uri, "--metadata", "meta"], options);
    await using server = await startServe({ clone: "meta", args: ["--rate", "8M"], ...options });
    for (let kill = 1; kill <= 3; kill++) {
      await eventually("more is hydrated", async () => {
        const { hydratedRegions, regions } = await server.status();
        return hydratedRegions >= (regions * kill) / 8;
      });
      await destination.kill9();
      await destination.start();
      await run("nbdcopy", server.uri, join(scratch.path, "read"));
      expect(await holds(join(scratch.path, "read"), content)).toBe(true);
    }
    await server.hydrated();
    await stopServe(server);
    await cloneOk(["finalize", "meta"], options);
    await image.export(join(scratch.path, "exported"));
    expect(await holds(join(scratch.path, "exported"), content)).toBe(true);
  });

  test("that goes away with what clients wrote makes the clone fail; what they flushed is there when it is served again", async () => {
    await using scratch = await scratchDirectory();
    const options = { cwd: scratch.path };
    const content = await randomFile(join(scratch.path, "source.img"), 16 * MIB);
    const image = await RbdImage.create(ceph, content.length);
    await using destination = new QemuNbd(image.uri(), scratch.path);
    await destination.start();
    await cloneOk(["create", "source.img", destination.uri, "--metadata", "meta"], options);

    const [flushed, lost] = [Buffer.alloc(256 * KIB, 0xf1), Buffer.alloc(256 * KIB, 0x10)];
    {
      await using server = await startServe({ clone: "meta", args: ["--no-hydrate"], ...options });
      await using session = await NbdSession.connect({ socket: server.socket });
      await session.write(MIB, flushed);
      await session.flush();
      await session.write(5 * MIB, lost);
      await destination.kill9();
      await destination.start();
      await expect(session.flush()).rejects.toThrow();
      await eventually("the clone has failed", async () => (await server.status()).state === "failed");
      await expect(session.write(9 * MIB, lost)).rejects.toThrow();
      await server.stop();
    }
    {
      await using server = await startServe({ clone: "meta", ...options });
      await using session = await NbdSession.connect({ socket: server.socket });
      expect(Buffer.compare(await session.read(MIB, flushed.length), flushed)).toBe(0);
      await session.close();
      await server.hydrated();
      await stopServe(server);
    }
    await cloneOk(["finalize", "meta"], options);
    await image.export(join(scratch.path, "exported"));
    const exported = await readFile(join(scratch.path, "exported"));
    flushed.copy(content, MIB);
    // What was written and not flushed is there or is not, sector by sector.
    const mayBeLost = { start: 5 * MIB, end: 5 * MIB + lost.length };
    for (let offset = mayBeLost.start; offset < mayBeLost.end; offset += SECTOR) {
      const sector = exported.subarray(offset, offset + SECTOR);
      if (sector.every((byte) => byte === 0x10)) sector.copy(content, offset);
    }
    expect(Buffer.compare(exported, content)).toBe(0);
  });
});

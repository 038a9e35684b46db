// I/O errors of each of the three devices in turn, over NBD and as a file of a file system, while a clone is hydrated and while
// it is served. What cannot be done is said; a flush or a commit that fails ends all writing, and reads go on; nothing is ever
// called hydrated that is not there. When the disk is well again the clone goes on, and its content is right.
import { readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { campaign } from "../support/campaign.ts";
import { type FailingDisk, type FailingRequest, failingDisk } from "../support/failing-disk.ts";
import { expectHydratedRight } from "../support/hydrated-right.ts";
import { ModelClient } from "../support/model-client.ts";
import { noNbdLoop } from "../support/nbd-loop.ts";
import { type Needs, testWith } from "../support/needs.ts";
import { seededRandom } from "../support/random.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";
import { SECTOR, stampSectors } from "../support/stamped-sectors.ts";
import { OPTIONS } from "./options.ts";

const { seed, shard, shards, report } = campaign(OPTIONS);
const SIZE = 2 * 2 ** 20;
const EIO = 5;
const needs: Needs = { programs: ["nbdkit", "nbdfuse", "fusermount3"], machine: noNbdLoop };

/** Which device fails, as what it is seen, and which of its requests. */
interface Fault {
  device: "source" | "destination" | "metadata";
  form: "nbd" | "file";
  request: FailingRequest;
}
const FAULTS: Fault[] = [
  { device: "source", form: "nbd", request: "pread" },
  { device: "source", form: "file", request: "pread" },
  { device: "destination", form: "nbd", request: "pwrite" },
  { device: "destination", form: "file", request: "pwrite" },
  { device: "destination", form: "nbd", request: "flush" },
  { device: "destination", form: "file", request: "flush" },
  { device: "destination", form: "nbd", request: "pread" },
  { device: "destination", form: "file", request: "pread" },
  { device: "metadata", form: "file", request: "pwrite" },
  { device: "metadata", form: "file", request: "flush" },
  { device: "metadata", form: "file", request: "pread" },
];
const mine = FAULTS.filter((_, index) => index % shards === shard);
const nameOf = ({ device, form, request }: Fault): string =>
  `${request} of the ${device}, ${form === "nbd" ? "over NBD" : "a file"}`;

/** A fresh clone, one device of which may fail; `rate` percent of its requests do while it does. */
async function clonePlace({ device, form, request }: Fault, rate = 100) {
  const place = await scratchDirectory();
  const cwd = place.path;
  const bytes = stampSectors(Buffer.alloc(SIZE), 0, 1);
  const [source, destination, metadata] = ["disk.img", "copy.img", "copy.img.clone"].map((name) => join(cwd, name)) as [
    string,
    string,
    string,
  ];
  await writeFile(source, bytes);
  const flushes = request === "flush";
  let disk: FailingDisk;
  let name = metadata;
  if (device === "source") {
    disk = await failingDisk({ cwd, file: source, size: SIZE, form, rate });
    await created(disk, ["create", disk.at, destination], cwd);
  } else if (device === "destination") {
    await writeFile(destination, "");
    await truncate(destination, SIZE);
    disk = await failingDisk({ cwd, file: destination, size: SIZE, form, flushes, rate });
    await created(disk, ["create", source, disk.at, "--metadata", metadata, "--force"], cwd);
  } else {
    await cloneOk(["create", source, destination], { cwd });
    const { size } = await stat(metadata);
    disk = await failingDisk({ cwd, file: metadata, size, form, flushes, rate });
    name = disk.at;
  }
  return {
    cwd,
    bytes,
    disk,
    /** What commands call the clone. */
    name,
    async [Symbol.asyncDispose]() {
      await disk[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
}

/** Makes the clone; where that fails, no disk is left mounted. */
async function created(disk: FailingDisk, args: string[], cwd: string): Promise<void> {
  try {
    await cloneOk(args, { cwd });
  } catch (error) {
    await disk[Symbol.asyncDispose]();
    throw error;
  }
}

/** What metadata calls hydrated is there; and `check` is content. */
async function expectSound(place: { cwd: string; bytes: Buffer; name: string }): Promise<number> {
  await cloneOk(["check", place.name], { cwd: place.cwd });
  return await expectHydratedRight({ cwd: place.cwd, copy: "copy.img", metadata: place.name, bytes: place.bytes });
}

describe("a hydration that meets", () => {
  for (const fault of mine) {
    testWith(needs, `${nameOf(fault)} says so, and goes on when it is over`, async () => {
      await using place = await clonePlace(fault);
      const { cwd, disk, name, bytes } = place;
      await cloneOk(["hydrate", name, "--limit", "512K", "--progress", "none"], { cwd });
      const before = await expectSound(place);
      await disk.fail(fault.request);
      const run = await clone(["hydrate", name, "--progress", "none", "--retry", "0"], { cwd });
      const said = `${run.stdout}${run.stderr}`;
      if (fault.device === "source" && fault.form === "nbd") {
        // Nor can it be known again: it is not there for whom it cannot show anything to.
        expectFailure(run, 1, /too few of its samples can be read to know it again/, /later/);
      } else if (fault.device === "source") {
        expect(run.code, said).toBe(5);
        expect(run.stderr).toMatch(/^clone: Cannot read \d+ regions \(8–31\) of the source: .*EIO/m);
      } else if (run.code === 0) {
        // What it reads of a destination are samples, if anything.
        expect(nameOf(fault)).toMatch(/^pread of the destination/);
      } else {
        expectFailure(run, 1, /EIO/);
        expect(run.stderr).not.toMatch(/fault of the program/);
      }
      await disk.heal();
      expect(await expectSound(place)).toBeGreaterThanOrEqual(before);
      await cloneOk(["hydrate", name, "--progress", "none"], { cwd });
      if (fault.request === "flush") {
        await disk.fail("flush");
        expectFailure(await clone(["finalize", name], { cwd }), 1, /EIO/);
        await disk.heal();
      }
      await cloneOk(["finalize", name, "--keep-metadata"], { cwd });
      expect(Buffer.compare(await readFile(join(cwd, "copy.img")), bytes)).toBe(0);
      report({ "devices that failed": 1 });
    });
  }
});

describe("hydrations that meet, now and then,", () => {
  for (const fault of mine.filter(({ request }) => request !== "flush")) {
    testWith(needs, `errors of ${nameOf(fault)} end some day`, async () => {
      await using place = await clonePlace(fault, 15);
      const { cwd, disk, name, bytes } = place;
      for (let run = 0, last = 0; run < 3; run++) {
        await disk.fail(fault.request);
        const args = ["hydrate", name, "--progress", "none", "--retry", "0", "--limit", "512K"];
        const { code, stderr } = await clone(args, { cwd });
        expect([0, 1, 5], stderr).toContain(code);
        if (code !== 0) expect(stderr).toMatch(/EIO/);
        expect(stderr).not.toMatch(/fault of the program/);
        await disk.heal();
        const hydrated = await expectSound(place);
        expect(hydrated).toBeGreaterThanOrEqual(last);
        last = hydrated;
      }
      await cloneOk(["hydrate", name, "--progress", "none"], { cwd });
      await cloneOk(["finalize", name, "--keep-metadata"], { cwd });
      expect(Buffer.compare(await readFile(join(cwd, "copy.img")), bytes)).toBe(0);
      report({ "devices that failed": 1 });
    });
  }
});

describe("a clone that is made", () => {
  for (const fault of mine.filter(({ device }) => device !== "metadata")) {
    testWith(needs, `in spite of ${nameOf(fault)} is whole, or not there`, async () => {
      await using place = await clonePlace(fault);
      const { cwd, disk, bytes } = place;
      const [source, destination] =
        fault.device === "source" ? [disk.at, "second.img"] : [join(cwd, "disk.img"), disk.at];
      const create = ["create", source, destination, "--metadata", "second.clone", "--force"];
      await rm(join(cwd, "copy.img.clone"));
      await disk.fail(fault.request);
      const run = await clone(create, { cwd });
      if (run.code !== 0) {
        expectFailure(run, 1, /EIO/);
        expect(await readdir(cwd)).not.toContain("second.clone");
        expect(await readdir(cwd)).not.toContain("second.img");
      }
      await disk.heal();
      if (run.code !== 0) await cloneOk(create, { cwd });
      await cloneOk(["check", "second.clone"], { cwd });
      await cloneOk(["hydrate", "second.clone", "--progress", "none"], { cwd });
      await cloneOk(["finalize", "second.clone"], { cwd });
      const copy = fault.device === "source" ? "second.img" : "copy.img";
      expect(Buffer.compare(await readFile(join(cwd, copy)), bytes)).toBe(0);
      report({ "devices that failed": 1 });
    });
  }
});

describe("a server that meets", () => {
  for (const [index, fault] of mine.entries()) {
    testWith(needs, `${nameOf(fault)} refuses what it cannot do, and goes on afterwards`, async () => {
      await using place = await clonePlace(fault);
      const { cwd, disk, name } = place;
      const client = new ModelClient(SIZE / SECTOR, seededRandom(seed + shard * 100 + index));
      const args = ["--rate", "500K", "--retry", "0", "--hydrate-on-read", "off"];
      {
        await using server = await startServe({ clone: name, cwd, args });
        await client.connect(server.socket);
        await client.write(5);
        await client.flush();
        await disk.fail(fault.request);
        const isFinal = fault.request === "flush" || (fault.device === "metadata" && fault.request === "pwrite");
        if (isFinal) {
          await client.writeAnyhow(3);
          expect(await client.refusedFlush()).toBe(EIO);
          expect((await server.status()).state).toBe("failed");
          await client.readAll();
          await disk.heal();
          expect(await client.refusedWrite(), "a write after the failure").toBe(EIO);
          expect(await client.refusedFlush(), "a flush after the failure").toBe(EIO);
          await client.readAll();
          await client.disconnect();
          const end = await server.stop();
          expect(end.code, end.stderr).toBe(1);
          expect(end.stderr).toMatch(/^clone: Cannot .*EIO/m);
          client.fallBack();
        } else {
          if (fault.request === "pread") await client.readAnyhow();
          await client.writeAnyhow(10);
          if (fault.device === "destination" && fault.request === "pwrite") expect(client.refused).toBeGreaterThan(0);
          await client.flush();
          expect((await server.status()).state).not.toBe("failed");
          await disk.heal();
          await client.readAll();
          await client.write(5);
          await client.flush();
          await client.disconnect();
          await stopServe(server);
        }
      }
      await cloneOk(["check", name], { cwd });
      await using server = await startServe({ clone: name, cwd, args: ["--rate", "max"] });
      await client.connect(server.socket);
      await client.readAll();
      await client.write(20);
      await client.flush();
      await server.hydrated();
      await client.disconnect();
      await stopServe(server);
      await cloneOk(["finalize", name, "--keep-metadata"], { cwd });
      client.settle(await readFile(join(cwd, "copy.img")));
      report({ "devices that failed": 1, "requests refused": client.refused });
    });
  }
});

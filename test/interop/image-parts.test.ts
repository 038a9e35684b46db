// What an image is read from counts as the source itself: a file of its chain that is the destination of an unfinished clone has
// holes where its data is not yet, and one that is the new clone's destination would be overwritten before it is read. Chains of
// every kind are made by qemu-img, one of their files is given such a part, and nothing may have been changed by the refusal.
import { link, open, rename, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { BusyError, CloneError, UsageError } from "../../src/base/errors.ts";
import { type CreateRequest, createClone } from "../../src/clone/create-clone.ts";
import { openImage } from "../../src/clone/image-source.ts";
import { FileDevice } from "../../src/device/file-device.ts";
import { acquireLock } from "../../src/device/lock.ts";
import { holds, randomFile, snapshot } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, run, scratchDirectory } from "../support/scratch.ts";

const QEMU = { programs: ["qemu-img", "qemu-nbd"] } as const;
const QEMU_AND_LOOP = { ...QEMU, machine: noLoopDevices };
const SIZE = 4 * 2 ** 20;

interface Chain {
  request: Pick<CreateRequest, "source" | "sourceFormat">;
  /** The file of it that is to be in the way. */
  part: string;
}

/** Makes a chain in `cwd` that holds what `raw` there holds. */
type MakeChain = (cwd: string) => Promise<Chain>;

async function overlay(cwd: string, backing: string, format: string, name: string): Promise<void> {
  await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", join(cwd, backing), "-F", format, join(cwd, name));
}

async function convert(cwd: string, name: string, ...options: string[]): Promise<void> {
  await run("qemu-img", "convert", "-f", "raw", ...options, join(cwd, "raw"), join(cwd, name));
}

async function backingFile(cwd: string): Promise<Chain> {
  await convert(cwd, "base.raw", "-O", "raw");
  await overlay(cwd, "base.raw", "raw", "over.qcow2");
  return { request: { source: join(cwd, "over.qcow2"), sourceFormat: "qcow2" }, part: "base.raw" };
}

const CHAINS: Record<string, MakeChain> = {
  "an image": async (cwd) => {
    await convert(cwd, "image.qcow2", "-O", "qcow2");
    return { request: { source: join(cwd, "image.qcow2") }, part: "image.qcow2" };
  },
  "the image behind a symbolic link": async (cwd) => {
    await convert(cwd, "image.qcow2", "-O", "qcow2");
    await symlink("image.qcow2", join(cwd, "link"));
    return { request: { source: join(cwd, "link") }, part: "image.qcow2" };
  },
  "a backing file": backingFile,
  "the backing file of a backing file": async (cwd) => {
    await convert(cwd, "base.qcow2", "-O", "qcow2");
    await overlay(cwd, "base.qcow2", "qcow2", "middle.qcow2");
    await overlay(cwd, "middle.qcow2", "qcow2", "over.qcow2");
    return { request: { source: join(cwd, "over.qcow2"), sourceFormat: "qcow2" }, part: "base.qcow2" };
  },
  "a backing file behind a symbolic link": async (cwd) => {
    await convert(cwd, "base.raw", "-O", "raw");
    await symlink("base.raw", join(cwd, "link"));
    await overlay(cwd, "link", "raw", "over.qcow2");
    return { request: { source: join(cwd, "over.qcow2"), sourceFormat: "qcow2" }, part: "base.raw" };
  },
  "a data file": async (cwd) => {
    await convert(cwd, "image.qcow2", "-O", "qcow2", "-o", `data_file=${join(cwd, "data.raw")},data_file_raw=on`);
    return { request: { source: join(cwd, "image.qcow2"), sourceFormat: "qcow2" }, part: "data.raw" };
  },
  "an extent": async (cwd) => {
    await convert(cwd, "disk.vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat");
    return { request: { source: join(cwd, "disk.vmdk"), sourceFormat: "vmdk" }, part: "disk-flat.vmdk" };
  },
  "what json:{…} names": async (cwd) => {
    await convert(cwd, "base.raw", "-O", "raw");
    await overlay(cwd, "base.raw", "raw", "over.qcow2");
    const file = (name: string) => ({ driver: "file", filename: join(cwd, name) });
    const backing = { driver: "raw", file: file("base.raw") };
    return {
      request: { source: `json:${JSON.stringify({ driver: "qcow2", file: file("over.qcow2"), backing })}` },
      part: "base.raw",
    };
  },
  "an image that json:{…} serves raw": async (cwd) => {
    await convert(cwd, "image.qcow2", "-O", "qcow2");
    const node = { driver: "file", filename: join(cwd, "image.qcow2") };
    return { request: { source: `json:${JSON.stringify(node)}`, sourceFormat: "qcow2" }, part: "image.qcow2" };
  },
};

async function chainIn(make: MakeChain) {
  const directory = await scratchDirectory();
  const cwd = directory.path;
  const bytes = await randomFile(join(cwd, "raw"), SIZE);
  const chain = await make(cwd);
  const request = { regionSize: 65536, force: false, ...chain.request };
  const path = (name: string): string => join(cwd, name);
  const toOut = { ...request, destination: path("out.raw") };
  return { ...chain, cwd, bytes, path, request: toOut, [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose]() };
}

/** The error that create ends with, nothing having been made or changed. */
async function refusal(cwd: string, request: CreateRequest): Promise<CloneError> {
  const before = await snapshot(cwd);
  const error = await createClone(request).then(
    () => expect.fail("it was created"),
    (error: unknown) => error,
  );
  expect(await snapshot(cwd)).toEqual(before);
  expect(error).toBeInstanceOf(CloneError);
  return error as CloneError;
}

/** Puts the destination of an unfinished clone in the place of a file: its first MiB, and with it the headers of an image, then holes. */
async function madeUnfinished(path: string): Promise<void> {
  await rename(path, `${path}.whole`);
  const request = { source: `${path}.whole`, sourceFormat: "raw", destination: path, regionSize: 65536, force: false };
  await createClone(request);
  await using whole = await open(`${path}.whole`, "r");
  await using holes = await open(path, "r+");
  const head = Buffer.alloc(2 ** 20);
  const { bytesRead } = await whole.read(head, 0, head.length, 0);
  await holes.write(head, 0, bytesRead, 0);
}

describe("create refuses what is in the way, and says where it is not the image itself:", () => {
  for (const [name, make] of Object.entries(CHAINS)) {
    testWith(QEMU, `${name} that is the destination of an unfinished clone`, async () => {
      await using chain = await chainIn(make);
      const { cwd, request, part, path } = chain;
      await madeUnfinished(path(part));
      const error = await refusal(cwd, request);
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toMatch(/is itself an unfinished clone, \d+ of its \d+ regions are missing/);
      expect(error.hint).toContain(`clone hydrate ${path(part)}`);
    });

    testWith(QEMU, `${name} that somebody writes to under the lock`, async () => {
      await using chain = await chainIn(make);
      await using file = await FileDevice.open(chain.path(chain.part), { access: "read-write" });
      await using _lock = await acquireLock(file);
      const error = await refusal(chain.cwd, chain.request);
      expect(error).toBeInstanceOf(BusyError);
      expect(error.message).toMatch(/this process is writing to (it|".*", which it is read from)$/);
    });

    testWith(
      QEMU,
      `${name} that is the destination too, by whatever name, also with --force; else there is no warning`,
      async () => {
        await using chain = await chainIn(make);
        const { cwd, request, part, path } = chain;
        if ((await stat(path(part))).size < SIZE) await truncate(path(part), SIZE); // or its size were reason enough
        await link(path(part), path("hard"));
        for (const destination of [part, "hard"]) {
          const words = { destination: path(destination), metadata: path("metadata"), force: true };
          const { message } = await refusal(cwd, { ...request, ...words });
          // qemu-nbd locks images, but not what is raw: both are true then.
          expect(message).toMatch(
            /they are the same|the source is read from the destination|in use by process .*qemu-nbd/,
          );
          if (/raw|flat/.test(part)) expect(message).toMatch(/the source is read from the destination/);
        }
        expect(await createClone(request)).toMatchObject({ exactSize: SIZE, warnings: [] });
      },
    );
  }

  testWith(QEMU, "a backing file with damaged metadata beside it", async () => {
    await using chain = await chainIn(backingFile);
    const { cwd, request, part, path } = chain;
    await madeUnfinished(path(part));
    await using metadata = await open(path(`${part}.clone`), "r+");
    await metadata.write(Buffer.alloc(4096, 1), 0, 4096, 0);
    const { code, message } = await refusal(cwd, request);
    expect(code).toBe("damaged");
    expect(message).toMatch(/over\.qcow2": ".*base\.raw", which it is read from, may itself be an unfinished clone/);
  });

  testWith(QEMU, "a backing file as the place of the metadata", async () => {
    await using chain = await chainIn(backingFile);
    const { cwd, request, part, path } = chain;
    const { message } = await refusal(cwd, { ...request, metadata: path(part) });
    expect(message).toMatch(/Cannot put the metadata into ".*base\.raw": the source is read from it/);
  });

  testWith(
    QEMU_AND_LOOP,
    "loop devices over a backing file as destination and as the place of the metadata",
    async () => {
      await using place = await scratchDirectory();
      const [base, over] = [join(place.path, "base.raw"), join(place.path, "over.qcow2")];
      // As metadata wants it: the first block is zero.
      await writeFile(base, Buffer.concat([Buffer.alloc(4096), Buffer.alloc(SIZE - 4096, "base")]));
      await overlay(place.path, "base.raw", "raw", "over.qcow2");
      await using loop = await loopDevice(base);
      const request = { source: over, sourceFormat: "qcow2", regionSize: 65536, force: true };
      const out = join(place.path, "out.raw");
      const asMetadata = await refusal(place.path, { ...request, destination: out, metadata: loop.path });
      expect(asMetadata.message).toMatch(/Cannot put the metadata on "\/dev\/loop.*": the source is read from it/);
      const metadata = join(place.path, "metadata");
      const asDestination = await refusal(place.path, { ...request, destination: loop.path, metadata });
      expect(asDestination.message).toMatch(/the source is read from the destination/);
    },
  );
});

describe("create warns of what is in use", () => {
  testWith(QEMU_AND_LOOP, "where that is a backing file, and names it", async () => {
    await using chain = await chainIn(backingFile);
    await using loop = await loopDevice(chain.path(chain.part));
    const { warnings } = await createClone(chain.request);
    expect(warnings).toEqual([expect.stringMatching(/base\.raw", which ".*over\.qcow2" is read from, is in use/)]);
    expect(warnings[0]).toContain(loop.path);
  });
});

describe("A clone of an image whose backing file is the destination of a clone", () => {
  testWith(QEMU, "is refused until that one is whole, and is right then", async () => {
    await using chain = await chainIn(backingFile);
    const { cwd, bytes } = chain;
    await rename(chain.path("base.raw"), chain.path("whole"));
    await cloneOk(["create", "whole", "base.raw"], { cwd });
    const copy = ["copy", "over.qcow2", "out.raw", "--source-format", "qcow2"];
    const before = await snapshot(cwd);
    expectFailure(await clone(copy, { cwd }), 2, /itself an unfinished clone/, /base\.raw` finishes it/);
    expect(await snapshot(cwd)).toEqual(before);
    await cloneOk(["hydrate", "base.raw"], { cwd });
    await cloneOk(copy, { cwd });
    expect(await holds(chain.path("out.raw"), bytes)).toBe(true);
  });

  testWith(QEMU, "is not hydrated where that is its own, as which it was put in later", async () => {
    await using chain = await chainIn(backingFile);
    const { cwd, request, path } = chain;
    await createClone(request);
    await cloneOk(["hydrate", "out.raw", "--limit", "1M"], { cwd });
    await run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", path("out.raw"), "-F", "raw", path("over.qcow2"));
    const before = await snapshot(cwd);
    const refused = await clone(["hydrate", "out.raw", "--accept-changed-source"], { cwd });
    expectFailure(refused, 2, /the source is read from the destination/);
    expect(await snapshot(cwd)).toEqual(before);
  });
});

describe("ChildDevice.openFiles()", () => {
  testWith(QEMU, "opens what the program has open, whatever stands under its name by then", async () => {
    await using chain = await chainIn(backingFile);
    const { path } = chain;
    const { ino } = await stat(path("base.raw"), { bigint: true });
    await using image = await openImage({ kind: "file", path: path("over.qcow2"), format: "qcow2", isGiven: true });
    await rename(path("base.raw"), path("moved.raw"));
    await writeFile(path("base.raw"), "another");
    const files = await image.openFiles();
    try {
      expect(files.map((file) => file.path).sort()).toEqual([path("moved.raw"), path("over.qcow2")]);
      expect(files.map(({ identity }) => identity.ino)).toContain(String(ino));
    } finally {
      for (const file of files) await file[Symbol.asyncDispose]();
    }
  });
});

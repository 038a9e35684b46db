// A source that becomes another one while it is compared. Files change when the comparison tells that it begins, web servers after
// some of the requests: what was read before and what is read after belong to different sources, and nothing follows of both.
import { utimesSync, writeFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { Clone } from "../../src/clone/clone.ts";
import { repairClone } from "../../src/clone/repair-clone.ts";
import { verifyClone } from "../../src/clone/verify-clone.ts";
import { snapshot } from "../support/files.ts";
import { httpServer } from "../support/http-server.ts";
import { flipBit, MetadataImage } from "../support/metadata-image.ts";
import { contentBytes } from "../support/random.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { changeDescriptor, clonedTo, IMAGE_SIZE, NEVER } from "../support/whole-clone.ts";

const MIB = 2 ** 20;
const CHANGED = /Cannot compare with ".*disk\.img": it changed while it was read/;

/** Damages metadata as a server that was killed left it, so that only a comparison tells which regions are hydrated. */
async function loseBits(copy: string): Promise<void> {
  await changeDescriptor(copy, ({ destination }) => ({ served: true, destination: { ...destination, settled: null } }));
  const image = new MetadataImage(await readFile(`${copy}.clone`));
  flipBit(image, image.arrayBlocks()[0] as number);
  await writeFile(`${copy}.clone`, image.bytes);
}

/** A web server whose file is another one from its `count`th reply on, with which the tag of the clone's is gone. */
async function changingServer(content: Buffer) {
  const server = await httpServer({ content, lastModified: undefined });
  const changeAfter = (count: number): void => {
    let replies = 0;
    server.always((_request, _response, serve) => {
      if (++replies > count) server.object.etag = '"two"';
      serve();
    });
  };
  return { server, changeAfter, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

describe("A file that is changed while it is compared", () => {
  /** What ends a comparison that has begun with one source and goes on with another. */
  const change = (source: string): void => {
    writeFileSync(source, Buffer.alloc(512, "new"), { flag: "r+" });
    utimesSync(source, new Date(1e12), new Date(1e12));
  };

  test("by `verify` is refused, and nothing is called different", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await clonedTo(place.path, IMAGE_SIZE);
    await using opened = await Clone.open({ name: copy, access: "quiescent" });
    const verified = verifyClone(opened, {}, { signal: NEVER, onStart: () => change(source) });
    await expect(verified).rejects.toMatchObject({
      code: "failed",
      message: expect.stringMatching(CHANGED),
      hint: expect.stringContaining("nobody writes to it"),
    });
  });

  test("by `repair --compare` is refused, and nothing is written", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await clonedTo(place.path, IMAGE_SIZE);
    await loseBits(copy);
    const before = await readFile(`${copy}.clone`);
    const repaired = repairClone(
      { name: copy, compare: true, assume: "unhydrated", inPlace: true },
      { signal: NEVER, onCompare: () => change(source) },
    );
    await expect(repaired).rejects.toMatchObject({ code: "failed", message: expect.stringMatching(CHANGED) });
    expect((await readFile(`${copy}.clone`)).equals(before)).toBe(true);
  });
});

describe("A file on a web server that is replaced while it is compared", () => {
  const content = contentBytes(16 * MIB);

  test("by `verify` is refused", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await using source = await changingServer(content);
    await cloneOk(["create", source.server.url, "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    source.changeAfter(6);
    const run = await clone(["verify", "copy.img"], { cwd });
    expectFailure(run, 1, CHANGED, /nobody writes to it/);
  });

  test("by `repair --compare --assume` is refused, and no region is assumed to be anything", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await using source = await changingServer(content);
    await cloneOk(["create", source.server.url, "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    await loseBits(join(cwd, "copy.img"));
    const before = await snapshot(cwd);
    source.changeAfter(6);
    const args = ["repair", "copy.img", "--in-place", "--compare", "--assume", "unhydrated", "--progress", "none"];
    expectFailure(await clone(args, { cwd }), 1, CHANGED, /nobody writes to it/);
    expect(await snapshot(cwd)).toEqual(before);
    source.server.object.etag = '"one"';
    source.server.always(undefined);
    await cloneOk(args, { cwd });
    expect(await cloneOk(["check", "copy.img"], { cwd })).toMatch(/clean, (\d+) of \1 /);
  });
});

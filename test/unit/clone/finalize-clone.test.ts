import { mkdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { RegionRange } from "../../../src/base/geometry.ts";
import { Clone } from "../../../src/clone/clone.ts";
import { type FinalizeRequest, finalizeClone } from "../../../src/clone/finalize-clone.ts";
import { randomFile, readRange } from "../../support/files.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import {
  changeDescriptor,
  create,
  descriptorOf,
  FINALIZE,
  finalize,
  hydrate,
  NEVER,
  overwrite,
} from "../../support/whole-clone.ts";

const REGION = 4096;

/** A clone of `regions` regions, all copied but `missing`, that remembers `unreadable` as the regions it could not read. */
async function cloneWithout(
  directory: string,
  regions: number,
  missing: RegionRange[],
  unreadable: { ranges: RegionRange[]; inexact: boolean; complete?: boolean },
): Promise<{ copy: string; source: string; bytes: Buffer }> {
  const [source, copy] = [join(directory, "disk.img"), join(directory, "copy.img")];
  const bytes = await randomFile(source, regions * REGION);
  await create(source, copy, { regionSize: REGION });
  await using clone = await Clone.open({ name: copy, access: "exclusive" });
  let start = 0;
  for (const gap of [...missing, { start: regions, end: regions }]) {
    if (gap.start > start) clone.metadata.markHydrated({ start, end: gap.start });
    start = gap.end;
  }
  clone.metadata.preCommit();
  await clone.metadata.commit();
  await clone.updateDescriptor({ unreadable });
  return { copy, source, bytes };
}

describe("finalizeClone() with acceptUnreadable", () => {
  const range = (start: number, end: number): RegionRange => ({ start, end });

  test.each([
    ["a list of an interrupted run", { inexact: false, complete: false }],
    ["a list of before there was a mark", { inexact: false }],
    ["an inexact list of an interrupted run", { inexact: true, complete: false }],
  ])("refuses %s, though all that is missing is on it", async (_, mark) => {
    await using place = await scratchDirectory();
    const missing = [range(3, 6)];
    const { copy } = await cloneWithout(place.path, 16, missing, { ranges: missing, ...mark });
    await expect(finalize(copy, { acceptUnreadable: true })).rejects.toMatchObject({
      code: "failed",
      message: expect.stringMatching(/3 of 16 regions .* are missing$/),
      hint: "`clone hydrate` copies them.",
    });
    expect((await descriptorOf(copy)).finalized).toBeNull();
  });

  test("refuses where a region is missing that is not on the list", async () => {
    await using place = await scratchDirectory();
    const unreadable = { ranges: [range(3, 6)], inexact: false, complete: true };
    const { copy } = await cloneWithout(place.path, 16, [range(3, 7)], unreadable);
    await expect(finalize(copy, { acceptUnreadable: true })).rejects.toThrow(/4 of 16 regions .* are missing$/);
  });

  test("fills with zeros what is missing where every region was tried, and needs to be asked", async () => {
    await using place = await scratchDirectory();
    const missing = [range(3, 6), range(15, 16)];
    const { copy, source } = await cloneWithout(place.path, 16, missing, {
      ranges: missing,
      inexact: false,
      complete: true,
    });
    await expect(finalize(copy)).rejects.toThrow(/because the source could not be read/);
    await rm(source);
    const report = await finalize(copy, { acceptUnreadable: true, withoutSource: true, keepMetadata: true });
    expect(report.unreadable).toEqual(missing);
    expect(await descriptorOf(copy)).toMatchObject({ finalized: { unreadableRegions: 4, metadataKept: true } });
  });

  /** What the metadata is to say that was refused: neither finalized nor anything of it hydrated. */
  async function isUntouched(copy: string): Promise<void> {
    const { finalized, unreadable } = await descriptorOf(copy);
    expect([finalized, unreadable]).toEqual([null, { ranges: MISSING, inexact: false, complete: true }]);
    await using clone = await Clone.open({ name: copy, access: "any" });
    expect(clone.metadata.committedCount).toBe(12);
  }
  const MISSING = [range(3, 6), range(15, 16)];
  const TRIED = { ranges: MISSING, inexact: false, complete: true };
  const change = async (copy: string, uri: string): Promise<void> =>
    await changeDescriptor(copy, ({ source }) => ({ source: { ...source, uri } }));

  // Any of them may be over tomorrow: a file that is not there may be on a file system that is not mounted.
  test.each<[why: string, (copy: string, source: string) => Promise<Partial<FinalizeRequest> | undefined>, object]>([
    [
      "is what a command serves",
      async (copy) => void (await change(copy, "command:nbdkit")),
      { code: "usage", hint: expect.stringMatching(/name it again with --source.*--without-source/) },
    ],
    [
      "has changed",
      async (_, source) => void (await overwrite(source, 0, Buffer.from("changed"))),
      { code: "failed", hint: expect.stringMatching(/--accept-changed-source.*--without-source/) },
    ],
    [
      "is a directory now",
      async (_, source) => {
        await rm(source);
        await mkdir(source);
        return undefined;
      },
      { code: "usage", hint: expect.stringContaining("--without-source") },
    ],
    [
      "is behind a server whose socket is not there",
      async (copy, source) => void (await change(copy, `nbd+unix:///?socket=${source}.sock`)),
      { errno: "ENOENT", away: true, hint: expect.stringContaining("--without-source") },
    ],
    [
      "is not where --source says",
      async (_, source) => ({ source: `${source}.typo` }),
      { errno: "ENOENT", hint: expect.stringContaining("--without-source") },
    ],
    [
      "is not where it was",
      async (_, source) => void (await rm(source)),
      { errno: "ENOENT", hint: expect.stringContaining("--without-source") },
    ],
  ])("refuses where the source %s, changes nothing, and does without it only if it is told to", async (...row) => {
    const [, prepare, expected] = row;
    await using place = await scratchDirectory();
    const { copy, source } = await cloneWithout(place.path, 16, MISSING, TRIED);
    const options = await prepare(copy, source);
    const { destination } = await descriptorOf(copy);
    await expect(finalize(copy, { acceptUnreadable: true, ...options })).rejects.toMatchObject(expected);
    await isUntouched(copy);
    expect((await descriptorOf(copy)).destination).toEqual(destination);
    const report = await finalize(copy, { acceptUnreadable: true, withoutSource: true });
    expect(report).toMatchObject({ unreadable: MISSING, metadata: null });
    const zeros = await readRange(copy, 3 * REGION, 3 * REGION);
    expect(zeros.every((byte) => byte === 0)).toBe(true);
  });

  test("takes the rest from a source that has changed where that is accepted", async () => {
    await using place = await scratchDirectory();
    const { copy, source, bytes } = await cloneWithout(place.path, 16, MISSING, TRIED);
    await overwrite(source, 3 * REGION, Buffer.from("changed"));
    bytes.write("changed", 3 * REGION);
    const report = await finalize(copy, { acceptUnreadable: true, acceptChangedSource: true });
    expect(report.unreadable).toEqual([]);
    const copied = await readRange(copy, 3 * REGION, 3 * REGION);
    expect(Buffer.compare(copied, bytes.subarray(3 * REGION, 6 * REGION))).toBe(0);
  });

  test("opens no source where it is to do without, though it could be read", async () => {
    await using place = await scratchDirectory();
    const { copy } = await cloneWithout(place.path, 16, MISSING, TRIED);
    const report = await finalize(copy, { acceptUnreadable: true, withoutSource: true });
    expect(report.unreadable).toEqual(MISSING);
  });

  test("records nothing where it is interrupted before that, though nobody looks any more at what is left", async () => {
    await using place = await scratchDirectory();
    const { copy } = await cloneWithout(place.path, 16, MISSING, TRIED);
    const stop = new AbortController();
    await using clone = await Clone.open({ name: copy, access: "exclusive", signal: stop.signal });
    const unsettle = clone.unsettle.bind(clone);
    clone.unsettle = async () => {
      await unsettle();
      stop.abort(); // what follows is the zeros
    };
    const request = { ...FINALIZE, acceptUnreadable: true, withoutSource: true };
    await expect(finalizeClone(clone, request, { signal: stop.signal })).rejects.toThrow("aborted");
    expect(clone.finalized).toBeNull();
    await stat(`${copy}.clone`);
  });

  test("copies what can be read after all, and does not call it unreadable", async () => {
    await using place = await scratchDirectory();
    const missing = [range(3, 6), range(15, 16)];
    const { copy, bytes } = await cloneWithout(place.path, 16, missing, {
      ranges: missing,
      inexact: false,
      complete: true,
    });
    const report = await finalize(copy, { acceptUnreadable: true, keepMetadata: true });
    expect(report.unreadable).toEqual([]);
    expect(await descriptorOf(copy)).toMatchObject({ finalized: { unreadableRegions: 0 }, unreadable: { ranges: [] } });
    for (const { start, end } of missing) {
      const copied = await readRange(copy, start * REGION, (end - start) * REGION);
      expect(Buffer.compare(copied, bytes.subarray(start * REGION, end * REGION))).toBe(0);
    }
    await using clone = await Clone.open({ name: copy, access: "any" });
    expect(clone.metadata.committedCount).toBe(16);
  });

  test("gives up no region that could be read, where the list of an interrupted run was too long to be kept", async () => {
    await using place = await scratchDirectory();
    const regions = 16384;
    const alternating = Array.from({ length: regions / 2 }, (_, index) => range(2 * index, 2 * index + 1));
    const untried = range(0, 6000); // none of these was reached
    const missing = [untried, ...alternating.filter(({ start }) => start >= untried.end)];
    const { copy, bytes } = await cloneWithout(place.path, regions, missing, { ranges: alternating, inexact: false });
    const { unreadable } = await descriptorOf(copy);
    expect(unreadable.inexact).toBe(true);
    expect(unreadable.ranges.some(({ start, end }) => start === 0 && end > 1)).toBe(true); // names readable ones too
    await expect(finalize(copy, { acceptUnreadable: true })).rejects.toThrow(/regions .* are missing$/);

    await hydrate(copy); // it can be read after all
    expect((await descriptorOf(copy)).unreadable).toEqual({ ranges: [], inexact: false, complete: true });
    const copied = await readRange(copy, 0, untried.end * REGION);
    expect(Buffer.compare(copied, bytes.subarray(0, untried.end * REGION))).toBe(0);
    await finalize(copy);
  });
});

describe("finalizeClone()", () => {
  test("refuses a destination that has to be compared with a source that is not there, unless it is told not to", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await cloneWithout(place.path, 16, [], { ranges: [], inexact: false, complete: true });
    await changeDescriptor(copy, ({ destination }) => ({ destination: { ...destination, settled: null } })); // cut off
    await overwrite(copy, 0, Buffer.alloc(16 * REGION));
    await rm(source);
    await expect(finalize(copy)).rejects.toMatchObject({
      errno: "ENOENT",
      hint: expect.stringMatching(/Nobody knows whether the destination still holds.*--without-source/),
    });
    expect((await descriptorOf(copy)).finalized).toBeNull();
    const warnings: string[] = [];
    await using clone = await Clone.open({
      name: copy,
      access: "exclusive",
      onWarning: (warning) => void warnings.push(warning),
    });
    await finalizeClone(clone, { ...FINALIZE, withoutSource: true }, { signal: NEVER });
    expect(warnings).toEqual([expect.stringContaining("Not even samples of")]);
  });

  test("does not take a destination for known that was written to without a comparison", async () => {
    await using place = await scratchDirectory();
    const { copy, source } = await cloneWithout(place.path, 16, [], { ranges: [], inexact: false, complete: true });
    await changeDescriptor(copy, ({ destination }) => ({ destination: { ...destination, settled: null } })); // cut off
    await rm(source);
    {
      await using clone = await Clone.open({ name: copy, access: "exclusive" });
      await clone.attachDestination({}, "read-write");
      await clone.beginWriting({}); // as a server does of a clone that is complete
      await clone.settle();
    }
    await expect(finalize(copy)).rejects.toMatchObject({ hint: expect.stringContaining("--without-source") });
  });

  test("removes metadata whose removal was cut off, without looking at anything else", async () => {
    await using place = await scratchDirectory();
    const { copy } = await cloneWithout(place.path, 16, [], { ranges: [], inexact: false });
    const record = { finished: new Date().toISOString(), verified: true, unreadableRegions: 0, metadataKept: false };
    await changeDescriptor(copy, () => ({ finalized: record }));
    const report = await finalize(copy);
    expect(report).toMatchObject({ verified: true, metadata: null, unreadable: [] });
    await expect(stat(`${copy}.clone`)).rejects.toMatchObject({ code: "ENOENT" });
  });
});

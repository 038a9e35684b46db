// Metadata that the kernel wrote: it names no devices, so every command is told them; what the kernel had hydrated is left
// alone, the rest is copied, and nothing else.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { randomFile, readRange, snapshot } from "../support/files.ts";
import { readFixtureImage, readFixtureTruth } from "../support/kernel-fixtures.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

test.each(["odd-tail-32k", "crash-64m-4k", "discards-64m-4k"])(
  "%s is hydrated with --source and --destination, and only what the kernel had not hydrated is copied",
  async (name) => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const truth = readFixtureTruth(name);
    const size = truth.target_size * 512;
    const regionSize = truth.region_size * 512;
    const source = await randomFile(join(cwd, "disk.img"), size);
    const expected = await randomFile(join(cwd, "copy.img"), size);
    await writeFile(join(cwd, "meta"), readFixtureImage(name));

    expect(await cloneOk(["status", "meta", "--dm"], { cwd })).toMatch(
      new RegExp(
        `^0 ${truth.target_size} clone 8 ${truth.used_metadata_blocks}/${truth.metadata_sectors / 8} ${truth.region_size} ${truth.nr_hydrated}/${truth.nr_regions} 0 1 no_hydration 4 `,
      ),
    );
    const shown = oneJson(await cloneOk(["status", "meta", "--json"], { cwd }));
    expect(shown).toMatchObject({ source: null, destination: null, hydratedRegions: truth.nr_hydrated });
    const dump = oneJson(await cloneOk(["dump", "meta", "--json"], { cwd }));
    expect(dump).toMatchObject({
      hydrated: truth.hydrated.map(([first, last]) => [first, last + 1]),
      descriptor: null,
    });

    const before = await snapshot(cwd);
    expectFailure(
      await clone(["hydrate", "meta"], { cwd }),
      2,
      /Cannot open the (source|destination)/,
      /--(source|destination)/,
    );
    expectFailure(await clone(["hydrate", "meta", "--source", "disk.img"], { cwd }), 2, /destination/, /--destination/);
    expect(await snapshot(cwd)).toEqual(before);

    const devices = ["--source", "disk.img", "--destination", "copy.img"];
    await cloneOk(["hydrate", "meta", ...devices], { cwd });
    let region = 0;
    for (const [first, last] of [...truth.hydrated, [truth.nr_regions, truth.nr_regions] as [number, number]]) {
      const [from, to] = [region * regionSize, Math.min(first * regionSize, size)];
      if (from < to) source.copy(expected, from, from, to);
      region = last + 1;
    }
    expect(Buffer.compare(await readRange(join(cwd, "copy.img"), 0, size), expected)).toBe(0);
    await cloneOk(["check", "meta"], { cwd });
    await cloneOk(["finalize", "meta", "--destination", "copy.img"], { cwd });
    expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "disk.img"]);
  },
);

test("metadata of the kernel is refused with a source or destination that is too small", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "small.img"), 4096);
  await writeFile(join(cwd, "meta"), readFixtureImage("odd-fresh-32k"));
  const before = await snapshot(cwd);
  const devices = ["--source", "small.img", "--destination", "small.img"];
  expect([1, 2]).toContain((await clone(["hydrate", "meta", ...devices], { cwd })).code);
  expect(await snapshot(cwd)).toEqual(before);
});

test("metadata of the kernel is refused with one file as source and destination", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const { target_size: sectors } = readFixtureTruth("odd-fresh-32k");
  await randomFile(join(cwd, "disk.img"), sectors * 512);
  await writeFile(join(cwd, "meta"), readFixtureImage("odd-fresh-32k"));
  const before = await snapshot(cwd);
  const devices = ["--source", "disk.img", "--destination", "disk.img"];
  expectFailure(await clone(["hydrate", "meta", ...devices], { cwd }), 2, /same/);
  expect(await snapshot(cwd)).toEqual(before);
});

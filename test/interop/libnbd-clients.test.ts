// libnbd's tools as clients: nbdinfo is told what the server can do and which regions are hydrated, nbdcopy reads and writes
// a clone over several connections while it hydrates.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { holds, randomFile, sparseFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { cloneOk } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const REGION = 64 * KIB;
const SIZE = 16 * MIB;

describe("nbdinfo", () => {
  const programs = ["nbdinfo"] as const;

  testWith({ programs }, "tells size, flags and contexts of the export", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), SIZE);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await using server = await startServe({ clone: "copy.img", cwd, args: ["--no-hydrate"] });

    expect((await run("nbdinfo", "--size", server.uri)).trim()).toBe(String(SIZE));
    const [shown] = JSON.parse(await run("nbdinfo", "--json", server.uri)).exports;
    expect(shown).toMatchObject({
      "export-size": SIZE,
      is_read_only: false,
      can_flush: true,
      can_fua: true,
      can_trim: true,
      can_zero: true,
      can_df: true,
      can_cache: true,
      can_multi_conn: true,
    });
    expect(shown.contexts).toEqual(expect.arrayContaining(["base:allocation", "x-clone:hydrated"]));
    expect(shown.block_size_minimum).toBeLessThanOrEqual(512);
    expect(shown.block_size_maximum).toBeGreaterThanOrEqual(32 * MIB);
    for (const [what, answer] of [
      ["connect", true],
      ["read", true],
      ["write", true],
      ["flush", true],
      ["fua", true],
      ["trim", true],
      ["zero", true],
      ["df", true],
      ["cache", true],
      ["multi-conn", true],
      ["structured-reply", true],
    ] as const) {
      expect([what, await answersYes("--can", what, server.uri)]).toEqual([what, answer]);
    }
    expect(await answersYes("--is", "read-only", server.uri)).toBe(false);
    expect(await answersYes("--is", "tls", server.uri)).toBe(false);
    await stopServe(server);
  });

  testWith({ programs }, "lists the export by its name, and by no other", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await using server = await startServe({ clone: "copy.img", cwd, exportName: "täglich/1", args: ["--read-only"] });
    const listed = JSON.parse(await run("nbdinfo", "--list", "--json", `nbd+unix:///?socket=${server.socket}`));
    expect(listed.exports.map((one: { "export-name": string }) => one["export-name"])).toEqual(["täglich/1"]);
    expect(await answersYes("--is", "read-only", server.uri)).toBe(true);
    await expect(run("nbdinfo", `nbd+unix:///other?socket=${server.socket}`)).rejects.toThrow();
    await stopServe(server);
  });

  testWith({ programs: ["nbdinfo", "qemu-io"] }, "maps what is hydrated and what is a hole", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await sparseFile(join(cwd, "disk.img"), SIZE, [[4 * MIB, 4 * MIB]]);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await using server = await startServe({
      clone: "copy.img",
      cwd,
      args: ["--no-hydrate", "--hydrate-on-read", "off"],
    });
    expect(await map("--map", server.uri)).toEqual([
      [0, 4 * MIB, "hole,zero"],
      [4 * MIB, 4 * MIB, "data"],
      [8 * MIB, 8 * MIB, "hole,zero"],
    ]);
    expect(await map("--map=x-clone:hydrated", server.uri)).toHaveLength(1);

    await run("qemu-io", "-f", "raw", "-c", `write -P 7 ${5 * MIB} ${3 * REGION}`, "-c", "flush", server.uri);
    const hydration = await map("--map=x-clone:hydrated", server.uri);
    expect(hydration.map(([offset, length]) => [offset, length])).toEqual([
      [0, 5 * MIB],
      [5 * MIB, 3 * REGION],
      [5 * MIB + 3 * REGION, SIZE - 5 * MIB - 3 * REGION],
    ]);
    const [before, written, after] = hydration.map(([, , status]) => status);
    expect(written).not.toBe(before);
    expect(after).toBe(before);
    await stopServe(server);
  });
});

describe("nbdcopy", () => {
  const programs = ["nbdcopy"] as const;
  const SLOWLY = ["--rate", "2M"];

  testWith({ programs }, "reads a clone over four connections while it hydrates", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseFile(join(cwd, "disk.img"), SIZE, [
      [MIB - 512, 6 * MIB + 1024],
      [12 * MIB, 4 * MIB],
    ]);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await using server = await startServe({ clone: "copy.img", cwd, args: SLOWLY });
    const out = (name: string) => join(cwd, name);
    await run("nbdcopy", "--connections=4", "--requests=32", server.uri, out("a.img"));
    expect(await holds(out("a.img"), bytes)).toBe(true);
    await run("nbdcopy", "--synchronous", "--no-extents", server.uri, out("b.img"));
    expect(await holds(out("b.img"), bytes)).toBe(true);
    await stopServe(server);
  });

  testWith({ programs }, "writes a clone over four connections while it hydrates, holes as zeros", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    // What was there before is data wherever the new image has holes.
    await randomFile(join(cwd, "disk.img"), SIZE);
    const bytes = await sparseFile(join(cwd, "new.img"), SIZE, [
      [0, MIB + 4 * KIB],
      [3 * MIB + 60 * KIB, 5 * MIB],
      [SIZE - 4 * KIB, 4 * KIB],
    ]);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    {
      await using server = await startServe({ clone: "copy.img", cwd, args: SLOWLY });
      await run("nbdcopy", "--connections=4", "--requests=32", "--flush", join(cwd, "new.img"), server.uri);
      await run("nbdcopy", server.uri, join(cwd, "back.img"));
      expect(await holds(join(cwd, "back.img"), bytes)).toBe(true);
      await server.hydrated();
      await stopServe(server);
    }
    await cloneOk(["finalize", "copy.img"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  });

  testWith({ programs }, "that takes the clone for zeros adds to what is there", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseFile(join(cwd, "disk.img"), SIZE, [[2 * MIB, MIB]]);
    const added = await sparseFile(join(cwd, "new.img"), SIZE, [[4 * MIB, MIB]]);
    added.copy(bytes, 4 * MIB, 4 * MIB, 5 * MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    {
      await using server = await startServe({ clone: "copy.img", cwd, args: SLOWLY });
      await run("nbdcopy", "--destination-is-zero", "--flush", join(cwd, "new.img"), server.uri);
      await server.hydrated();
      await stopServe(server);
    }
    await cloneOk(["finalize", "copy.img"], { cwd });
    expect(Buffer.compare(await readFile(join(cwd, "copy.img")), bytes)).toBe(0);
  });

  testWith({ programs }, "copies one clone into another, both served", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
    await sparseFile(join(cwd, "empty.img"), SIZE, []);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["create", "empty.img", "second.img"], { cwd });
    {
      await using first = await startServe({ clone: "copy.img", cwd, args: SLOWLY });
      await using second = await startServe({ clone: "second.img", cwd, args: SLOWLY });
      await run("nbdcopy", "--flush", first.uri, second.uri);
      await second.hydrated();
      await Promise.all([stopServe(first), stopServe(second)]);
    }
    await cloneOk(["finalize", "second.img"], { cwd });
    expect(await holds(join(cwd, "second.img"), bytes)).toBe(true);
  });
});

/** Whether nbdinfo exits with 0, "yes". */
async function answersYes(...args: string[]): Promise<boolean> {
  try {
    await run("nbdinfo", ...args);
    return true;
  } catch (error) {
    // 2 is "no"; anything else is not an answer.
    expect((error as { code?: unknown }).code, String(error)).toBe(2);
    return false;
  }
}

/** What `nbdinfo --map` prints: offset, length and status of each extent. */
async function map(option: string, uri: string): Promise<[number, number, string][]> {
  const extents: { offset: number; length: number; type: number; description?: string }[] = JSON.parse(
    await run("nbdinfo", option, "--json", uri),
  );
  return extents.map(({ offset, length, type, description }) => [offset, length, description ?? String(type)]);
}

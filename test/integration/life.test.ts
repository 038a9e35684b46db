// The whole life of a clone on the command line, and what each command prints on the way.
import { readFile, rm, stat, symlink, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { holds, randomFile, snapshot, sparseFile } from "../support/files.ts";
import { clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

const MIB = 1024 * 1024;
const ONE_BY_ONE = ["--threshold", "1", "--batch-size", "1"];

/** The type of every field of `status --json`, as the contract lists them. */
const STATUS_SCHEMA: Record<string, "string" | "number" | "object" | "boolean" | "number?"> = {
  state: "string",
  mode: "string",
  "source.uri": "string",
  "source.size": "number",
  "destination.uri": "string",
  "destination.size": "number",
  "metadata.path": "string",
  "metadata.blockSize": "number",
  "metadata.usedBlocks": "number",
  "metadata.totalBlocks": "number",
  size: "number",
  regionSize: "number",
  regions: "number",
  hydratedRegions: "number",
  committedRegions: "number",
  hydratingRegions: "number",
  unreadableRegions: "number",
  "hydration.enabled": "boolean",
  "hydration.rate": "number?",
  "hydration.threshold": "number?",
  "hydration.batchSize": "number?",
  "hydration.bytesPerSecond": "number",
  "hydration.etaSeconds": "number?",
  server: "object",
};

interface Status {
  state: string;
  hydratedRegions: number;
  committedRegions: number;
  [field: string]: unknown;
}

async function status(cwd: string): Promise<Status> {
  const parsed = oneJson<Status>(await cloneOk(["status", "copy.img", "--json"], { cwd }));
  for (const [field, type] of Object.entries(STATUS_SCHEMA)) {
    let value: unknown = parsed;
    for (const name of field.split(".")) value = (value as Record<string, unknown>)[name];
    if (type === "number?" && value === null) continue;
    expect(typeof value, field).toBe(type.replace("?", ""));
  }
  return parsed;
}

describe("the life of a clone", () => {
  test("goes from create through hydrate, status, check, dump and verify to finalize", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const size = 10 * MIB + 4096;
    const bytes = await randomFile(join(cwd, "disk.img"), size);
    const untouched = (await snapshot(cwd))["disk.img"];

    expect(await cloneOk(["create", "disk.img", "copy.img"], { cwd })).toMatch(
      /^Created .*copy\.img\.clone: 10\.0 MiB in 161 regions of 64K\n$/,
    );
    expect((await stat(join(cwd, "copy.img"))).size).toBe(size);
    const metadata = await stat(join(cwd, "copy.img.clone"));
    expect(metadata.blocks * 512).toBeGreaterThanOrEqual(metadata.size); // no commit will need space
    expect(await status(cwd)).toMatchObject({
      state: "idle",
      mode: "rw",
      source: { uri: `file://${cwd}/disk.img`, size },
      destination: { uri: `file://${cwd}/copy.img`, size },
      metadata: { path: join(cwd, "copy.img.clone"), blockSize: 4096, usedBlocks: 6 },
      size,
      regionSize: 65536,
      regions: 161,
      hydratedRegions: 0,
      hydratingRegions: 0,
      unreadableRegions: 0,
      server: null,
    });

    expect((await clone(["hydrate", "copy.img", "--limit", "4M"], { cwd })).code).toBe(0);
    const half = await status(cwd);
    expect(half.state).toBe("idle");
    expect(half.hydratedRegions).toBeGreaterThanOrEqual(64);
    expect(half.hydratedRegions).toBeLessThan(161);
    const dm = await cloneOk(["status", "copy.img", "--dm"], { cwd });
    const match =
      /^0 (\d+) clone 8 (\d+)\/(\d+) 128 (\d+)\/161 0 1 no_hydration 4 hydration_threshold \d+ hydration_batch_size \d+ rw\n$/.exec(
        dm,
      );
    expect(match, dm).not.toBeNull();
    expect(match?.slice(1).map(Number)).toEqual([
      size / 512,
      (half.metadata as { usedBlocks: number }).usedBlocks,
      metadata.size > 0 ? (half.metadata as { totalBlocks: number }).totalBlocks : 0,
      half.hydratedRegions,
    ]);
    const text = await cloneOk(["status", "copy.img"], { cwd });
    expect(text).toMatch(new RegExp(`^regions +${half.hydratedRegions} of 161, 64K each$`, "m"));
    expect(text).toContain(join(cwd, "disk.img"));

    const refused = await clone(["finalize", "copy.img"], { cwd });
    expectFailure(refused, 1, new RegExp(`${161 - half.hydratedRegions} of 161 regions .*missing`), /clone hydrate/);
    expectFailure(await clone(["finalize", "copy.img", "--table"], { cwd }), 1, /missing/);
    expectFailure(await clone(["finalize", "copy.img", "--accept-unreadable"], { cwd }), 1, /missing/);

    const dump = oneJson<{ hydrated: [number, number][] }>(
      await cloneOk(["dump", "copy.img.clone", "--json"], { cwd }),
    );
    expect(dump).toMatchObject({ format: 1, size, regionSize: 65536, regions: 161 });
    expect(dump.hydrated.reduce((sum, [start, end]) => sum + end - start, 0)).toBe(half.hydratedRegions);
    const indented = await cloneOk(["dump", "copy.img.clone"], { cwd });
    expect(JSON.parse(indented)).toEqual(dump);
    expect(indented.split("\n").length).toBeGreaterThan(5);

    expect(oneJson(await cloneOk(["verify", "copy.img", "--json"], { cwd }))).toMatchObject({
      equal: true,
      compared: half.hydratedRegions,
      differing: [],
    });
    expect((await clone(["hydrate", "copy.img"], { cwd })).stdout).toMatch(/^Hydrated: .* copied/);
    expect(await status(cwd)).toMatchObject({ state: "hydrated", hydratedRegions: 161 });
    expect((await clone(["hydrate", "copy.img"], { cwd })).stdout).toMatch(/^Hydrated: nothing was left/);
    expect(oneJson(await cloneOk(["check", "copy.img.clone", "--json"], { cwd }))).toEqual({
      ok: true,
      fatal: [],
      warnings: [],
    });
    expect(await cloneOk(["check", "copy.img"], { cwd })).toMatch(/clean, 161 of 161 regions hydrated/);
    expect(await cloneOk(["verify", "copy.img"], { cwd })).toMatch(/^Equal: 161 hydrated regions compared\n$/);
    expect(await cloneOk(["finalize", "copy.img", "--table"], { cwd })).toBe(
      `0 ${size / 512} linear ${cwd}/copy.img 0\n`,
    );
    // A name that a terminal obeys is not shown as it is, and so makes no table; by another name of the file there is one.
    await symlink("copy.img", join(cwd, "tab\there"));
    const tabbed = ["finalize", "copy.img", "--table", "--destination"];
    expectFailure(
      await clone([...tabbed, "tab\there"], { cwd }),
      2,
      /its name has control characters/,
      /symbolic link/,
    );
    await rm(join(cwd, "tab\there"));
    expect(await cloneOk(["finalize", "copy.img", "--verify"], { cwd })).toMatch(/^Finalized .*copy\.img: .*verified/);

    const after = await snapshot(cwd);
    expect(Object.keys(after)).toEqual(["copy.img", "disk.img"]);
    expect(after["disk.img"]).toBe(untouched);
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    expectFailure(await clone(["status", "copy.img"], { cwd }), 3, /copy\.img/); // it is a plain file now
  });

  test("finalize --keep-metadata leaves it, finalized", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    await cloneOk(["finalize", "copy.img", "--keep-metadata"], { cwd });
    expect((await status(cwd)).state).toBe("finalized");
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /finalized/);
    await cloneOk(["check", "copy.img.clone"], { cwd });
    const again = oneJson(await cloneOk(["finalize", "copy.img", "--json"], { cwd }));
    expect(again).toMatchObject({ destination: join(cwd, "copy.img"), size: MIB, metadata: null });
    expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "disk.img"]);
  });

  test("--metadata puts the metadata elsewhere, and every command finds the devices from there", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img", "--metadata", "elsewhere.meta"], { cwd });
    expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "disk.img", "elsewhere.meta"]);
    await cloneOk(["hydrate", "elsewhere.meta"], { cwd });
    await cloneOk(["verify", join(cwd, "elsewhere.meta")], { cwd: "/" });
    await cloneOk(["finalize", join(cwd, "elsewhere.meta")], { cwd: "/" });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "disk.img"]);
  });

  test("verify finds a byte that differs, says in which region, and fails; so does finalize --verify", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    const copy = await readFile(join(cwd, "copy.img"));
    for (const offset of [5 * 65536, 6 * 65536 + 65535, MIB - 1]) copy[offset] = (copy[offset] ?? 0) ^ 1;
    await writeFile(join(cwd, "copy.img"), copy, { flag: "r+" });
    const run = await clone(["verify", "copy.img", "--json"], { cwd });
    expect(run.code).toBe(1);
    expect(oneJson(run.stdout)).toMatchObject({
      equal: false,
      compared: 16,
      differing: [
        [5, 7],
        [15, 16],
      ],
    });
    expect((await clone(["verify", "copy.img"], { cwd })).stdout).toMatch(/^Different: 3 regions \(5–6, 15\)/);
    const before = await snapshot(cwd);
    expectFailure(await clone(["finalize", "copy.img", "--verify"], { cwd }), 1, /3 regions differ/, /clone verify/);
    expect(await snapshot(cwd)).toEqual(before);
  });

  test("status --map draws every region", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), 20 * 65536);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img", "--limit", "320K", ...ONE_BY_ONE], { cwd });
    const { hydrated } = oneJson<{ hydrated: [number, number][] }>(
      await cloneOk(["dump", "copy.img.clone", "--json"], { cwd }),
    );
    const expected = Array.from({ length: 20 }, (_, region) =>
      hydrated.some(([start, end]) => start <= region && region < end) ? "█" : "·",
    ).join("");
    expect(expected).toContain("█·");
    expect((await cloneOk(["status", "copy.img", "--map"], { cwd })).split("\n")).toContain(expected);
  });

  test("hydrate --limit copies so much and little more, again and again, to the end", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), 8 * 65536);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    const counts = [];
    for (let run = 0; run < 4; run++) {
      const out = oneJson<{ hydratedRegions: number; copiedBytes: number }>(
        await cloneOk(["hydrate", "copy.img", "--limit", "128K", "--json", ...ONE_BY_ONE], { cwd }),
      );
      counts.push(out.hydratedRegions);
    }
    expect(counts).toEqual([2, 4, 6, 8]);
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  });

  test("hydrate --verify reads back and --no-extents reads holes: both end equal", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseFile(join(cwd, "disk.img"), 4 * MIB, [[MIB, 200_000]]);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img", "--verify", "--no-extents"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    await cloneOk(["verify", "copy.img"], { cwd });
  });

  test("a destination that vanished after hydration is not finalized into nothing", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img"], { cwd });
    await unlink(join(cwd, "copy.img"));
    const before = await snapshot(cwd);
    expectFailure(await clone(["finalize", "copy.img"], { cwd }), 1, /copy\.img": no such file/);
    expect(await snapshot(cwd)).toEqual(before);
  });
});

describe("clone copy", () => {
  test("makes a plain copy in one go and leaves nothing else", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseFile(join(cwd, "disk.img"), 8 * MIB, [
      [0, 100_000],
      [5 * MIB, MIB],
    ]);
    const out = oneJson(await cloneOk(["copy", "disk.img", "copy.img", "--json"], { cwd }));
    expect(out).toMatchObject({ destination: join(cwd, "copy.img"), size: 8 * MIB, metadata: null });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "disk.img"]);
    expectFailure(await clone(["copy", "disk.img", "copy.img"], { cwd }), 2, /it holds data/, /--force/);
  });

  test("killed on the way goes on where it was when run again", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), 8 * MIB);
    const args = ["copy", "disk.img", "copy.img", "--progress", "none"];
    const running = startClone([...args, "--rate", "256K"], { cwd });
    await eventually("something is committed", async () => {
      const run = await clone(["status", "copy.img", "--json"], { cwd });
      return run.code === 0 && (JSON.parse(run.stdout) as Status).committedRegions > 0;
    });
    running.child.kill("SIGKILL");
    expect((await running.done).signal).toBe("SIGKILL");
    const { hydratedRegions } = await status(cwd);
    expect(hydratedRegions).toBeGreaterThan(0);
    expect(hydratedRegions).toBeLessThan(128);
    const again = await clone(args, { cwd });
    expect(again.code, again.stderr).toBe(0);
    const copied = /([\d.]+) MiB copied/.exec(again.stdout);
    expect(Number(copied?.[1])).toBeLessThan(8);
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "disk.img"]);
  });
});

describe("clone delete", () => {
  test("--yes takes the metadata, keeps the destination and names it", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    await cloneOk(["hydrate", "copy.img", "--limit", "256K"], { cwd });
    const before = await snapshot(cwd);
    expect(await cloneOk(["delete", "copy.img", "--yes"], { cwd })).toBe(
      `Deleted ${cwd}/copy.img.clone; ${cwd}/copy.img stays as it is\n`,
    );
    const { "copy.img.clone": _, ...rest } = before;
    expect(await snapshot(cwd)).toEqual(rest);
  });

  test("without a terminal and without --yes changes nothing", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    const before = await snapshot(cwd);
    expectFailure(await clone(["delete", "copy.img"], { cwd }), 2, /--yes/);
    expect(await snapshot(cwd)).toEqual(before);
  });
});

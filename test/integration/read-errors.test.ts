// Read errors of the source: tried again, listed, exit code 5, and never silently zeros in the copy.
import { open, readFile, stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { SLOT_BYTES } from "../../src/metadata/descriptor-slot.ts";
import { failingSource, noFailingSource } from "../support/failing-source.ts";
import { holds, randomFile, snapshot } from "../support/files.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, run, scratchDirectory, withReason } from "../support/scratch.ts";

const MIB = 1024 * 1024;
/** Regions 5 and 6 of 64 KiB are touched by these bytes. */
const BAD = { start: 5 * 65536 + 8192, end: 6 * 65536 + 4096 };

interface Status {
  state: string;
  hydratedRegions: number;
  unreadableRegions: number;
}

/** What is looked at of `clone dump`. */
interface Dump {
  descriptor: { destination: { settled: { free: string } } };
}

async function status(cwd: string): Promise<Status> {
  return oneJson<Status>(await cloneOk(["status", "copy.img", "--json"], { cwd }));
}

describe.skipIf(noFailingSource !== undefined)(
  withReason("a source that cannot be read in places", noFailingSource),
  () => {
    test("is tried again, listed, and ends with exit code 5; finalize refuses until the loss is accepted", async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "good.img"), MIB);
      await using source = await failingSource(join(cwd, "good.img"), BAD);
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      const hydrate = await clone(["hydrate", "copy.img", "--retry", "2", "--json", "--progress", "none"], { cwd });
      expect(hydrate.code).toBe(5);
      expect(oneJson(hydrate.stdout)).toMatchObject({ state: "idle", hydratedRegions: 14, unreadable: [[5, 7]] });
      expect(hydrate.stderr).toMatch(/^clone: Cannot read 2 regions \(5–6\) of the source: .*EIO/m);
      expect(source.failures()).toBeGreaterThanOrEqual(3); // once and twice more

      expect(await status(cwd)).toMatchObject({ state: "idle", hydratedRegions: 14, unreadableRegions: 2 });
      expect(await cloneOk(["status", "copy.img"], { cwd })).toMatch(/^unreadable +2 regions \(5–6\)$/m);
      expect(await cloneOk(["status", "copy.img", "--map"], { cwd })).toContain("█████!!█████████");
      await cloneOk(["check", "copy.img.clone"], { cwd });

      expectFailure(
        await clone(["finalize", "copy.img"], { cwd }),
        1,
        /2 of 16 regions.*could not be read/,
        /--accept-unreadable/,
      );
      expectFailure(await clone(["finalize", "copy.img", "--table"], { cwd }), 1, /missing/);

      const finalize = await clone(["finalize", "copy.img", "--accept-unreadable", "--json"], { cwd });
      expect(finalize.code).toBe(5);
      expect(oneJson(finalize.stdout)).toMatchObject({ unreadable: [[5, 7]] });
      bytes.fill(0, BAD.start, BAD.end); // and no more: what can be read of a region is not thrown away
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
      expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "good.img"]);
    });

    test("is read in the next run where it can be read by then", async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "good.img"), MIB);
      await using source = await failingSource(join(cwd, "good.img"), BAD);
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      expect((await clone(["hydrate", "copy.img", "--retry", "0"], { cwd })).code).toBe(5);
      await source.heal();
      await cloneOk(["hydrate", "copy.img"], { cwd });
      expect(await status(cwd)).toMatchObject({ state: "hydrated", hydratedRegions: 16, unreadableRegions: 0 });
      await cloneOk(["finalize", "copy.img", "--verify"], { cwd });
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    });

    test("costs only the small regions that it touches", async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "good.img"), MIB);
      const { start } = BAD;
      await using source = await failingSource(join(cwd, "good.img"), { start, end: start + 512 });
      await cloneOk(["create", source.path, "copy.img", "--region-size", "4K"], { cwd });
      const hydrate = await clone(["hydrate", "copy.img", "--retry", "0", "--json"], { cwd });
      expect(hydrate.code).toBe(5);
      expect(oneJson(hydrate.stdout)).toMatchObject({ hydratedRegions: 255, unreadable: [[82, 83]] });
      expect((await clone(["finalize", "copy.img", "--accept-unreadable"], { cwd })).code).toBe(5);
      bytes.fill(0, 82 * 4096, 83 * 4096);
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    });

    test("ends hydrate --on-error stop and --max-errors with exit code 1, remembers them, and loses nothing", async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(join(cwd, "good.img"), MIB);
      await using source = await failingSource(join(cwd, "good.img"), BAD);
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      for (const option of [
        ["--on-error", "stop"],
        ["--max-errors", "1"],
      ]) {
        const hydrate = await clone(["hydrate", "copy.img", "--retry", "0", "--progress", "none", ...option], { cwd });
        expect(hydrate.code, hydrate.stderr).toBe(1); // it was told to stop, so it is not done
        expect(hydrate.stderr).toMatch(/^clone: Cannot .*(read|unreadable)/m);
        expect((await status(cwd)).unreadableRegions).toBeGreaterThan(0);
        await cloneOk(["check", "copy.img.clone"], { cwd });
      }
    });

    test("makes clone copy exit with 5 and keep the clone", async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "good.img"), MIB);
      await using source = await failingSource(join(cwd, "good.img"), BAD);
      const copy = await clone(["copy", source.path, "copy.img", "--retry", "0"], { cwd });
      expect(copy.code).toBe(5);
      expect(copy.stderr).toMatch(/^clone: Cannot read 2 regions \(5–6\)/m);
      expect(await status(cwd)).toMatchObject({ state: "idle", hydratedRegions: 14, unreadableRegions: 2 });
      await source.heal();
      await cloneOk(["copy", source.path, "copy.img"], { cwd });
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
      expect(Object.keys(await snapshot(cwd))).toEqual(["copy.img", "good.img"]);
    });

    test("over a dirty destination leaves no old bytes in the copy where the loss is accepted", async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "good.img"), MIB);
      await randomFile(join(cwd, "copy.img"), MIB);
      await using source = await failingSource(join(cwd, "good.img"), BAD);
      await cloneOk(["create", source.path, "copy.img", "--force"], { cwd });
      expect((await clone(["hydrate", "copy.img", "--retry", "0"], { cwd })).code).toBe(5);
      expect((await clone(["finalize", "copy.img", "--accept-unreadable"], { cwd })).code).toBe(5);
      bytes.fill(0, BAD.start, BAD.end);
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    });
  },
);

test.skipIf(noFailingSource !== undefined)(
  withReason(
    "metadata whose descriptor cannot be read is shown, but not acted on, and can be repaired",
    noFailingSource,
  ),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img", "--metadata", "good.clone"], { cwd });
    await cloneOk(["hydrate", "good.clone", "--limit", "512K", "--progress", "none"], { cwd });
    const { size } = await stat(join(cwd, "good.clone"));
    // Any of its two slots may be the newer one, and what an older one says is not what the clone is now.
    const slots = size - 2 * SLOT_BYTES;
    for (const slot of [0, 1]) {
      const start = slots + slot * SLOT_BYTES;
      await using metadata = await failingSource(join(cwd, "good.clone"), { start, end: start + 512 });
      const { path } = metadata;
      for (const command of ["verify", "dump", "hydrate", "serve", "finalize"]) {
        const failed = await clone([command, path], { cwd });
        expectFailure(failed, 1, /^clone: Cannot read 65536 bytes at \d+ .*EIO/, /clone repair/);
      }
      const shown = await clone(["status", path, "--json"], { cwd });
      expect(shown.stderr).toMatch(new RegExp(`The descriptor of .*: slot ${slot} cannot be read: .*EIO`));
      expect(oneJson(shown.stdout)).toMatchObject({ hydratedRegions: 8 });
      const found = await clone(["check", path], { cwd });
      expect(found.code, found.stdout).toBe(3);
      expect(found.stdout).toMatch(new RegExp(`^fatal .*slot ${slot} cannot be read`, "m"));
      const made = `new-${slot}.clone`;
      const repair = await cloneOk(["repair", path, "--output", made], { cwd });
      expect(repair).toMatch(/^lost +One of the two slots of the descriptor, perhaps the newer one/m);
      await cloneOk(["check", made], { cwd });
    }
    await cloneOk(["hydrate", "new-0.clone", "--progress", "none"], { cwd });
    await cloneOk(["finalize", "new-0.clone"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  },
);

test.skipIf(noFailingSource !== undefined)(
  withReason("metadata with an unreadable free block is no excuse for what somebody else has written", noFailingSource),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img", "--metadata", "good.clone"], { cwd });
    await cloneOk(["hydrate", "good.clone", "--progress", "none"], { cwd });
    const dump = JSON.parse(await cloneOk(["dump", "good.clone"], { cwd })) as Dump;
    const [free = 0] = dump.descriptor.destination.settled.free.split(" ").map(Number);
    await using metadata = await failingSource(join(cwd, "good.clone"), {
      start: free * 4096,
      end: free * 4096 + 4096,
    });
    await using copy = await open(join(cwd, "copy.img"), "r+");
    await copy.write("their", 65536);
    for (let run = 0; run < 2; run++) {
      const finalize = await clone(["finalize", metadata.path], { cwd });
      expectFailure(finalize, 1, /somebody else has written to .*copy\.img"/, /--verify/);
      expectFailure(await clone(["hydrate", metadata.path], { cwd }), 1, /region 1 is called hydrated, but differs/);
    }
  },
);

test.skipIf(noLoopDevices !== undefined)(
  withReason("a block device whose end has become unreadable is cloned as far as it can be read", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "backing.img"), MIB);
    await using source = await loopDevice(join(cwd, "backing.img"));
    await cloneOk(["create", source.path, "copy.img"], { cwd });
    await truncate(join(cwd, "backing.img"), 12 * 65536); // the loop device answers EIO from here on
    await run("blockdev", "--flushbufs", source.path);
    const hydrate = await clone(["hydrate", "copy.img", "--retry", "1", "--json", "--progress", "none"], { cwd });
    expect(hydrate.code, hydrate.stderr).toBe(5);
    expect(oneJson(hydrate.stdout)).toMatchObject({ hydratedRegions: 12, unreadable: [[12, 16]] });
    const copy = await readFile(join(cwd, "copy.img"));
    expect(Buffer.compare(copy.subarray(0, 12 * 65536), bytes.subarray(0, 12 * 65536))).toBe(0);
    expect(await status(cwd)).toMatchObject({ unreadableRegions: 4 });
  },
);

test.skipIf(noLoopDevices !== undefined)(
  withReason("a block device that is unreadable in its first and last bytes can be cloned all the same", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "backing.img"), MIB);
    await using source = await loopDevice(join(cwd, "backing.img"));
    await truncate(join(cwd, "backing.img"), 12 * 65536);
    await run("blockdev", "--flushbufs", source.path);
    await cloneOk(["create", source.path, "copy.img"], { cwd });
    const hydrate = await clone(["hydrate", "copy.img", "--retry", "0", "--progress", "none"], { cwd });
    expect(hydrate.code, hydrate.stderr).toBe(5);
    const copy = await readFile(join(cwd, "copy.img"));
    expect(Buffer.compare(copy.subarray(0, 12 * 65536), bytes.subarray(0, 12 * 65536))).toBe(0);
  },
);

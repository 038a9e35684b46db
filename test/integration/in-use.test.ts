// One writer: whoever comes second is refused with exit code 4 and told the first one's pid; `status` is always welcome.
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { noQemu, qemuIo } from "../support/qemu-io.ts";
import {
  clone,
  cloneOk,
  eventually,
  expectFailure,
  hurry,
  oneJson,
  type StartedClone,
  startClone,
} from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, scratchDirectory, withReason } from "../support/scratch.ts";

const MIB = 1024 * 1024;

interface Status {
  state: string;
  hydratedRegions: number;
  lockedBy: number | null;
}

async function status(cwd: string): Promise<Status> {
  return oneJson<Status>(await cloneOk(["status", "copy.img", "--json"], { cwd }));
}

/** A hydration that takes long, already under way. */
async function slowHydration(cwd: string): Promise<StartedClone> {
  await randomFile(join(cwd, "disk.img"), 16 * MIB);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const running = startClone(["hydrate", "copy.img", "--rate", "200K", "--progress", "json"], { cwd });
  await eventually("the hydration has begun", () => running.output().stderr.includes('"done"'));
  return running;
}

describe("while a clone is being hydrated", () => {
  test("every command that needs it alone fails with exit code 4 and tells the holder's pid", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const running = await slowHydration(cwd);
    try {
      const other = await randomFile(join(cwd, "other.img"), 65536);
      expect(other.length).toBe(65536);
      for (const args of [
        ["hydrate", "copy.img"],
        ["hydrate", "copy.img.clone"],
        ["check", "copy.img.clone"],
        ["dump", "copy.img.clone"],
        ["verify", "copy.img"],
        ["finalize", "copy.img"],
        ["finalize", "copy.img", "--table"],
        ["delete", "copy.img", "--yes"],
        ["copy", "disk.img", "copy.img"],
        ["create", "other.img", "copy.img", "--force", "--metadata", "elsewhere"],
      ]) {
        const run = await clone(args, { cwd });
        expectFailure(run, 4, new RegExp(`in use by process ${running.pid}\\b`));
      }
    } finally {
      running.child.kill("SIGTERM");
      expect((await running.done).code).toBe(143);
    }
    await cloneOk(["check", "copy.img.clone"], { cwd });
  });

  test("clone status shows that, by whom, and how far it is, again and again", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const running = await slowHydration(cwd);
    try {
      expect(await status(cwd)).toMatchObject({ state: "hydrating", lockedBy: running.pid });
      expect(await cloneOk(["status", "copy.img"], { cwd })).toContain(`process ${running.pid}`);
      // It sees what is committed, once a second.
      await eventually("status has seen a commit", async () => (await status(cwd)).hydratedRegions > 0);
      expect((await cloneOk(["status", "copy.img", "--dm"], { cwd })).split(" ").at(-1)).toBe("rw\n");
    } finally {
      running.child.kill("SIGINT");
      expect((await running.done).code).toBe(130);
    }
    expect(await status(cwd)).toMatchObject({ state: "idle", lockedBy: null });
  });

  test("clone status --watch follows it to its end", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), 2 * MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    const watching = startClone(["status", "copy.img", "--watch", "1", "--json"], { cwd });
    await eventually("it has printed a status", () => watching.output().stdout.includes("\n"));
    const hydration = clone(["hydrate", "copy.img", "--rate", "64K"], { cwd });
    await eventually("it shows the hydration", () => watching.output().stdout.includes('"hydrating"'));
    await hurry(cwd);
    expect((await hydration).code).toBe(0);
    const watch = await watching.done;
    expect(watch.code).toBe(0);
    const states = watch.stdout.trimEnd().split("\n");
    const seen = states.map((line) => JSON.parse(line) as Status);
    expect(seen.length).toBeGreaterThan(1);
    expect(seen.at(-1)).toMatchObject({ state: "hydrated", hydratedRegions: 32 });
    const counts = seen.map(({ hydratedRegions }) => hydratedRegions);
    expect(counts).toEqual([...counts].sort((a, b) => a - b));
  });
});

test("clone status --watch of a clone that nobody hydrates ends at Ctrl-C", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), 65536);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const watch = startClone(["status", "copy.img", "--watch", "--json"], { cwd });
  await eventually("it has printed a status", () => watch.output().stdout.includes("\n"));
  watch.child.kill("SIGINT");
  expect((await watch.done).code).toBe(130);
});

test("two hydrations started at once: one does it, the other is told", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), 4 * MIB);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const args = ["hydrate", "copy.img", "--rate", "64K", "--progress", "none"];
  const started = [1, 2, 3].map(() => startClone(args, { cwd }));
  // The one must not be done before the others have found it at work.
  await eventually("all but one have ended", () => started.filter(({ child }) => child.exitCode === null).length <= 1);
  await hurry(cwd);
  const runs = await Promise.all(started.map(({ done }) => done));
  const done = runs.filter(({ code }) => code === 0);
  expect(done).toHaveLength(1);
  for (const run of runs) if (run.code !== 0) expectFailure(run, 4, /in use by process \d+/);
  await cloneOk(["verify", "copy.img"], { cwd });
});

test("two creations of one clone at once: one does it, and what it made stays", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), MIB);
  const runs = await Promise.all([1, 2, 3].map(() => clone(["create", "disk.img", "copy.img"], { cwd })));
  expect(runs.filter(({ code }) => code === 0)).toHaveLength(1);
  for (const run of runs) if (run.code !== 0) expect([1, 2, 4]).toContain(run.code);
  await cloneOk(["check", "copy.img.clone"], { cwd });
  await cloneOk(["hydrate", "copy.img"], { cwd });
  await cloneOk(["verify", "copy.img"], { cwd });
});

test.skipIf(noQemu !== undefined)(
  withReason("clone hydrate, verify and finalize refuse a destination that qemu writes to", noQemu),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), 65536);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    {
      await using qemu = await qemuIo(join(cwd, "copy.img"));
      for (const command of ["hydrate", "finalize"]) {
        const run = await clone([command, "copy.img"], { cwd });
        if (command === "finalize") expectFailure(run, 1, /missing/);
        else expectFailure(run, 4, new RegExp(`in use by process ${qemu.pid} \\(qemu-io\\)`));
      }
    }
    await cloneOk(["hydrate", "copy.img"], { cwd });
  },
);

test.skipIf(noLoopDevices !== undefined)(
  withReason("metadata or a destination behind a loop device is refused", noLoopDevices),
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), 65536);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    for (const file of ["copy.img", "copy.img.clone"]) {
      await using loop = await loopDevice(join(cwd, file));
      expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 4, new RegExp(`in use by loop device ${loop.path}`));
    }
    await cloneOk(["hydrate", "copy.img"], { cwd });
  },
);

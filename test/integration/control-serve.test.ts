// The commands beside a server: `clone status`, `tune`, `hydrate` and `finalize` of a clone that `clone serve` has open, and what
// they say when the server stops, dies, or has nothing left that it could copy.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { CloneStatus } from "../../src/clone/clone-status.ts";
import { failingSource, noFailingSource } from "../support/failing-source.ts";
import { holds, randomFile } from "../support/files.ts";
import { type CloneRun, clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { mountedTmpfs, noLoopDevices, scratchDirectory, withReason } from "../support/scratch.ts";
import { type Server, startServe } from "../support/serve.ts";

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;

interface Served extends AsyncDisposable {
  cwd: string;
  bytes: Buffer;
  server: Server;
  status(): Promise<CloneStatus>;
  run(...args: string[]): Promise<CloneRun>;
}

/** A clone in a directory of its own, being served. */
async function served(...args: string[]): Promise<Served> {
  const place = await scratchDirectory();
  const cwd = place.path;
  const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const server = await startServe({ cwd, clone: "copy.img", args });
  return {
    cwd,
    bytes,
    server,
    status: async () => oneJson<CloneStatus>(await cloneOk(["status", "copy.img", "--json"], { cwd })),
    run: (...words) => clone(words, { cwd }),
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
}

describe("clone status and tune of a clone that is served", () => {
  test("tell and change what only a server has", async () => {
    await using clone = await served("--rate", "256K", "--min-rate", "64K");
    const status = await clone.status();
    expect(status).toMatchObject({
      state: "hydrating",
      lockedBy: clone.server.pid,
      server: { pid: clone.server.pid, uri: clone.server.uri, connections: 0 },
      hydration: { rate: 256 * 1024, minRate: 64 * 1024, hydrateOnRead: "auto" },
    });
    const printed = await clone.run("tune", "copy.img", "--hydrate-on-read", "on", "--min-rate", "0", "--rate", "1M");
    expect(printed.stdout).toMatch(/^rate +1\.00 MiB\/s$/m);
    expect(printed.stdout).toMatch(/^min rate +0 B\/s$/m);
    expect(printed.stdout).toMatch(/^on read +on$/m);
    expect((await clone.status()).hydration).toMatchObject({ rate: MIB, minRate: 0, hydrateOnRead: "on" });
    const text = (await clone.run("status", "copy.img")).stdout;
    expect(text).toContain(`${clone.server.uri}, 0 connections`);
  });

  test("of one that hydrates nothing say so, and have it begin", async () => {
    await using clone = await served("--no-hydrate");
    expect(await clone.status()).toMatchObject({ state: "paused", hydratedRegions: 0 });
    await cloneOk(["tune", "copy.img", "enable_hydration"], { cwd: clone.cwd });
    await clone.server.hydrated();
    const watched = await clone.run("status", "copy.img", "--watch", "1", "--json");
    expect(oneJson<CloneStatus>(watched.stdout)).toMatchObject({ state: "hydrated", committedRegions: 64 });
  });
});

describe("clone hydrate of a clone that is served", () => {
  test("has its server hydrate it, as it is told, and follows it to the end", async () => {
    await using clone = await served("--no-hydrate", "--rate", "64K");
    const run = await clone.run(
      "hydrate",
      "copy.img",
      "--rate",
      "max",
      "--threshold",
      "8",
      "--progress",
      "json",
      "--json",
    );
    expect(run.code, run.stderr).toBe(0);
    const lines = run.stdout.trimEnd().split("\n");
    expect(JSON.parse(lines.at(-1) ?? "")).toMatchObject({
      state: "hydrated",
      regions: 64,
      hydratedRegions: 64,
      copiedBytes: SIZE,
      unreadable: [],
    });
    expect(JSON.parse(lines.at(-2) ?? "")).toMatchObject({ done: SIZE, total: SIZE });
    expect((await clone.status()).hydration).toMatchObject({ rate: null, threshold: 8 });
    expect(clone.server.process.child.exitCode).toBeNull();
    expect(await holds(join(clone.cwd, "copy.img"), clone.bytes)).toBe(true);
  });

  test("ends a pause, and a threshold of 0", async () => {
    await using clone = await served();
    await clone.server.tune("--pause");
    await clone.server.tune("--threshold", "0");
    const run = await clone.run("hydrate", "copy.img");
    expect(run.code, run.stderr).toBe(0);
    expect(run.stdout).toMatch(/^Hydrated: /);
  });

  test.for([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("only stops following at %s", async ([signal, code]) => {
    await using clone = await served("--rate", "64K");
    const following = startClone(["hydrate", "copy.img", "--progress", "json", "--json"], { cwd: clone.cwd });
    await eventually("it follows", () => following.output().stdout.includes("\n"));
    following.child.kill(signal);
    const run = await following.done;
    expect(run.code).toBe(code);
    expect(run.stderr).toContain(`Process ${clone.server.pid} goes on hydrating`);
    expect(await clone.status()).toMatchObject({ state: "hydrating", lockedBy: clone.server.pid });
  });

  test("refuses what is for a hydration of its own", async () => {
    await using clone = await served("--no-hydrate");
    for (const option of [
      ["--limit", "1M"],
      ["--verify"],
      ["--no-extents"],
      ["--source", "disk.img"],
      ["--destination=copy.img"],
      ["--accept-changed-source"],
      ["--retry", "3"],
      ["--max-errors", "1000"],
      ["--on-error", "skip"],
    ]) {
      const run = await clone.run("hydrate", "copy.img", ...option);
      const name = (option[0] as string).replace(/=.*/, "");
      expectFailure(run, 2, new RegExp(`Cannot use ${name}: "copy\\.img" is served by process`), /--rate/);
    }
    expect((await clone.status()).state).toBe("paused");
  });

  test("says so when the server is killed, and a hydration of its own goes on", async () => {
    await using clone = await served("--rate", "64K");
    const following = startClone(["hydrate", "copy.img", "--progress", "json"], { cwd: clone.cwd });
    await eventually("it follows", () => following.output().stderr.includes("{"));
    await clone.server.kill9();
    const run = await following.done;
    expect(run.code).toBe(1);
    expect(run.stderr).toMatch(
      new RegExp(`its server, process ${clone.server.pid}, is gone\\n.clone hydrate copy\\.img. goes on`),
    );
    expect((await clone.run("hydrate", "copy.img")).code).toBe(0);
    expect(await holds(join(clone.cwd, "copy.img"), clone.bytes)).toBe(true);
  });

  test("says so when the server is stopped", async () => {
    await using clone = await served("--rate", "64K");
    const following = startClone(["hydrate", "copy.img", "--progress", "json"], { cwd: clone.cwd });
    await eventually("it follows", () => following.output().stderr.includes("{"));
    expect((await clone.server.stop()).code).toBe(0);
    const run = await following.done;
    expect(run.code).toBe(1);
    expect(run.stderr).toContain("is gone");
  });

  test.for([["--exit-when-hydrated"], ["--finalize-when-hydrated"]])(
    "is done when a server with %j is, although that ends with it",
    async ([option]) => {
      // It begins when it is told to: it must not be done before that.
      await using clone = await served("--no-hydrate", "--rate", "2M", option as string);
      const run = await clone.run("hydrate", "copy.img");
      expect(run.code, run.stderr).toBe(0);
      expect(run.stdout).toMatch(/^Hydrated: /);
      expect((await clone.server.process.done).code).toBe(0);
      expect(await holds(join(clone.cwd, "copy.img"), clone.bytes)).toBe(true);
      expect(existsSync(join(clone.cwd, "copy.img.clone"))).toBe(option === "--exit-when-hydrated");
    },
  );

  test.skipIf(noLoopDevices !== undefined)(
    withReason("ends with 1 where the server makes no headway, and says why", noLoopDevices),
    async () => {
      await using place = await scratchDirectory();
      await using small = await mountedTmpfs(2 * MIB);
      const cwd = place.path;
      await randomFile(join(cwd, "disk.img"), SIZE);
      const copy = join(small.path, "copy.img");
      await cloneOk(["create", "disk.img", copy, "--metadata", "meta"], { cwd });
      await using server = await startServe({ cwd, clone: "meta" });
      expectFailure(
        await clone(["hydrate", "meta", "--progress", "none", "--quiet"], { cwd }),
        1,
        /ENOSPC/,
        /goes on serving/,
      );
      const text = await cloneOk(["status", "meta"], { cwd });
      expect(text).toMatch(/^stalled +.*ENOSPC/m);
      expect(server.process.child.exitCode).toBeNull();
    },
  );

  test.skipIf(noFailingSource !== undefined)(
    withReason("ends with 5 where only unreadable regions are left, and with 0 when they can be read", noFailingSource),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(join(cwd, "disk.img"), 16 * 65536);
      await using source = await failingSource(join(cwd, "disk.img"), { start: 5 * 65536, end: 7 * 65536 });
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      await using _server = await startServe({ cwd, clone: "copy.img", args: ["--retry", "0"] });
      const run = await clone(["hydrate", "copy.img", "--json"], { cwd });
      expect(run.code, run.stderr).toBe(5);
      expect(oneJson(run.stdout)).toMatchObject({ hydratedRegions: 14, unreadable: [[5, 7]] });
      expect(run.stderr).toContain("Cannot read 2 regions (5–6) of the source");
      expectFailure(await clone(["finalize", "copy.img"], { cwd }), 1, /could not be read/, /--accept-unreadable/);
      await source.heal();
      const again = await clone(["hydrate", "copy.img"], { cwd });
      expect(again.code, again.stderr).toBe(0);
    },
  );
});

describe("clone finalize of a clone that is served", () => {
  test.skipIf(noFailingSource !== undefined)(
    withReason("gives up what cannot be read if it is asked to, and says what that is", noFailingSource),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "disk.img"), 16 * 65536);
      await using source = await failingSource(join(cwd, "disk.img"), { start: 5 * 65536, end: 7 * 65536 });
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      await using _server = await startServe({ cwd, clone: "copy.img", args: ["--retry", "0"] });
      expect((await clone(["hydrate", "copy.img"], { cwd })).code).toBe(5);
      const run = await clone(["finalize", "copy.img", "--accept-unreadable", "--json"], { cwd });
      expect(run.code, run.stderr).toBe(5);
      expect(oneJson(run.stdout)).toMatchObject({ unreadable: [[5, 7]], metadata: null });
      bytes.fill(0, 5 * 65536, 7 * 65536);
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
  );

  test("is refused as long as regions are missing, and done by the server when none are", async () => {
    await using clone = await served("--no-hydrate");
    expectFailure(await clone.run("finalize", "copy.img"), 1, /64 of 64 regions .* missing/);
    expect((await clone.run("hydrate", "copy.img")).code).toBe(0);
    const run = await clone.run("finalize", "copy.img", "--json");
    expect(run.code, run.stderr).toBe(0);
    const destination = join(clone.cwd, "copy.img");
    expect(oneJson(run.stdout)).toEqual({ destination, size: SIZE, verified: false, unreadable: [], metadata: null });
    expect(existsSync(join(clone.cwd, "copy.img.clone"))).toBe(false);
    expect(await holds(destination, clone.bytes)).toBe(true);
  });

  test("keeps the metadata if it is asked to", async () => {
    await using clone = await served();
    await clone.server.hydrated();
    const run = await clone.run("finalize", "copy.img", "--keep-metadata");
    expect(run.code, run.stderr).toBe(0);
    await clone.server.process.done;
    expect(oneJson(await cloneOk(["status", "copy.img", "--json"], { cwd: clone.cwd }))).toMatchObject({
      state: "finalized",
    });
  });

  test("refuses what a server cannot do", async () => {
    await using clone = await served("--no-hydrate");
    for (const option of ["--verify", "--accept-changed-source", "--source=disk.img", "--destination=copy.img"]) {
      expectFailure(await clone.run("finalize", "copy.img", option), 2, /is served by process/);
    }
  });
});

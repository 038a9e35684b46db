// The control socket of a running `clone hydrate`: where it is, what it tells, what can be changed through it, and that neither a
// leftover nor anything else that stands in its place is in anybody's way.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, chownSync, existsSync, statSync } from "node:fs";
import { link, mkdir, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { CloneStatus } from "../../src/clone/clone-status.ts";
import { ControlClient } from "../../src/control/control-client.ts";
import { holds, randomFile } from "../support/files.ts";
import { asOrdinaryUser, noOrdinaryUser } from "../support/other-user.ts";
import {
  CLONE,
  clone,
  cloneOk,
  eventually,
  expectFailure,
  hurry,
  oneJson,
  type StartedClone,
  startClone,
} from "../support/run-clone.ts";
import { hasProgram, noLoopDevices, scratchDirectory, scratchLoopDevice, withReason } from "../support/scratch.ts";

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;
const SOCKET = "copy.img.clone.sock";

interface Hydrating extends AsyncDisposable {
  cwd: string;
  bytes: Buffer;
  /** Where the runtime directory of all commands is. */
  env: { XDG_RUNTIME_DIR: string };
  running: StartedClone;
  status(): Promise<CloneStatus>;
  tune(...args: string[]): Promise<string>;
  client: ControlClient;
}

/** `clone hydrate` of a clone in `cwd`, at a rate at which it takes minutes, once it answers at `socket`. */
async function hydrating(
  options: { args?: string[]; cwd?: string; socket?: (runtime: string) => string | Promise<string> } = {},
): Promise<Hydrating> {
  const place = await scratchDirectory();
  const cwd = options.cwd ?? place.path;
  const runtime = join(place.path, "run");
  await mkdir(runtime, { recursive: true });
  const env = { XDG_RUNTIME_DIR: runtime };
  const source = join(cwd, "disk.img");
  const bytes = existsSync(source) ? await readFile(source) : await randomFile(source, SIZE);
  if (!existsSync(join(cwd, "copy.img.clone"))) await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const args = options.args ?? ["copy.img", "--rate", "64K"];
  const running = startClone(["hydrate", ...args, "--progress", "none"], { cwd, env });
  let client: ControlClient | undefined;
  await eventually("it answers", async () => {
    if (running.child.exitCode !== null) throw new Error(running.output().stderr);
    client = new ControlClient((await options.socket?.(runtime)) ?? join(cwd, SOCKET));
    return (await client.status().catch(() => undefined)) !== undefined;
  });
  const name = args[0] as string;
  return {
    cwd,
    bytes,
    env,
    running,
    client: client as ControlClient,
    status: async () => oneJson<CloneStatus>(await cloneOk(["status", name, "--json"], { cwd, env })),
    tune: (...changes) => cloneOk(["tune", name, ...changes], { cwd, env }),
    async [Symbol.asyncDispose]() {
      running.child.kill("SIGKILL");
      await running.done;
      await place[Symbol.asyncDispose]();
    },
  };
}

/** Lets it run to its end, which has to be a good one. */
async function finish(hydration: Hydrating): Promise<void> {
  await hydration.tune("--rate", "max", "--resume");
  await finishWell(hydration);
}

/** Waits for the end, which has to be a good one. */
async function finishWell({ running, cwd, bytes }: Hydrating): Promise<void> {
  const run = await running.done;
  expect(run.code, run.stderr).toBe(0);
  expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
}

/** The name of the socket in a runtime directory. */
async function socketIn(runtime: string): Promise<string> {
  const names = await readdir(join(runtime, "clone")).catch(() => []);
  return join(runtime, "clone", names.find((name) => name.endsWith(".sock")) ?? "none");
}

describe("clone status of a running clone hydrate", () => {
  test("tells its rate, threshold and batch size, who it is, and when it will be done", async () => {
    await using clone = await hydrating({
      args: ["copy.img", "--rate", "64K", "--threshold", "6", "--batch-size", "2"],
    });
    const first = await clone.status();
    expect(first).toMatchObject({
      state: "hydrating",
      mode: "rw",
      server: null,
      failure: null,
      lockedBy: clone.running.pid,
      hydration: { enabled: true, rate: 64 * 1024, threshold: 6, batchSize: 2, minRate: null, hydrateOnRead: null },
    });
    await eventually("it knows when it will be done", async () => {
      const { hydration } = await clone.status();
      return hydration.etaSeconds !== null && hydration.bytesPerSecond > 0 && hydration.copiedBytes > 0;
    });
    const text = await cloneOk(["status", "copy.img", "--map"], { cwd: clone.cwd, env: clone.env });
    expect(text).toMatch(/^hydration +\S+ \SiB\/s, ETA \S+/m);
    expect(text).toMatch(/^limits +at most 64\.0 KiB\/s, threshold 6, batch size 2$/m);
    expect(text).toMatch(new RegExp(`^control +${join(clone.cwd, SOCKET)}$`, "m"));
    expect(text).toContain("█");
    const dm = await cloneOk(["status", "copy.img", "--dm"], { cwd: clone.cwd, env: clone.env });
    expect(dm).toMatch(/ 0 4 hydration_threshold 6 hydration_batch_size 2 rw\n$/);
  });

  test("is what curl gets", async () => {
    await using clone = await hydrating();
    const status = (await clone.client.status()) as CloneStatus;
    expect(status.metadata).toEqual((await clone.status()).metadata);
    const { dev, ino } = statSync(join(clone.cwd, "copy.img.clone"), { bigint: true });
    expect(status.metadata.id).toBe(`${dev >> 8n}:${dev & 0xffn}-${ino}`);
  });

  test("is the same by metadata, destination and symbolic links to them", async () => {
    await using clone = await hydrating();
    const { cwd, env } = clone;
    await symlink("copy.img.clone", join(cwd, "m"));
    await mkdir(join(cwd, "d"));
    await symlink("../copy.img", join(cwd, "d", "c"));
    for (const name of ["copy.img.clone", "copy.img", "m", "d/c"]) {
      const status = oneJson<CloneStatus>(await cloneOk(["status", name, "--json"], { cwd, env }));
      expect(status.hydration, name).toMatchObject({ rate: 64 * 1024 });
    }
  });
});

describe("clone tune", () => {
  test("sets what holds for the next process too, until it is set back or an option says otherwise", async () => {
    await using first = await hydrating();
    await first.tune("--rate", "128K", "--threshold", "4");
    first.running.child.kill("SIGTERM");
    await first.running.done;
    const again = { args: ["copy.img"], cwd: first.cwd };
    await using second = await hydrating(again);
    expect(second.running.output().stderr).toContain("as it was tuned before: rate 128 KiB/s, threshold 4");
    expect((await second.status()).hydration).toMatchObject({ rate: 131072, threshold: 4 });
    await second.tune("--threshold", "auto", "--pause");
    second.running.child.kill("SIGTERM");
    await second.running.done;
    await using third = await hydrating({ ...again, args: ["copy.img", "--rate", "64K"] });
    expect(third.running.output().stderr).not.toContain("tuned before");
    expect((await third.status()).hydration).toMatchObject({ rate: 65536, enabled: true });
  });

  test("changes a running hydration at once, and prints what holds then", async () => {
    await using clone = await hydrating();
    const printed = await clone.tune("--rate", "1M", "--threshold", "4", "--batch-size", "3");
    expect(printed).toBe("paused      no\nrate        1.00 MiB/s\nthreshold   4\nbatch size  3\n");
    expect(await clone.tune()).toBe(printed);
    expect((await clone.status()).hydration).toMatchObject({ rate: MIB, threshold: 4, batchSize: 3 });
    expect(await clone.tune("--rate", "0", "--threshold", "auto", "--batch-size", "auto")).toMatch(
      /^rate +unlimited$/m,
    );
    await finishWell(clone);
  });

  test("pauses and resumes", async () => {
    await using clone = await hydrating({ args: ["copy.img", "--rate", "256K"] });
    expect(await clone.tune("--pause")).toMatch(/^paused +yes$/m);
    await eventually("copies in flight have ended", async () => (await clone.status()).hydratingRegions === 0);
    await clone.tune("--rate", "max");
    const { hydratedRegions, state, hydration } = await clone.status();
    expect(state).toBe("paused");
    expect(hydration).toMatchObject({ enabled: false });
    await new Promise((resolve) => setTimeout(resolve, 300)); // enough for all of it
    expect((await clone.status()).hydratedRegions).toBe(hydratedRegions);
    expect(clone.running.child.exitCode).toBeNull();
    await finish(clone);
  });

  test("understands dm-clone's messages, in capitals or not", async () => {
    await using clone = await hydrating({ args: ["copy.img", "--rate", "256K"] });
    await clone.tune("DISABLE_hydration", "now");
    expect((await clone.status()).state).toBe("paused");
    await clone.tune("hydration_threshold", "7");
    await clone.tune("Hydration_Batch_Size", "0");
    expect((await clone.status()).hydration).toMatchObject({ enabled: false, threshold: 7, batchSize: 1 });
    await clone.tune("enable_hydration", "or", "not");
    expect((await clone.status()).state).toBe("hydrating");
    await clone.tune("hydration_threshold", "0");
    expect((await clone.status()).state).toBe("paused");
    await eventually("copies in flight have ended", async () => (await clone.status()).hydratingRegions === 0);
    await clone.tune("hydration_threshold", "auto");
    await finish(clone);
  });

  test.for([
    [["hydration_threshold"], /takes one number/],
    [["hydration_threshold", "-1"], /not a number/],
    [["hydration_threshold", "0x10"], /not a number/],
    [["hydration_batch_size", "4294967296"], /not a number/],
    [["hydration_threshold", "1", "2"], /takes one number/],
    [["discard"], /there is no such one/],
    [["enable_hydration", "--rate", "1M"], /does not go with options/],
    [["--pause", "--resume"], /does not go with/],
    [["--threshold", "many"], /not a whole number/],
    [["--batch-size", "0"], /at least 1/],
    [["--min-rate", "max"], /--min-rate/],
  ] as const)("refuses %j", async ([args, message]) => {
    await using place = await scratchDirectory();
    expectFailure(await clone(["tune", "copy.img", ...args], { cwd: place.path }), 2, message);
  });

  test("refuses what only a server of clients can change", async () => {
    await using running = await hydrating();
    for (const args of [
      ["--hydrate-on-read", "on"],
      ["--min-rate", "1M"],
    ]) {
      const run = await clone(["tune", "copy.img", ...args], { cwd: running.cwd, env: running.env });
      expectFailure(run, 2, /it is for clients/);
    }
  });

  test("of a clone that nothing has open says what would", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    expectFailure(await clone(["tune", "copy.img"], { cwd }), 1, /neither that file/);
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    expectFailure(await clone(["tune", "copy.img", "--rate", "1M"], { cwd }), 1, /nothing hydrates/, /clone hydrate/);
  });
});

describe("What a running hydration is not asked for", () => {
  test("finalize and stop are refused at its socket, and it goes on", async () => {
    await using running = await hydrating();
    const { client, cwd, env } = running;
    await expect(
      client.finalize({ keepMetadata: false, acceptUnreadable: false, withoutSource: false }),
    ).rejects.toMatchObject({
      code: "busy",
      message: /it is being hydrated, not served/,
    });
    for (const command of ["hydrate", "finalize"]) {
      expectFailure(await clone([command, "copy.img"], { cwd, env }), 4, new RegExp(`process ${running.running.pid} `));
    }
    await finish(running);
  });
});

describe("The control socket", () => {
  test("is for its user alone, and gone when the process ends, however it is asked to", async () => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      await using clone = await hydrating();
      const path = join(clone.cwd, SOCKET);
      expect(statSync(path).mode % 0o1000).toBe(0o600);
      clone.running.child.kill(signal);
      await clone.running.done;
      expect(existsSync(path)).toBe(false);
      expect((await readdir(clone.cwd)).filter((name) => name.startsWith("."))).toEqual([]);
    }
  });

  test("that a killed process has left is in nobody's way, and the next one takes its place", async () => {
    await using killed = await hydrating();
    const { cwd, env } = killed;
    killed.running.child.kill("SIGKILL");
    await killed.running.done;
    const path = join(cwd, SOCKET);
    const { ino } = statSync(path);
    expect(await killed.status()).toMatchObject({ state: "idle", lockedBy: null, hydration: { rate: null } });
    expectFailure(await clone(["tune", "copy.img"], { cwd, env }), 1, /nothing hydrates/);
    await using next = await hydrating({ cwd });
    expect(statSync(path).ino).not.toBe(ino);
    expect(await next.status()).toMatchObject({ state: "hydrating", lockedBy: next.running.pid });
    await finish(next);
    expect(existsSync(path)).toBe(false);
  });

  test("that a killed process has left goes with the metadata", async () => {
    await using killed = await hydrating();
    const { cwd, env } = killed;
    killed.running.child.kill("SIGKILL");
    await killed.running.done;
    expect(existsSync(join(cwd, SOCKET))).toBe(true);
    await cloneOk(["delete", "copy.img", "--yes"], { cwd, env });
    expect((await readdir(cwd)).sort()).toEqual(["copy.img", "disk.img", "run"]);
  });

  test("does not take the place of a file, and leaves it as it is", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, SOCKET);
    await writeFile(path, "mine");
    await using clone = await hydrating({ cwd: place.path, socket: socketIn });
    expect((await clone.status()).hydration).toMatchObject({ rate: 64 * 1024 });
    await finish(clone);
    expect(await holds(path, Buffer.from("mine"))).toBe(true);
    expect(await readdir(join(clone.env.XDG_RUNTIME_DIR, "clone"))).toEqual([]);
  });

  test("does not take the place of one that another process answers, which is not believed either", async () => {
    await using place = await scratchDirectory();
    const other = await mute(join(place.path, SOCKET));
    try {
      await using clone = await hydrating({ cwd: place.path, socket: socketIn });
      expect((await clone.status()).hydration).toMatchObject({ rate: 64 * 1024 });
      await clone.client.tune({ rate: null });
      await finishWell(clone);
      expect(existsSync(join(place.path, SOCKET))).toBe(true);
    } finally {
      other.close();
    }
  });

  test("of another clone is not believed, under whatever name it stands", async () => {
    await using clone = await hydrating();
    const { cwd, env } = clone;
    await cloneOk(["create", "disk.img", "other.img"], { cwd });
    await link(join(cwd, SOCKET), join(cwd, "other.img.clone.sock"));
    const status = oneJson<CloneStatus>(await cloneOk(["status", "other.img", "--json"], { cwd, env }));
    expect(status).toMatchObject({ state: "idle", lockedBy: null, hydratedRegions: 0 });
  });

  test("is removed at the end only if it still is the process's own", async () => {
    await using clone = await hydrating();
    const path = join(clone.cwd, SOCKET);
    await rm(path);
    await writeFile(path, "somebody else's");
    clone.running.child.kill("SIGTERM");
    await clone.running.done;
    expect(await holds(path, Buffer.from("somebody else's"))).toBe(true);
  });

  test("is in the runtime directory where the metadata's path is too long for one", async () => {
    await using place = await scratchDirectory();
    const cwd = join(place.path, "a".repeat(100));
    await mkdir(cwd);
    await using clone = await hydrating({ cwd, socket: socketIn });
    expect(statSync(join(clone.env.XDG_RUNTIME_DIR, "clone")).mode % 0o1000).toBe(0o700);
    expect((await clone.status()).hydration).toMatchObject({ rate: 64 * 1024 });
    await finish(clone);
    expect(existsSync(join(cwd, SOCKET))).toBe(false);
  });

  test("is not made in a runtime directory that others can write to", async () => {
    await using place = await scratchDirectory();
    await writeFile(join(place.path, SOCKET), "taken");
    const shared = join(place.path, "shared");
    await mkdir(join(shared, "clone"), { recursive: true });
    chmodSync(join(shared, "clone"), 0o777);
    await randomFile(join(place.path, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd: place.path });
    const env = { XDG_RUNTIME_DIR: shared };
    const run = await clone(["hydrate", "copy.img", "--verbose"], { cwd: place.path, env });
    expect(run.code).toBe(0);
    expect(run.stderr).toContain(`no control socket at ${join(shared, "clone")}`);
  });

  test.skipIf(noLoopDevices !== undefined)(
    withReason("of metadata on a block device is named by the device's own number", noLoopDevices),
    async () => {
      await using place = await scratchDirectory();
      await using device = await scratchLoopDevice(4 * MIB);
      const cwd = place.path;
      await randomFile(join(cwd, "disk.img"), SIZE);
      await cloneOk(["create", "disk.img", "copy.img", "--metadata", device.path], { cwd });
      await symlink(device.path, join(cwd, "copy.img.clone")); // the destination names it too
      const args = [device.path, "--rate", "64K"];
      await using clone = await hydrating({ cwd, args, socket: socketIn });
      const { rdev } = statSync(device.path);
      expect(clone.client.path).toMatch(new RegExp(`/clone/${Math.floor(rdev / 256)}:${rdev % 256}\\.sock$`));
      expect((await clone.status()).hydration).toMatchObject({ rate: 64 * 1024 });
      await finish(clone);
    },
  );

  test.skipIf(noOrdinaryUser !== undefined)(
    withReason("is done without where none can be made, which only --verbose tells", noOrdinaryUser),
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(join(cwd, "disk.img"), MIB);
      await cloneOk(["create", "disk.img", "copy.img"], { cwd });
      chmodSync(cwd, 0o755);
      const user = asOrdinaryUser.uid ?? (process.getuid?.() as number);
      for (const name of ["disk.img", "copy.img", "copy.img.clone"]) chownSync(join(cwd, name), user, user);
      chmodSync(cwd, 0o555);
      const env = { XDG_RUNTIME_DIR: "/nowhere" };
      const quiet = await clone(["hydrate", "copy.img", "--limit", "64K"], { cwd, env, ...asOrdinaryUser });
      expect(quiet.code, quiet.stderr).toBe(0);
      expect(quiet.stderr).not.toContain("control");
      const run = await clone(["hydrate", "copy.img", "--verbose"], { cwd, env, ...asOrdinaryUser });
      expect(run.code, run.stderr).toBe(0);
      expect(run.stderr).toMatch(/^no control socket at .*copy\.img\.clone\.sock: .*EACCES/m);
      expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
    },
  );

  test.skipIf(asOrdinaryUser.uid === undefined || noOrdinaryUser !== undefined)(
    "of another user is not believed, and root's is not open to others",
    async () => {
      await using running = await hydrating();
      const { cwd, env } = running;
      chmodSync(cwd, 0o755);
      chmodSync(join(cwd, "copy.img.clone"), 0o644);
      const status = await clone(["status", "copy.img", "--json"], { cwd, env, ...asOrdinaryUser });
      expect(oneJson<CloneStatus>(status.stdout)).toMatchObject({ state: "hydrating", hydration: { rate: null } });
      const tune = await clone(["tune", "copy.img", "--pause"], { cwd, env, ...asOrdinaryUser });
      expectFailure(tune, 1, /EACCES/);
      chownSync(running.client.path, asOrdinaryUser.uid as number, asOrdinaryUser.uid as number);
      expect((await running.status()).hydration.rate).toBeNull();
    },
  );
});

test("clone status of a process that does not answer warns, and shows what was last committed", async () => {
  await using running = await hydrating({ args: ["copy.img", "--rate", "1M"] });
  await eventually("something is committed", async () => (await running.status()).committedRegions > 0);
  running.running.child.kill("SIGSTOP");
  const run = await clone(["status", "copy.img", "--json"], { cwd: running.cwd, env: running.env });
  running.running.child.kill("SIGCONT");
  expect(run.code).toBe(0);
  expect(run.stderr).toMatch(/^clone: Warning: This is what was last committed: .* does not answer\. .*\n$/);
  expect(oneJson<CloneStatus>(run.stdout)).toMatchObject({ state: "hydrating", hydration: { rate: null } });
});

const noTerminal = hasProgram("script") ? undefined : "needs script";
test.skipIf(noTerminal !== undefined)(
  withReason("clone status --watch redraws a terminal in place, and leaves it as it was", noTerminal),
  async () => {
    await using clone = await hydrating();
    const watching = `'${process.execPath}' '${CLONE}' status copy.img --watch 1`;
    const terminal = spawn("script", ["--quiet", "--return", "--command", `stty rows 24; ${watching}`, "/dev/null"], {
      cwd: clone.cwd,
      env: { ...process.env, ...clone.env },
      stdio: ["pipe", "pipe", "inherit"],
    });
    let shown = "";
    terminal.stdout.setEncoding("utf8").on("data", (text: string) => {
      shown += text;
    });
    await eventually("it has drawn three times", () => shown.split("hydrating").length > 3);
    await clone.tune("--rate", "max");
    await finishWell(clone);
    const [code] = (await once(terminal, "close")) as [number];
    expect(code).toBe(0);
    const rows = shown.slice(0, shown.indexOf("control")).split("\n").length;
    expect(shown).toContain(`\u001b[${rows}A`);
    expect(shown.lastIndexOf("\u001b[?7h")).toBeGreaterThan(shown.lastIndexOf("\u001b[?7l"));
    expect(shown).toMatch(/state +.*hydrated/);
  },
);

test("clone copy can be tuned too, and leaves nothing behind", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
  const copying = startClone(["copy", "disk.img", "copy.img", "--rate", "64K"], { cwd });
  await hurry(cwd);
  expect((await copying.done).code).toBe(0);
  expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  expect((await readdir(cwd)).sort()).toEqual(["copy.img", "disk.img"]);
});

/** A server at a socket that takes connections and says nothing. */
async function mute(path: string): Promise<Server> {
  const server = createServer(() => {});
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return server;
}

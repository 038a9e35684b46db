// Programs that serve: how they are started, what of their end is told, and that none of them outlives us. The programs here
// are scripts; test/interop starts qemu-nbd and nbdkit.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { type Clock, systemClock } from "../../../src/base/clock.ts";
import { ChangedError, CloneError, DeviceError } from "../../../src/base/errors.ts";
import { LaunchError } from "../../../src/device/child-program.ts";
import { ChildServer, type ChildServerOptions } from "../../../src/device/child-server.ts";
import { GREETER, nodeProgram } from "../../support/child-programs.ts";
import { eventually } from "../../support/run-clone.ts";
import { scratchDirectory } from "../../support/scratch.ts";

/** What whoever listens says to one who connects. */
async function hear(path: string, signal?: AbortSignal): Promise<string> {
  const socket = connect(path);
  let said = "";
  socket.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  socket.on("error", () => {}); // it closes then
  signal?.addEventListener("abort", () => socket.destroy());
  await once(socket, "close");
  if (said === "") throw new CloneError("failed", "Cannot connect: it hung up");
  return said;
}

/** A server that was connected to once, and what it said then. */
function start(options: Partial<ChildServerOptions> & { words: readonly string[] }) {
  return ChildServer.start({ name: "disk", ...options }, async (path, signal) => ({
    path,
    said: await hear(path, signal),
  }));
}

/** A clock by which the pauses before a program is started again are over at once, and no other time is. */
const WITHOUT_PAUSES: Clock = {
  ...systemClock,
  sleep: (ms, signal) => systemClock.sleep([100, 200, 400].includes(ms) ? 1 : ms, signal),
};

async function failure(options: Partial<ChildServerOptions> & { words: readonly string[] }): Promise<CloneError> {
  const error = await start(options).then(
    () => expect.fail("it was opened"),
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(CloneError);
  return error as CloneError;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

describe("ChildServer.start()", () => {
  test("hands the program a socket that nothing in the file system leads to, and its own process id", async () => {
    await using directory = await scratchDirectory();
    const script = nodeProgram(`
      const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES, NOTIFY_SOCKET, MARK } = process.env;
      const told = JSON.stringify({ own: LISTEN_PID === String(process.pid), LISTEN_FDS, LISTEN_FDNAMES, NOTIFY_SOCKET, MARK });
      require("node:net").createServer((client) => client.end(told)).listen({ fd: socket });`);
    const { XDG_RUNTIME_DIR: before } = process.env;
    Object.assign(process.env, {
      XDG_RUNTIME_DIR: directory.path,
      NOTIFY_SOCKET: "/x",
      LISTEN_FDNAMES: "y",
      MARK: "z",
    });
    try {
      const { server, opened } = await start({ words: script });
      await using _ = server;
      expect(JSON.parse(opened.said)).toEqual({ own: true, LISTEN_FDS: "1", MARK: "z" });
      expect(readdirSync(directory.path)).toEqual([]);
      expect(await hear(opened.path)).toBe(opened.said);
    } finally {
      for (const name of ["NOTIFY_SOCKET", "LISTEN_FDNAMES", "MARK"]) delete process.env[name];
      if (before === undefined) delete process.env.XDG_RUNTIME_DIR;
      else process.env.XDG_RUNTIME_DIR = before;
    }
  });

  test("gives the words to the program as they are, through no shell", async () => {
    const words = ["-leading", "a b", "$HOME", "`id`", "*", "new\nline", "'\"", "ü", ""];
    const script = nodeProgram(`
      require("node:net").createServer((client) => client.end(JSON.stringify(process.argv.slice(1)))).listen({ fd: socket });`);
    const { server, opened } = await start({ words: [...script, "--", ...words] });
    await using _ = server;
    expect(JSON.parse(opened.said)).toEqual(words);
  });

  test("gives descriptors to the program in order, and none of ours besides", async () => {
    await using directory = await scratchDirectory();
    writeFileSync(`${directory.path}/a`, "first");
    writeFileSync(`${directory.path}/b`, "second");
    const inherit = ["a", "b"].map((name) => openSync(`${directory.path}/${name}`, "r"));
    const secret = openSync(`${directory.path}/a`, "r");
    const script = nodeProgram(`
      const { readFileSync, readdirSync, readlinkSync } = require("node:fs");
      const files = readdirSync("/proc/self/fd").map((fd) => { try { return readlinkSync("/proc/self/fd/" + fd) } catch { return "" } });
      const told = readFileSync(4, "utf8") + " " + readFileSync(5, "utf8") + " " + files.filter((file) => file.endsWith("/a")).length;
      require("node:net").createServer((client) => client.end(told)).listen({ fd: socket });`);
    try {
      const { server, opened } = await start({ words: script, inherit });
      await using _ = server;
      expect(opened.said).toBe("first second 1");
    } finally {
      for (const fd of [...inherit, secret]) closeSync(fd);
    }
  });

  test("a program that is not installed, or cannot be run, is told as such", async () => {
    const missing = await failure({ words: ["no-such-program-at-all"] });
    expect(missing).toBeInstanceOf(LaunchError);
    expect(missing).toMatchObject({
      errno: "ENOENT",
      message: "Cannot run no-such-program-at-all: it is not installed",
    });
    expect(await failure({ words: ["/etc/passwd"] })).toMatchObject({ errno: "EACCES" });
    await expect(failure({ words: ["/"] })).resolves.toBeInstanceOf(LaunchError);
  });

  test("the last words of a program that ends at once are the error", async () => {
    const script = nodeProgram(
      'console.log("rubbish"); console.error("\\u001b[31mno such image\\u001b[0m"); process.exitCode = 3;',
    );
    const error = await failure({ words: script });
    expect(error).toBeInstanceOf(DeviceError);
    expect(error.message).toBe('Cannot open "disk": node ended with status 3: no such image');
  });

  test("a program that ends by a signal, saying nothing, is an error too, and one that succeeds in that", async () => {
    const killed = await failure({ words: nodeProgram('process.kill(process.pid, "SIGKILL")') });
    expect(killed.message).toBe('Cannot open "disk": node was ended by SIGKILL');
    expect((await failure({ words: ["true"] })).message).toBe('Cannot open "disk": true ended with status 0');
  });

  test("what a program says that refuses its client is the hint", async () => {
    const script = nodeProgram(
      'require("node:net").createServer((client) => { console.error("no disk in the drive"); client.destroy(); }).listen({ fd: socket });',
    );
    const error = await failure({ words: script });
    expect(error).toMatchObject({ message: "Cannot connect: it hung up", hint: "node says: no disk in the drive" });
  });

  test("a program that never answers is given up, and is gone", async () => {
    const startTimeoutMs = 3600_000;
    const told = new AbortController();
    let pid = 0;
    const onOutput = (line: string): void => {
      pid = Number(line);
      told.abort();
    };
    // The hour that it has is over once it has told who it is.
    const clock: Clock = {
      ...systemClock,
      sleep(ms, signal) {
        if (ms !== startTimeoutMs) return systemClock.sleep(ms, signal);
        return systemClock.sleep(ms, AbortSignal.any([told.signal, ...(signal === undefined ? [] : [signal])]));
      },
    };
    const script = nodeProgram("console.log(process.pid); setInterval(() => {}, 1e6);");
    const error = await failure({ words: script, startTimeoutMs, onOutput, clock });
    expect(error.message).toBe('Cannot open "disk": node does not answer within 3600 s');
    expect(error).toMatchObject({ errno: "ETIMEDOUT" });
    expect(pid).toBeGreaterThan(1);
    expect(isAlive(pid)).toBe(false);
  });

  test("an aborted start ends the program, and is no other error", async () => {
    const abort = new AbortController();
    let pid = 0;
    const onOutput = (line: string): void => {
      pid = Number(line);
      abort.abort(new CloneError("failed", "Cannot go on: interrupted"));
    };
    const script = nodeProgram("console.log(process.pid); setInterval(() => {}, 1e6);");
    const error = await failure({ words: script, signal: abort.signal, onOutput });
    expect(error.message).toContain("interrupted");
    expect(isAlive(pid)).toBe(false);
  });

  test("whatever a program prints, what is kept of it is little", async () => {
    const notes: string[] = [];
    const script = nodeProgram(`
      process.stderr.write("x".repeat(5e6)); for (let i = 0; i < 1e4; i++) process.stderr.write("line " + i + "\\n");
      process.stderr.write("the end without a newline"); process.exitCode = 1;`);
    const error = await failure({ words: script, onOutput: (line) => notes.push(line) });
    expect(error.message).toMatch(/: the end without a newline$/);
    expect(Math.max(...notes.map((line) => line.length))).toBeLessThanOrEqual(500);
  });
});

describe("ChildServer", () => {
  test("starts a program again that was killed; the socket stays where it was", async () => {
    const notes: string[] = [];
    const { server, opened } = await start({
      words: GREETER,
      onNote: (line) => notes.push(line),
      clock: WITHOUT_PAUSES,
    });
    await using _ = server;
    for (let kill = 0; kill < 3; kill++) {
      const before = server.pid as number;
      process.kill(before, "SIGKILL");
      await eventually("another one answers", async () => {
        const said = await hear(opened.path).catch(() => undefined);
        return said !== undefined && Number.parseInt(said, 10) !== before;
      });
      await eventually("it is known to run", () => server.failure === undefined);
    }
    expect(notes.filter((line) => line.includes("was ended by SIGKILL"))).toHaveLength(3);
    expect(notes.filter((line) => line.includes("was started again"))).toHaveLength(3);
  });

  test("while nobody serves, its failure tells why, and nobody answers", async () => {
    await using directory = await scratchDirectory();
    const flag = `${directory.path}/flag`;
    const script = nodeProgram(`
      if (require("node:fs").existsSync("${flag}")) { console.error("the cluster is gone"); process.exit(5); }
      ${GREETER[2]?.slice("const socket = 3;".length)}`);
    const { server, opened } = await start({ words: script });
    await using _ = server;
    writeFileSync(flag, "");
    process.kill(server.pid as number, "SIGTERM");
    await eventually("the failure is told", () => server.failure?.message.includes("the cluster is gone") ?? false);
    expect(server.failure).toMatchObject({ away: true });
    expect(server.failure?.message).toBe('Cannot read "disk": node ended with status 5: the cluster is gone');
    rmSync(flag);
    await eventually("it is back", async () => {
      server.want();
      return (await hear(opened.path).catch(() => "")) !== "";
    });
  });

  test("is not started again where it would serve something else", async () => {
    let isOther = false;
    const check = async (): Promise<void> => {
      const difference = "it has changed";
      if (isOther) throw new ChangedError(`Cannot read "disk" any more: ${difference}`, { difference });
    };
    const { server, opened } = await start({ words: GREETER, check, clock: WITHOUT_PAUSES });
    await using _ = server;
    isOther = true;
    process.kill(server.pid as number, "SIGKILL");
    await eventually("it is given up", () => server.failure instanceof ChangedError);
    await expect(hear(opened.path)).rejects.toThrow();
  });

  test("disposed of, it has ended what it started, and what that has started", async () => {
    const script = nodeProgram(`
      const { pid } = require("node:child_process").spawn("sleep", ["1000"]);
      require("node:net").createServer((client) => client.end(process.pid + " " + pid)).listen({ fd: socket });`);
    const { server, opened } = await start({ words: script });
    const pids = opened.said.split(" ").map(Number);
    expect(pids.map(isAlive)).toEqual([true, true]);
    await server[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
    await eventually("both are gone", () => !pids.some(isAlive));
    await expect(hear(opened.path)).rejects.toThrow();
  });

  test("what a program leaves behind that is killed goes with it, before another one is started", async () => {
    const script = nodeProgram(`
      const { pid } = require("node:child_process").spawn("sleep", ["1000"]);
      require("node:net").createServer((client) => client.end(process.pid + " " + pid)).listen({ fd: socket });`);
    const { server, opened } = await start({ words: script });
    await using _ = server;
    const [program, orphan] = opened.said.split(" ").map(Number) as [number, number];
    process.kill(program, "SIGKILL");
    await eventually("another one answers", async () => {
      const said = await hear(opened.path).catch(() => "");
      return said !== "" && !said.startsWith(`${program} `);
    });
    expect(isAlive(orphan)).toBe(false);
  });

  test("kills a program that does not listen to SIGTERM", async () => {
    const script = nodeProgram(`process.on("SIGTERM", () => {}); ${GREETER[2]?.slice("const socket = 3;".length)}`);
    const hasty: Clock = { ...systemClock, sleep: (ms, signal) => systemClock.sleep(ms === 5000 ? 50 : ms, signal) };
    const { server, opened } = await start({ words: script, clock: hasty });
    await server[Symbol.asyncDispose]();
    expect(isAlive(Number.parseInt(opened.said, 10))).toBe(false);
  });

  test("a program does not outlive us, whatever ends us", async () => {
    const module = fileURLToPath(new URL("../../../dist/device/child-server.js", import.meta.url));
    const script = `
      import { connect } from ${JSON.stringify("node:net")};
      const { ChildServer } = await import(${JSON.stringify(module)});
      const open = (path) => new Promise((done) => connect(path).once("data", (said) => done(String(said))));
      const { opened } = await ChildServer.start({ name: "disk", words: ${JSON.stringify(GREETER)} }, open);
      console.log(opened.trim());
      setInterval(() => {}, 1e6);`;
    const ours = spawn(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [said] = (await once(ours.stdout, "data")) as [Buffer];
    const pid = Number.parseInt(String(said), 10);
    expect(isAlive(pid)).toBe(true);
    ours.kill("SIGKILL");
    await once(ours, "exit");
    await eventually("the program has ended", () => !isAlive(pid));
  });

  test("a program is in a session of its own, so that a terminal's Ctrl-C is ours alone", async () => {
    const { server } = await start({ words: GREETER });
    await using _ = server;
    const [, session] = /^\d+ \(.*\) \S \d+ \d+ (\d+)/.exec(readFileSync(`/proc/${server.pid}/stat`, "utf8")) ?? [];
    expect(session).toBe(String(server.pid));
    expect(existsSync(`/proc/${server.pid}`)).toBe(true);
  });
});

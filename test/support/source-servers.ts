/** Servers that have a disk image, started by the tests that clone from them, or to them. */
import { type ChildProcess, spawn } from "node:child_process";
import { readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { eventually } from "./run-clone.ts";

/** A program at work. Disposed of, it is killed. */
export interface Running extends AsyncDisposable {
  readonly child: ChildProcess;
  /** What it has said on standard error so far. */
  stderr(): string;
  /** Ends it; resolves when it has ended. */
  kill(signal?: NodeJS.Signals): Promise<void>;
}

/** Starts a program in the foreground; resolves when `ready`, and rejects with its words where it ends before. */
export async function startProgram(
  words: readonly string[],
  { cwd, ready, env }: { cwd: string; ready: () => boolean | Promise<boolean>; env?: Record<string, string> },
): Promise<Running> {
  const [command = "", ...args] = words;
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  let ended = false;
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    said = (said + text).slice(-65536);
  });
  const end = new Promise<void>((resolve) => {
    child.once("error", (error) => {
      said += error.message;
      ended = true;
      resolve();
    });
    child.once("exit", () => {
      ended = true;
      resolve();
    });
  });
  const kill = async (signal: NodeJS.Signals = "SIGKILL"): Promise<void> => {
    if (!ended) child.kill(signal);
    await end;
  };
  try {
    await eventually(`${command} is ready`, async () => ended || (await ready()));
    if (ended) throw new Error(`${words.join(" ")} ended: ${said}`);
  } catch (error) {
    await kill();
    throw error;
  }
  return { child, stderr: () => said, kill, [Symbol.asyncDispose]: () => kill() };
}

/** Starts a server on a unix socket that it makes itself, replacing what stands there. */
export async function startAtSocket(words: readonly string[], cwd: string, socket: string): Promise<Running> {
  await rm(socket, { force: true });
  return await startProgram(words, { cwd, ready: () => listensAt(socket) });
}

/**
 * Whether somebody listens at a unix socket, by the path that it was bound to: between the moment its file
 * appears and that, calls are refused. Asked of the kernel: a call would count as a client.
 */
async function listensAt(socket: string): Promise<boolean> {
  const table = await readFile("/proc/net/unix", "utf8");
  return table.split("\n").some((line) => {
    const [, , , flags = "", , , , path = ""] = line.split(/ +/);
    return path === socket && (Number.parseInt(flags, 16) & ACCEPTS) !== 0;
  });
}

/** __SO_ACCEPTCON of include/uapi/linux/net.h, in the flags of /proc/net/unix. */
const ACCEPTS = 1 << 16;

/** `nbdkit` in the foreground on a unix socket. `words` are its options, plugin and parameters. */
export function startNbdkit(cwd: string, socket: string, ...words: string[]): Promise<Running> {
  return startAtSocket(["nbdkit", "-f", "-U", socket, ...words], cwd, socket);
}

/** `nbdkit` in the foreground at a TCP port of the loopback interface. `words` are its options, plugin and parameters. */
export async function startNbdkitAtPort(cwd: string, ...words: string[]): Promise<Running & { port: number }> {
  const port = await freePort();
  const where = ["-f", "-i", "127.0.0.1", "-p", `${port}`];
  const running = await startProgram(["nbdkit", ...where, ...words], { cwd, ready: () => listens(port) });
  return { ...running, port };
}

/** A TCP port of the loopback interface that nobody listens on at this moment. */
export async function freePort(): Promise<number> {
  const { port, close } = await heldPort();
  await close();
  return port;
}

/** Two such ports, which are not the same. */
export async function twoFreePorts(): Promise<[number, number]> {
  const [one, other] = [await heldPort(), await heldPort()];
  await one.close();
  await other.close();
  return [one.port, other.port];
}

/** A TCP port of the loopback interface that nobody else gets until it is closed. */
async function heldPort(): Promise<{ port: number; close: () => Promise<void> }> {
  return await new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      const port = typeof address === "object" && address !== null ? address.port : 0;
      resolve({ port, close: () => new Promise((closed) => server.close(() => closed())) });
    });
  });
}

/** Whether somebody listens at a port of the loopback interface. */
export async function listens(port: number): Promise<boolean> {
  const { connect } = await import("node:net");
  return await new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}

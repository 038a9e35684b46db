/** `clone serve` as its clients meet it: a process of its own behind a socket, which can be stopped, or killed. */
import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { expect } from "vitest";
import { type CloneRun, cloneOk, eventually, oneJson, type StartedClone, startClone } from "./run-clone.ts";

/** What to serve, and how. */
export interface ServeRequest {
  /** The clone: its destination or its metadata. */
  clone: string;
  cwd: string;
  /** Further options, as `["--no-hydrate"]`. */
  args?: readonly string[];
  /** Name of the export; the empty one by default. */
  exportName?: string;
  /** `HOST:PORT` instead of a unix socket. */
  listen?: string;
  /** Path of the unix socket, from `cwd`; a new one there by default. */
  socket?: string;
  env?: Record<string, string | undefined>;
  /** Ends a server that hangs. */
  longestMs?: number;
}

/** What of `clone status --json` tests look at. */
export interface ServedStatus {
  state: string;
  regions: number;
  regionSize: number;
  hydratedRegions: number;
  hydratingRegions: number;
  server: { pid: number; uri: string; connections: number } | null;
}

/** A server that is ready for clients. Disposed of, it is killed. */
export interface Server extends AsyncDisposable {
  readonly uri: string;
  /** Of its unix socket; empty where it has none. */
  readonly socket: string;
  readonly pid: number;
  readonly process: StartedClone;
  status(): Promise<ServedStatus>;
  /** `clone tune CLONE ARGS…`. */
  tune(...args: string[]): Promise<void>;
  /** Resolves when every region is hydrated. */
  hydrated(): Promise<void>;
  /** SIGTERM; resolves when it has ended. */
  stop(): Promise<CloneRun>;
  /** SIGKILL; resolves when it has ended. */
  kill9(): Promise<void>;
}

let servers = 0;

/** Starts `clone serve` and resolves when it takes connections. */
export async function startServe(request: ServeRequest): Promise<Server> {
  const { cwd, clone, exportName = "", listen, env } = request;
  servers += 1;
  const socket = listen === undefined ? resolve(cwd, request.socket ?? `nbd${servers}.sock`) : "";
  const pidfile = join(cwd, `serve${servers}.pid`);
  await rm(pidfile, { force: true });
  const where = listen === undefined ? ["--socket", socket] : ["--listen", listen];
  const named = exportName === "" ? [] : ["--export", exportName];
  const args = ["serve", clone, ...where, ...named, "--pidfile", pidfile, ...(request.args ?? [])];
  const started = startClone(args, {
    cwd,
    longestMs: request.longestMs ?? 300_000,
    ...(env === undefined ? {} : { env }),
  });
  let ended: CloneRun | undefined;
  void started.done.then((run) => {
    ended = run;
  });
  try {
    await eventually("clone serve is ready", () => ended !== undefined || existsSync(pidfile));
  } catch (error) {
    started.child.kill("SIGKILL");
    throw error;
  }
  if (ended !== undefined)
    throw new Error(`clone ${args.join(" ")}: exit ${ended.code}: ${ended.stdout}${ended.stderr}`);

  const status = async () => oneJson<ServedStatus>(await cloneOk(["status", clone, "--json"], { cwd }));
  const end = (signal: NodeJS.Signals) => {
    started.child.kill(signal);
    return started.done;
  };
  const name = encodeURIComponent(exportName);
  return {
    uri: listen === undefined ? `nbd+unix:///${name}?socket=${socket}` : `nbd://${listen}/${name}`,
    socket,
    pid: started.pid,
    process: started,
    status,
    tune: async (...changes) => void (await cloneOk(["tune", clone, ...changes], { cwd })),
    hydrated: () => eventually("all is hydrated", async () => (await status()).state === "hydrated"),
    stop: () => end("SIGTERM"),
    kill9: async () => void (await end("SIGKILL")),
    [Symbol.asyncDispose]: async () => void (await end("SIGKILL")),
  };
}

/** Stops a server that has to end well. */
export async function stopServe(server: Server): Promise<void> {
  const run = await server.stop();
  expect(run, `${run.stdout}${run.stderr}`).toMatchObject({ code: 0, signal: null });
}

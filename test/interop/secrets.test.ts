// Credentials reach a source by files and by the environment. Whatever the program writes, prints, tells at its control
// socket or shows to ps(1) is searched for them: metadata, destination, trace, output with -v, status, metrics, errors, and the
// command lines of it and its children.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { clone, eventually, startClone } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startNbdkit } from "../support/source-servers.ts";

const SECRET = "hunter2hunter2HUNTER2";
const SIZE = 2 * 1024 * 1024;

/** A web server that gives its file only to who knows the secret. */
async function lockedServer(bytes: Buffer, knows: (request: IncomingMessage) => boolean) {
  const answer = (request: IncomingMessage, response: ServerResponse): void => {
    if (!knows(request)) {
      response.writeHead(403).end(`not with ${request.headers.authorization} at ${request.url}`);
      return;
    }
    const [, from = "0", to = ""] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "") ?? [];
    const [start, end] = [Number(from), Math.min(to === "" ? bytes.length : Number(to) + 1, bytes.length)];
    const headers = {
      "Content-Range": `bytes ${start}-${end - 1}/${bytes.length}`,
      "Content-Length": end - start,
      ETag: '"x"',
    };
    response.writeHead(206, headers).end(request.method === "HEAD" ? undefined : bytes.subarray(start, end));
  };
  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** The command lines of a process and its children, as ps(1) shows them. */
async function commandLines(pid: number): Promise<string> {
  const own = await readFile(`/proc/${pid}/cmdline`, "latin1");
  const children = (await readFile(`/proc/${pid}/task/${pid}/children`, "utf8")).trim().split(" ").filter(Boolean);
  const theirs = await Promise.all(children.map((child) => commandLines(Number(child)).catch(() => "")));
  return [own, ...theirs].join("\n");
}

/** Everything that the life of a clone leaves anywhere, by where it was found. */
async function tracesOfLife(
  cwd: string,
  source: string[],
  { create = [], again = [], env = {} }: { create?: string[]; again?: string[]; env?: Record<string, string> },
): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  const options = { cwd, env: { ...env, DEBUG: "clone" } };
  const life = async (name: string, args: string[], code = 0): Promise<void> => {
    const ended = await clone(args, options);
    found.set(`output of ${name}`, ended.stdout + ended.stderr);
    expect(ended.code, `${name}: ${ended.stderr}`).toBe(code);
  };
  await life("create", ["create", "-v", ...create, ...source, "copy.img"]);
  await life("hydrate", ["hydrate", "-v", "copy.img", "--limit", "256K", ...again]);
  const serving = startClone(
    [
      "serve",
      "-v",
      "copy.img",
      "--socket",
      "s.sock",
      "--pidfile",
      "pid",
      "--rate",
      "64K",
      "--record-trace",
      "trace",
      ...again,
    ],
    { ...options, longestMs: 60_000 },
  );
  await eventually("it serves", async () => (await readdir(cwd)).includes("pid"));
  found.set("process titles", await commandLines(Number(await readFile(join(cwd, "pid"), "utf8"))));
  await life("status", ["status", "copy.img"]);
  await life("status --json", ["status", "--json", "copy.img"]);
  found.set("control", await run("curl", "-s", "--unix-socket", join(cwd, "copy.img.clone.sock"), "http://x/metrics"));
  serving.child.kill("SIGTERM");
  const served = await serving.done;
  expect(served.code, served.stderr).toBe(0);
  found.set("output of serve", served.stdout + served.stderr);
  await life("dump", ["dump", "copy.img.clone"]);
  await life("hydrate to the end", ["hydrate", "-v", "copy.img", "--progress", "json", ...again]);
  await life("verify", ["verify", "-v", "copy.img", ...again]);
  for (const name of await readdir(cwd))
    found.set(`file ${name}`, await readFile(join(cwd, name), "latin1").catch(() => ""));
  await life("finalize", ["finalize", "-v", "copy.img", "--verify", ...again]);
  return found;
}

function expectNone(found: Map<string, string>, secrets: string[], except: string[] = []): void {
  for (const [where, text] of found) {
    if (except.includes(where)) continue;
    for (const secret of secrets) expect(text.includes(secret), `${where} holds a secret`).toBe(false);
  }
}

describe("No credential is found anywhere", () => {
  testWith(
    { programs: ["curl"] },
    "of a header file",
    async () => {
      await using directory = await scratchDirectory();
      await using keys = await scratchDirectory();
      const bytes = await randomFile(join(keys.path, "source"), SIZE);
      await using server = await lockedServer(bytes, ({ headers }) => headers.authorization === `Bearer ${SECRET}`);
      const file = join(keys.path, "headers");
      await writeFile(file, `Authorization: Bearer ${SECRET}\n`, { mode: 0o600 });
      const found = await tracesOfLife(directory.path, [`http://127.0.0.1:${server.port}/x`], {
        create: ["--header-file", file],
        again: ["--header-file", file],
      });
      expectNone(found, [SECRET]);
    },
    120_000,
  );

  testWith(
    { programs: ["curl"] },
    "of a netrc file",
    async () => {
      await using directory = await scratchDirectory();
      await using keys = await scratchDirectory();
      const bytes = await randomFile(join(keys.path, "source"), SIZE);
      const basic = Buffer.from(`alice:${SECRET}`).toString("base64");
      await using server = await lockedServer(bytes, ({ headers }) => headers.authorization === `Basic ${basic}`);
      const netrc = join(keys.path, "netrc");
      await writeFile(netrc, `machine 127.0.0.1 login alice password ${SECRET}\n`, { mode: 0o600 });
      const found = await tracesOfLife(directory.path, [`http://127.0.0.1:${server.port}/x`], {
        env: { NETRC: netrc },
      });
      expectNone(found, [SECRET, basic]);
    },
    120_000,
  );

  testWith(
    { programs: ["curl"] },
    "of a presigned URL, though it stands on the command line",
    async () => {
      await using directory = await scratchDirectory();
      await using keys = await scratchDirectory();
      const bytes = await randomFile(join(keys.path, "source"), SIZE);
      await using server = await lockedServer(bytes, ({ url = "" }) => url.endsWith(`X-Amz-Signature=${SECRET}`));
      const url = `http://127.0.0.1:${server.port}/x?X-Amz-Signature=${SECRET}`;
      const found = await tracesOfLife(directory.path, [url], { again: ["--source", url] });
      expectNone(found, [SECRET]);
    },
    120_000,
  );

  testWith(
    { programs: ["nbdkit", "psktool", "curl"] },
    "of a key shared beforehand",
    async () => {
      await using directory = await scratchDirectory();
      await using keys = await scratchDirectory();
      const psk = join(keys.path, "keys.psk");
      await run("psktool", "-u", "alice", "-p", psk);
      const key = (await readFile(psk, "utf8")).trim().split(":")[1] ?? "";
      expect(key.length).toBeGreaterThan(20);
      await randomFile(join(keys.path, "source"), SIZE);
      const socket = join(keys.path, "source.sock");
      await using _server = await startNbdkit(
        keys.path,
        socket,
        "--tls=require",
        `--tls-psk=${psk}`,
        "file",
        join(keys.path, "source"),
      );
      const uri = `nbds+unix://alice@/?socket=${socket}&tls-psk-file=${psk}`;
      expectNone(await tracesOfLife(directory.path, [uri], {}), [key]);
    },
    120_000,
  );

  test.for(["in a header file", "in a URL"])("in what is said when a server refuses it: %s", async (where) => {
    await using directory = await scratchDirectory();
    await using server = await lockedServer(Buffer.alloc(SIZE), () => false);
    const url = `http://127.0.0.1:${server.port}/x`;
    const headers = join(directory.path, "headers");
    await writeFile(headers, `Authorization: Bearer ${SECRET}\n`, { mode: 0o600 });
    const args =
      where === "in a URL" ? [`${url}?sig=${SECRET}`, "copy.img"] : [url, "copy.img", "--header-file", headers];
    const { code, stdout, stderr } = await clone(["create", "-v", ...args], {
      cwd: directory.path,
      env: { DEBUG: "clone" },
    });
    expect(code).toBe(1);
    expect(stderr).toContain("403");
    expect(stdout + stderr).not.toContain(SECRET);
    expect(await readdir(directory.path)).toEqual(["headers"]);
  });
});

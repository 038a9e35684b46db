// Every form of DEST over NBD through the whole life of a clone, with real servers: create, hydrate a part, serve the rest
// while a client reads and writes, verify, finalize; and at the end the server has the source's bytes and the client's.
import { existsSync } from "node:fs";
import { readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { certificates } from "../support/certificates.ts";
import { randomFile } from "../support/files.ts";
import { type Program, testWith } from "../support/needs.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startServe } from "../support/serve.ts";
import { type Running, startAtSocket, startNbdkit, startNbdkitAtPort } from "../support/source-servers.ts";

const MIB = 1024 * 1024;
const SIZE = 24 * MIB;

interface Served {
  uri: string;
  server: Running;
  cleanUp?: AsyncDisposable;
}

interface Form {
  name: string;
  programs: Program[];
  serve: (cwd: string) => Promise<Served>;
}

/** An empty file for a server to serve. */
async function disk(cwd: string): Promise<string> {
  const path = join(cwd, "disk.raw");
  await writeFile(path, "");
  await truncate(path, SIZE);
  return path;
}

async function nbdkit(cwd: string, ...words: string[]): Promise<Served> {
  const socket = join(cwd, "destination.sock");
  return { uri: `nbd+unix:///?socket=${socket}`, server: await startNbdkit(cwd, socket, ...words) };
}

async function qemuNbd(cwd: string, format: string): Promise<Served> {
  const socket = join(cwd, "destination.sock");
  const path = join(cwd, "disk.image");
  await run("qemu-img", "create", "-q", "-f", format, path, `${SIZE}`);
  const words = ["qemu-nbd", "-t", "-e", "8", "-f", format, "-k", socket, path];
  return { uri: `nbd+unix:///?socket=${socket}`, server: await startAtSocket(words, cwd, socket) };
}

async function overTls(cwd: string): Promise<Served> {
  const keys = await certificates();
  const tls = ["--tls=require", `--tls-certificates=${keys.path}`];
  const server = await startNbdkitAtPort(cwd, ...tls, "file", await disk(cwd));
  const { port } = server;
  return { uri: `nbds://localhost:${port}/?tls-certificates=${encodeURIComponent(keys.path)}`, server, cleanUp: keys };
}

const FORMS: Form[] = [
  { name: "nbdkit memory", programs: ["nbdkit"], serve: (cwd) => nbdkit(cwd, "memory", `${SIZE}`) },
  { name: "nbdkit file", programs: ["nbdkit"], serve: async (cwd) => nbdkit(cwd, "file", await disk(cwd)) },
  {
    name: "nbdkit that can neither zero nor tell extents",
    programs: ["nbdkit"],
    serve: async (cwd) => nbdkit(cwd, "--filter=nozero", "--filter=noextents", "file", await disk(cwd)),
  },
  {
    name: "nbdkit that serves one connection at a time, without structured replies",
    programs: ["nbdkit"],
    serve: async (cwd) =>
      nbdkit(cwd, "--no-sr", "--filter=noparallel", "file", await disk(cwd), "serialize=connections"),
  },
  {
    name: "nbdkit with blocks of 4K at least and 64K at most",
    programs: ["nbdkit"],
    serve: async (cwd) =>
      nbdkit(
        cwd,
        "--filter=blocksize-policy",
        "file",
        await disk(cwd),
        ...[
          "blocksize-minimum=4096",
          "blocksize-preferred=4096",
          "blocksize-maximum=64K",
          "blocksize-error-policy=error",
        ],
      ),
  },
  {
    name: "nbdkit whose cache has to be flushed",
    programs: ["nbdkit"],
    serve: async (cwd) => nbdkit(cwd, "--filter=cache", "file", await disk(cwd), "cache=writeback"),
  },
  { name: "nbdkit over TLS", programs: ["nbdkit", "openssl"], serve: overTls },
  { name: "qemu-nbd with a raw file", programs: ["qemu-nbd"], serve: (cwd) => qemuNbd(cwd, "raw") },
  { name: "qemu-nbd with a qcow2", programs: ["qemu-nbd"], serve: (cwd) => qemuNbd(cwd, "qcow2") },
];

describe("A clone to what is served by", () => {
  for (const { name, programs, serve } of FORMS) {
    testWith(
      { programs: [...programs, "qemu-img", "qemu-io", "nbdcopy"] },
      name,
      async () => {
        await using directory = await scratchDirectory();
        const cwd = directory.path;
        const image = join(cwd, "source.img");
        await randomFile(image, SIZE);
        await run("fallocate", "--punch-hole", "--offset", `${8 * MIB}`, "--length", `${4 * MIB}`, image);
        const expected = await readFile(image);
        const { uri, server: destination, cleanUp } = await serve(cwd);
        try {
          await cloneOk(["create", "source.img", uri, "--metadata", "meta.clone"], { cwd });
          await cloneOk(["hydrate", "meta.clone", "--limit", "4M"], { cwd });
          await cloneOk(["verify", "meta.clone"], { cwd });
          {
            await using server = await startServe({ clone: "meta.clone", cwd, args: ["--rate", "16M"] });
            await run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.uri);
            const written = ["write -P 7 20m 1m", "write -P 9 1000k 3k", "write -z 9m 64k", "write -z 2m 1m"];
            await run(
              "qemu-io",
              "-f",
              "raw",
              server.uri,
              ...written.flatMap((command) => ["-c", command]),
              "-c",
              "flush",
            );
            expected.fill(7, 20 * MIB, 21 * MIB);
            expected.fill(9, 1000 * 1024, 1003 * 1024);
            expected.fill(0, 2 * MIB, 3 * MIB);
            await server.tune("--rate", "max");
            await server.hydrated();
            await server.stop();
          }
          await cloneOk(["finalize", "meta.clone"], { cwd });
          expect(existsSync(join(cwd, "meta.clone"))).toBe(false);
          const copied = join(cwd, "copied.img");
          // The one does not heed block sizes, the other knows no such URIs.
          if (uri.startsWith("nbds:")) await run("nbdcopy", uri, copied);
          else await run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copied);
          expect(Buffer.compare(await readFile(copied), expected)).toBe(0);
        } finally {
          await destination.kill();
          await cleanUp?.[Symbol.asyncDispose]();
        }
      },
      120_000,
    );
  }
});

describe("A destination over NBD is refused", () => {
  const refusals: [string, string[], string[], number, RegExp, RegExp?][] = [
    ["without --metadata", ["memory", "1M"], [], 2, /destination\.sock.*: a URI needs --metadata/, /on this machine/],
    ["where it is read-only", ["-r", "memory", "1M"], ["--metadata", "m"], 1, /read-only/],
    ["where it is too small", ["memory", "512K"], ["--metadata", "m"], 2, /the destination has 524288 bytes/],
    ["where it holds data", ["pattern", "1M"], ["--metadata", "m"], 2, /it holds data/, /--force/],
  ];
  for (const [name, words, args, code, message, hint] of refusals) {
    testWith({ programs: ["nbdkit"] }, name, async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await randomFile(join(cwd, "source.img"), MIB);
      const { uri, server } = await nbdkit(cwd, ...(name.includes("data") ? ["--filter=cow"] : []), ...words);
      try {
        expectFailure(await clone(["create", "source.img", uri, ...args], { cwd }), code, message, hint);
        expect(existsSync(join(cwd, "m"))).toBe(false);
      } finally {
        await server.kill();
      }
    });
  }

  testWith({ programs: ["nbdkit"] }, "where it is the source", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    const { uri, server } = await nbdkit(cwd, "memory", "1M");
    expectFailure(await clone(["create", uri, uri, "--metadata", "m"], { cwd }), 2, /they are the same/);
    await server.kill();
  });

  for (const uri of ["http://localhost/x", "s3://bucket/key", "rbd:pool/image"]) {
    testWith({ programs: [] }, `where it is ${uri}`, async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await randomFile(join(cwd, "source.img"), MIB);
      const refused = await clone(["create", "source.img", uri, "--metadata", "m"], { cwd });
      expectFailure(refused, 2, /a destination is a path or an nbd URI/, /qemu-nbd/);
    });
  }
});

// Every form of SOURCE through the whole life of a clone: create, hydrate a part, serve the rest to a client that reads it
// while it is hydrated, verify, finalize; and at the end every byte is the source's. The servers are real ones.
import { existsSync } from "node:fs";
import { readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { certificates } from "../support/certificates.ts";
import { holds, randomFile } from "../support/files.ts";
import { type Program, testWith } from "../support/needs.ts";
import { startNginx } from "../support/nginx.ts";
import { clone, cloneOk, eventually, expectFailure, oneJson } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startServe } from "../support/serve.ts";
import {
  freePort,
  listens,
  type Running,
  startAtSocket,
  startNbdkit,
  startNbdkitAtPort,
} from "../support/source-servers.ts";

const MIB = 1024 * 1024;
const SIZE = 24 * MIB + 512;

/** A source that is being served. */
interface Served {
  /** What to call it on the command line: a URI, or the words of a command. */
  source: string[];
  /** Whether its name has to be given again each time. */
  again?: boolean;
  env?: Record<string, string>;
  servers?: Running[];
  cleanUp?: AsyncDisposable;
}

interface Form {
  name: string;
  programs: Program[];
  serve: (cwd: string, image: string) => Promise<Served>;
}

/** `nbd+unix:///?socket=…` of a server that makes its own socket. */
async function overNbd(cwd: string, ...words: string[]): Promise<Served> {
  const socket = join(cwd, "source.sock");
  return { source: [`nbd+unix:///?socket=${socket}`], servers: [await startNbdkit(cwd, socket, ...words)] };
}

async function overTls(cwd: string, image: string): Promise<Served> {
  const keys = await certificates();
  const tls = ["--tls=require", `--tls-certificates=${keys.path}`];
  const server = await startNbdkitAtPort(cwd, ...tls, "file", image);
  const { port } = server;
  return {
    source: [`nbds://localhost:${port}/?tls-certificates=${encodeURIComponent(keys.path)}`],
    servers: [server],
    cleanUp: keys,
  };
}

async function overPsk(cwd: string, image: string): Promise<Served> {
  const keys = join(cwd, "keys.psk");
  await run("psktool", "-u", "alice", "-p", keys);
  const socket = join(cwd, "source.sock");
  const server = await startNbdkit(cwd, socket, "--tls=require", `--tls-psk=${keys}`, "file", image);
  return {
    source: [`nbds+unix://alice@/?socket=${socket}&tls-psk-file=${encodeURIComponent(keys)}`],
    servers: [server],
  };
}

async function overNbdServer(cwd: string, image: string): Promise<Served> {
  const port = await freePort();
  const config = join(cwd, "nbd-server.conf");
  await writeFile(
    config,
    `[generic]\nlistenaddr = 127.0.0.1\nport = ${port}\nallowlist = true\n[disk]\nexportname = ${image}\nreadonly = true\n`,
  );
  const pidFile = join(cwd, "nbd-server.pid");
  await run("nbd-server", "-C", config, "-p", pidFile); // goes to the background by itself
  await eventually("nbd-server listens", () => listens(port));
  const pid = Number(await readFile(pidFile, "utf8"));
  const cleanUp = { [Symbol.asyncDispose]: async () => void process.kill(pid) };
  return { source: [`nbd://127.0.0.1:${port}/disk`], cleanUp };
}

/** A file of the directory on a web server, with TLS or without. */
async function overHttp(cwd: string, name: string, { secure = false } = {}): Promise<Served> {
  const keys = await certificates();
  const server = await startNginx(cwd, { root: cwd, certificates: keys.path });
  const cleanUp = {
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      await keys[Symbol.asyncDispose]();
    },
  };
  if (!secure) return { source: [`http://127.0.0.1:${server.port}/${name}`], cleanUp };
  const env = { SSL_CERT_FILE: join(keys.path, "ca-cert.pem") };
  return { source: [`https://localhost:${server.securePort}/${name}`], env, cleanUp };
}

/** The same disk as an image in a format of qemu's. */
async function converted(cwd: string, image: string, format: string): Promise<string> {
  const path = join(cwd, `source.${format}`);
  await run("qemu-img", "convert", "-f", "raw", "-O", format, image, path);
  return path;
}

const FORMS: Form[] = [
  { name: "nbdkit file", programs: ["nbdkit"], serve: (cwd, image) => overNbd(cwd, "file", image) },
  {
    name: "nbdkit without structured replies",
    programs: ["nbdkit"],
    serve: (cwd, image) => overNbd(cwd, "--no-sr", "file", image),
  },
  {
    name: "nbdkit without holes",
    programs: ["nbdkit"],
    serve: (cwd, image) => overNbd(cwd, "--filter=noextents", "file", image),
  },
  {
    name: "nbdkit with blocks of 4K at least and 64K at most",
    programs: ["nbdkit"],
    serve: (cwd, image) =>
      overNbd(
        cwd,
        "--filter=blocksize-policy",
        "--filter=truncate",
        "file",
        image,
        "round-up=4096",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=64K",
        "blocksize-error-policy=error",
      ),
  },
  {
    name: "nbdkit with a delay",
    programs: ["nbdkit"],
    serve: (cwd, image) => overNbd(cwd, "--filter=delay", "file", image, "delay-read=5ms"),
  },
  {
    name: "nbdkit with 5 % of errors",
    programs: ["nbdkit"],
    serve: (cwd, image) => overNbd(cwd, "--filter=error", "file", image, "error-pread-rate=5%"),
  },
  {
    name: "nbdkit with a slow line",
    programs: ["nbdkit"],
    serve: (cwd, image) => overNbd(cwd, "--filter=rate", "file", image, "rate=200M"),
  },
  {
    name: "nbdkit that tries again by itself",
    programs: ["nbdkit"],
    serve: (cwd, image) =>
      overNbd(cwd, "--filter=retry", "--filter=error", "file", image, "retry-delay=1", "error-pread-rate=2%"),
  },
  {
    name: "nbdkit that lets in one at a time",
    programs: ["nbdkit"],
    serve: (cwd, image) => overNbd(cwd, "--filter=limit", "file", image, "limit=1"),
  },
  { name: "nbdkit over TLS with certificates", programs: ["nbdkit", "openssl"], serve: overTls },
  { name: "nbdkit over TLS with a key", programs: ["nbdkit", "psktool"], serve: overPsk },
  {
    name: "qemu-nbd with a qcow2",
    programs: ["qemu-nbd", "qemu-img"],
    async serve(cwd, image) {
      const socket = join(cwd, "source.sock");
      const words = [
        "qemu-nbd",
        "-r",
        "-t",
        "-e",
        "8",
        "-f",
        "qcow2",
        "-k",
        socket,
        await converted(cwd, image, "qcow2"),
      ];
      return { source: [`nbd+unix:///?socket=${socket}`], servers: [await startAtSocket(words, cwd, socket)] };
    },
  },
  { name: "nbd-server", programs: ["nbd-server"], serve: overNbdServer },
  { name: "nginx", programs: ["nginx", "openssl"], serve: (cwd) => overHttp(cwd, "source.img") },
  {
    name: "nginx with TLS",
    programs: ["nginx", "openssl"],
    serve: (cwd) => overHttp(cwd, "source.img", { secure: true }),
  },
  ...["qcow2", "vmdk", "vhdx", "vdi"].map(
    (format): Form => ({
      name: `a ${format} file`,
      programs: ["qemu-img", "qemu-nbd"],
      serve: async (cwd, image) => ({ source: [await converted(cwd, image, format)] }),
    }),
  ),
  {
    name: "a qcow2 file on a web server",
    programs: ["qemu-img", "qemu-nbd", "nginx", "openssl"],
    async serve(cwd, image) {
      await converted(cwd, image, "qcow2");
      return await overHttp(cwd, "source.qcow2");
    },
  },
  {
    name: "[ nbdkit … ]",
    programs: ["nbdkit"],
    serve: async (_cwd, image) => ({ source: ["[", "nbdkit", "file", image, "]"], again: true }),
  },
  {
    name: "[ qemu-nbd … ]",
    programs: ["qemu-nbd"],
    serve: async (_cwd, image) => ({ source: ["[", "qemu-nbd", "-r", "-t", "-f", "raw", image, "]"], again: true }),
  },
];

describe("A clone of what is served by", () => {
  for (const { name, programs, serve } of FORMS) {
    testWith(
      { programs: [...programs, "qemu-img"] },
      name,
      async () => {
        await using directory = await scratchDirectory();
        const cwd = directory.path;
        const image = join(cwd, "source.img");
        await randomFile(image, SIZE);
        await run("fallocate", "--punch-hole", "--offset", `${8 * MIB}`, "--length", `${4 * MIB}`, image);
        const served = await serve(cwd, image);
        try {
          const { source, env, again } = served;
          const options = env === undefined ? { cwd } : { cwd, env };
          const named = again ? ["--source", ...source] : [];
          await cloneOk(["create", ...source, "copy.img"], options);
          await cloneOk(["hydrate", "copy.img", "--limit", "4M", ...named], options);
          const size = oneJson<{ source: { size: number } }>(await cloneOk(["status", "copy.img", "--json"], { cwd }))
            .source.size;
          expect(size).toBeGreaterThanOrEqual(SIZE);
          if (size > SIZE) await truncate(image, size); // what the server rounds up to reads as zeros
          {
            await using server = await startServe({
              clone: "copy.img",
              cwd,
              args: named,
              ...(env === undefined ? {} : { env }),
            });
            // A reader who wants all of it now, while it is being hydrated.
            await run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.uri);
            await server.hydrated();
            await server.stop();
          }
          await cloneOk(["verify", "copy.img", ...named], options);
          await cloneOk(["finalize", "copy.img", "--verify", ...named], options);
          expect(existsSync(join(cwd, "copy.img.clone"))).toBe(false);
          expect(await holds(join(cwd, "copy.img"), await readFile(image))).toBe(true);
        } finally {
          for (const server of served.servers ?? []) await server.kill();
          await served.cleanUp?.[Symbol.asyncDispose]();
        }
      },
      120_000,
    );
  }
});

describe("A clone of a qcow2 with a backing file", () => {
  const place = async () => {
    const directory = await scratchDirectory();
    const cwd = directory.path;
    await randomFile(join(cwd, "base.img"), 4 * MIB);
    await run(
      "qemu-img",
      "create",
      "-q",
      "-f",
      "qcow2",
      "-b",
      join(cwd, "base.img"),
      "-F",
      "raw",
      join(cwd, "over.qcow2"),
    );
    return directory;
  };

  testWith({ programs: ["qemu-img", "qemu-nbd"] }, "is refused where nobody has named the format", async () => {
    await using directory = await place();
    const refused = await clone(["create", "over.qcow2", "copy.img"], { cwd: directory.path });
    expectFailure(refused, 1, /over\.qcow2.*base\.img/, /--source-format qcow2/);
    expect(existsSync(join(directory.path, "copy.img"))).toBe(false);
  });

  testWith({ programs: ["qemu-img", "qemu-nbd"] }, "is refused once the backing file has changed", async () => {
    await using directory = await place();
    const cwd = directory.path;
    await cloneOk(["create", "over.qcow2", "copy.img", "--source-format", "qcow2"], { cwd });
    await cloneOk(["hydrate", "copy.img", "--limit", "1M"], { cwd });
    await randomFile(join(cwd, "base.img"), 4 * MIB);
    expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /it has changed.*a file that it refers to/);
    await cloneOk(["hydrate", "copy.img", "--accept-changed-source"], { cwd });
  });
});

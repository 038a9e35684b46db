// A clone served on TCP to clients that encrypt, with what `clone serve` is given on its command line; who does not encrypt,
// or is nobody the server knows, gets nothing.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { certificates } from "../support/certificates.ts";
import { holds, randomFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { type Server, startServe, stopServe } from "../support/serve.ts";

const MIB = 1024 * 1024;
const SIZE = 8 * MIB;

/** A clone of random bytes, served on a free port, hydrating; and the port. */
async function servedOnTcp(cwd: string, ...args: string[]): Promise<{ server: Server; port: string; bytes: Buffer }> {
  const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  const server = await startServe({ clone: "copy.img", cwd, listen: "localhost:0", args: ["--rate", "2M", ...args] });
  const uri = (await server.status()).server?.uri ?? "";
  expect(uri).toMatch(/^nbds:/);
  return { server, port: uri.match(/:(\d+)\//)?.[1] ?? "", bytes };
}

describe("clone serve with certificates", () => {
  const programs = ["openssl", "nbdcopy", "nbdinfo", "qemu-img"] as const;
  testWith({ programs }, "shows the clone to libnbd and qemu, and to nobody without a certificate", async () => {
    await using place = await scratchDirectory();
    await using pki = await certificates();
    const cwd = place.path;
    const { server, port, bytes } = await servedOnTcp(cwd, "--tls-certificates", pki.path, "--tls-verify-peer");
    await using _killed = server;

    const secure = `nbds://localhost:${port}/?tls-certificates=${pki.path}`;
    await run("nbdcopy", "--connections=4", secure, join(cwd, "out.img"));
    expect(await holds(join(cwd, "out.img"), bytes)).toBe(true);
    const other = await randomFile(join(cwd, "other.img"), SIZE);
    await run("nbdcopy", "--flush", join(cwd, "other.img"), secure);
    const secret = `tls-creds-x509,id=tls,endpoint=client,dir=${pki.path}`;
    const image = `driver=nbd,host=localhost,port=${port},tls-creds=tls`;
    const convert = ["convert", "--object", secret, "--image-opts", image, "-O", "raw", join(cwd, "qemu.img")];
    await run("qemu-img", ...convert);
    expect(await holds(join(cwd, "qemu.img"), other)).toBe(true);

    await expect(run("nbdinfo", `nbd://localhost:${port}/`)).rejects.toThrow();
    await writeFile(join(cwd, "ca-cert.pem"), await readFile(join(pki.path, "ca-cert.pem")));
    await expect(run("nbdinfo", `nbds://localhost:${port}/?tls-certificates=${cwd}`)).rejects.toThrow();
    await stopServe(server);
  });
});

describe("clone serve with pre-shared keys", () => {
  const programs = ["psktool", "nbdcopy", "nbdinfo"] as const;
  testWith({ programs }, "shows the clone to who has one, and to nobody else", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const [keys, strangers] = [join(cwd, "keys.psk"), join(cwd, "strangers.psk")];
    for (const file of [keys, strangers]) await run("psktool", "--username=alice", `--pskfile=${file}`);
    const { server, port, bytes } = await servedOnTcp(cwd, "--tls-psk", keys);
    await using _killed = server;

    const uriOf = (user: string, file: string) => `nbds://${user}@localhost:${port}/?tls-psk-file=${file}`;
    await run("nbdcopy", uriOf("alice", keys), join(cwd, "out.img"));
    expect(await holds(join(cwd, "out.img"), bytes)).toBe(true);
    await expect(run("nbdinfo", uriOf("alice", strangers))).rejects.toThrow();
    await expect(run("nbdinfo", uriOf("bob", keys))).rejects.toThrow();
    await expect(run("nbdinfo", `nbd://localhost:${port}/`)).rejects.toThrow();
    // None of that disturbed the server.
    expect((await run("nbdinfo", "--size", uriOf("alice", keys))).trim()).toBe(String(SIZE));
    await stopServe(server);
  });

  testWith({ programs: [] }, "is needed, or --insecure, where others than this machine can reach it", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await randomFile(join(cwd, "disk.img"), MIB);
    await cloneOk(["create", "disk.img", "copy.img"], { cwd });
    const run = await clone(["serve", "copy.img", "--listen", "0.0.0.0:0"], { cwd });
    expectFailure(run, 2, /others than this machine can reach it/, /--insecure/);
    await using server = await startServe({ clone: "copy.img", cwd, listen: "0.0.0.0:0", args: ["--insecure"] });
    await stopServe(server);
  });
});

// Where a server listens: who may connect, what stands in the way, and what clients are told to open.
import { mkdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import koffi from "koffi";
import { describe, expect, test } from "vitest";
import { CloneError, UsageError } from "../../../src/base/errors.ts";
import { NbdServer } from "../../../src/nbd/server.ts";
import { NbdClient } from "../../support/nbd-client.ts";
import { testServer } from "../../support/nbd-server.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { ServedMemory } from "../../support/served-devices.ts";

const libc = koffi.load("libc.so.6");
const makeSocket = libc.func("int socket(int, int, int)");
const bind = libc.func("int bind(int, const uint8_t *, uint32_t)");
const listen = libc.func("int listen(int, int)");
/** `AF_UNIX` and `SOCK_STREAM`. */
const [UNIX, STREAM] = [1, 1];

/** The descriptor of a socket that listens, as systemd hands one over. */
function listeningSocket(path: string): number {
  const fd = makeSocket(UNIX, STREAM, 0);
  const address = Buffer.concat([Buffer.from([UNIX, 0]), Buffer.from(`${path}\0`)]);
  expect(bind(fd, address, address.length)).toBe(0);
  expect(listen(fd, 16)).toBe(0);
  return fd;
}

function newServer() {
  const server = new NbdServer({ exports: [{ name: "disk", device: new ServedMemory(4096), readOnly: false }] });
  return Object.assign(server, { [Symbol.asyncDispose]: () => server.shutdown({ graceMs: 0 }) });
}

describe("NbdServer.listen()", () => {
  test("makes a socket that its owner alone may open, whatever the umask; or others, where that is asked for", async () => {
    await using directory = await scratchDirectory();
    for (const umask of [0, 0o022, 0o777]) {
      for (const [mode, expected] of [[undefined, 0o600] as const, [0o660, 0o660] as const]) {
        await using server = newServer();
        const path = join(directory.path, `socket-${umask}-${expected}`);
        const before = process.umask(umask);
        try {
          await server.listen(mode === undefined ? { path } : { path, mode });
          expect(process.umask()).toBe(umask);
        } finally {
          process.umask(before);
        }
        expect((await stat(path)).mode % 0o1000).toBe(expected);
      }
    }
  });

  test("serves in several places at once, and tells a URI for each", async () => {
    await using served = await testServer();
    await served.server.listen({ host: "127.0.0.1", port: 0 });
    await served.server.listen({ host: "::1", port: 0 });
    const [unix, ipv4, ipv6] = served.server.uris("a disk/1");
    expect(unix).toBe(`nbd+unix:///a%20disk%2F1?socket=${served.path}`);
    expect(ipv4).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/a%20disk%2F1$/);
    expect(ipv6).toMatch(/^nbd:\/\/\[::1\]:\d+\/a%20disk%2F1$/);
    for (const uri of [ipv4, ipv6] as string[]) {
      const { hostname, port } = new URL(uri.replace("nbd:", "http:"));
      await using client = await NbdClient.go({ host: hostname.replace(/[[\]]/g, ""), port: Number(port) });
      expect((await client.read(0, 8)).error).toBe(0);
    }
  });

  test("takes a socket that listens already", async () => {
    await using directory = await scratchDirectory();
    const path = join(directory.path, "activated");
    await using server = newServer();
    await server.listen({ fd: listeningSocket(path) });
    await using client = await NbdClient.go({ path });
    expect((await client.read(0, 8)).error).toBe(0);
    expect(server.uris()).toEqual([]);
    await using other = newServer();
    await other.listen({ fd: listeningSocket(`${path}-too`), path: `${path}-too` });
    expect(other.uris()).toEqual([`nbd+unix:///?socket=${path}-too`]);
  });

  test("says in one line why it cannot", async () => {
    await using directory = await scratchDirectory();
    const at = (name: string): string => join(directory.path, name);
    await writeFile(at("file"), "");
    await mkdir(at("directory"));
    await using busy = newServer();
    await busy.listen({ path: at("busy") });
    await busy.listen({ host: "127.0.0.1", port: 0 });
    const port = Number(new URL((busy.uris()[1] as string).replace("nbd:", "http:")).port);
    await using server = newServer();
    const message = (address: Parameters<NbdServer["listen"]>[0]) =>
      server.listen(address).then(
        () => "it listens",
        (error: unknown) => (error instanceof CloneError ? error.message : error),
      );
    for (const name of ["file", "directory", "busy"]) {
      expect(await message({ path: at(name) })).toBe(`Cannot listen on "${at(name)}": it is in use`);
    }
    expect(await message({ path: at("nowhere/socket") })).toBe(
      `Cannot listen on "${at("nowhere/socket")}": no such directory, or permission denied`,
    );
    expect(await message({ host: "127.0.0.1", port })).toBe(`Cannot listen on "127.0.0.1:${port}": it is in use`);
    expect(await message({ host: "192.0.2.1", port: 0 })).toBe(
      'Cannot listen on "192.0.2.1:0": it is no address of this machine',
    );
    expect(await message({ fd: 999 })).toMatch(/^Cannot listen on descriptor 999: E[A-Z]+$/);
    expect((await stat(at("file"))).isFile()).toBe(true);
    await using client = await NbdClient.go({ path: at("busy") });
    expect((await client.read(0, 8)).error).toBe(0);
  });

  test("refuses a path that is too long, and takes the longest that fits", async () => {
    await using directory = await scratchDirectory();
    await using server = newServer();
    const fits = join(directory.path, "x".repeat(107 - directory.path.length - 1));
    await server.listen({ path: fits });
    await using client = await NbdClient.go({ path: fits });
    expect((await client.read(0, 8)).error).toBe(0);
    await expect(server.listen({ path: `${fits}y` })).rejects.toThrow(UsageError);
    await expect(server.listen({ path: `${fits.slice(0, -1)}é` })).rejects.toThrow(/at most 107 bytes$/);
  });
});

// The NBD client over TLS with nbdkit (GnuTLS) and qemu-nbd: by certificates and by keys. Who is not who the URI says, or does
// not know the key, gets no byte and no answer; and nothing ever goes on in the clear.
import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, describe, expect } from "vitest";
import { NbdDevice } from "../../src/nbd/client/nbd-device.ts";
import { parseNbdUri } from "../../src/nbd/client/nbd-uri.ts";
import { certificates } from "../support/certificates.ts";
import { randomFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startAtSocket, startNbdkit, startNbdkitAtPort } from "../support/source-servers.ts";

const SIZE = 4 * 1024 * 1024;
const { HOME, SSL_CERT_FILE } = process.env;

afterEach(() => {
  restore("HOME", HOME);
  restore("SSL_CERT_FILE", SSL_CERT_FILE);
});

function restore(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}

/** Opens, reads all, and compares. */
async function expectContent(uri: string, content: Buffer): Promise<void> {
  await using device = await NbdDevice.open(parseNbdUri(uri), { access: "read-write" });
  const bytes = Buffer.alloc(device.size);
  await Promise.all([0, 1, 2, 3].map((i) => device.read(i * 2 ** 20, bytes.subarray(i * 2 ** 20, (i + 1) * 2 ** 20))));
  expect(bytes.equals(content)).toBe(true);
  const change = Buffer.alloc(3_000_000, 7);
  change.copy(content, 1000);
  await device.write(1000, change);
  await device.flush();
  await device.read(0, bytes);
  expect(bytes.equals(content)).toBe(true);
}

/** Why it cannot be opened, and what can be done about it. */
async function reason(uri: string): Promise<string> {
  try {
    const device = await NbdDevice.open(parseNbdUri(uri), { access: "read-only", requestTimeoutMs: 10_000 });
    await device[Symbol.asyncDispose]();
  } catch (error) {
    const { message, hint = "" } = error as { message: string; hint?: string };
    return `${message}\n${hint}`;
  }
  return expect.fail("it was opened");
}

describe("NbdDevice over TLS with certificates", () => {
  testWith({ programs: ["nbdkit", "openssl"] }, "reads and writes, and knows whom it talks to", async () => {
    await using place = await scratchDirectory();
    await using pki = await certificates();
    await using strangers = await certificates();
    const content = await randomFile(join(place.path, "disk.img"), SIZE);
    const tls = ["--tls=require", `--tls-certificates=${pki.path}`, "--tls-verify-peer"];
    await using server = await startNbdkitAtPort(place.path, ...tls, "file", "disk.img");
    const { port } = server;

    const known = `tls-certificates=${pki.path}`;
    await expectContent(`nbds://localhost:${port}/?${known}`, content);
    await expectContent(`nbds://127.0.0.1:${port}/?${known}`, content);
    // Without a certificate of ours, with a stranger's, and where we do not believe the server's.
    const bare = join(place.path, "bare");
    await mkdir(bare);
    await copyFile(join(pki.path, "ca-cert.pem"), join(bare, "ca-cert.pem"));
    expect(await reason(`nbds://localhost:${port}/?tls-certificates=${bare}`)).toMatch(/TLS|hung up|reset/);
    expect(await reason(`nbds://localhost:${port}/?tls-certificates=${strangers.path}`)).toMatch(
      /TLS failed: (self-signed|unable to verify|certificate).*\n.*tls-certificates=DIR/,
    );
    expect(await reason(`nbds://localhost:${port}/?${known}&tls-hostname=other.example`)).toMatch(
      /TLS failed: Host.*\n.*tls-hostname=NAME/,
    );
    expect(await reason(`nbds://localhost:${port}/?tls-certificates=${place.path}`)).toMatch(
      /^Cannot read ".*ca-cert\.pem": no such file/,
    );
    await writeFile(join(bare, "ca-cert.pem"), "nonsense");
    expect(await reason(`nbds://localhost:${port}/?tls-certificates=${bare}`)).toMatch(
      /Cannot use ca-cert\.pem|TLS failed/,
    );
    expect(await reason(`nbd://localhost:${port}/`)).toMatch(/: the server wants TLS\n.*nbds:\/\//);
    // Whoever does not care who the server is still shows who he is.
    await copyFile(join(pki.path, "client-cert.pem"), join(bare, "client-cert.pem"));
    await copyFile(join(pki.path, "client-key.pem"), join(bare, "client-key.pem"));
    await writeFile(join(bare, "ca-cert.pem"), await readFile(join(strangers.path, "ca-cert.pem")));
    await expectContent(`nbds://localhost:${port}/?tls-certificates=${bare}&tls-verify-peer=0`, content);
  });

  testWith(
    { programs: ["nbdkit", "openssl"] },
    "finds its certificates where libnbd looks, else asks the machine's authorities",
    async () => {
      await using place = await scratchDirectory();
      await using pki = await certificates();
      const content = await randomFile(join(place.path, "disk.img"), SIZE);
      const socket = join(place.path, "nbd.sock");
      const words = ["--tls=require", `--tls-certificates=${pki.path}`, "file", "disk.img"];
      await using _server = await startNbdkit(place.path, socket, ...words);
      const uri = `nbds+unix:///?socket=${socket}`;
      process.env.HOME = place.path;
      expect(await reason(uri)).toMatch(/TLS failed: /);
      process.env.SSL_CERT_FILE = join(pki.path, "ca-cert.pem");
      await expectContent(uri, content);
      restore("SSL_CERT_FILE", SSL_CERT_FILE);
      const usual = join(place.path, ".config", "pki", "libnbd");
      await mkdir(usual, { recursive: true });
      await copyFile(join(pki.path, "ca-cert.pem"), join(usual, "ca-cert.pem"));
      await expectContent(uri, content);
      expect(await reason(`${uri}&tls-hostname=other.example`)).toMatch(/altnames/);
      await expectContent(`${uri}&tls-hostname=localhost`, content);
    },
  );

  testWith({ programs: ["qemu-nbd", "openssl"] }, "reads and writes what qemu-nbd shows", async () => {
    await using place = await scratchDirectory();
    await using pki = await certificates();
    const content = await randomFile(join(place.path, "disk.img"), SIZE);
    const socket = join(place.path, "nbd.sock");
    const credentials = `tls-creds-x509,id=tls0,endpoint=server,dir=${pki.path}`;
    const words = [
      "-t",
      "-e",
      "4",
      "-f",
      "raw",
      "--object",
      credentials,
      "--tls-creds",
      "tls0",
      "-k",
      socket,
      "disk.img",
    ];
    await using _server = await startAtSocket(["qemu-nbd", ...words], place.path, socket);
    await expectContent(`nbds+unix:///?socket=${socket}&tls-certificates=${pki.path}`, content);
    expect(await reason(`nbd+unix:///?socket=${socket}`)).toMatch(/wants TLS/);
  });
});

describe("NbdDevice over TLS with a shared key", () => {
  testWith({ programs: ["nbdkit", "psktool"] }, "reads and writes, where both know the key", async () => {
    await using place = await scratchDirectory();
    const content = await randomFile(join(place.path, "disk.img"), SIZE);
    const [keys, strangers] = [join(place.path, "keys.psk"), join(place.path, "strangers.psk")];
    for (const file of [keys, strangers]) await run("psktool", "--username=alice", `--pskfile=${file}`);
    const socket = join(place.path, "nbd.sock");
    await using _server = await startNbdkit(
      place.path,
      socket,
      "--tls=require",
      `--tls-psk=${keys}`,
      "file",
      "disk.img",
    );
    const uri = (user: string, file: string): string => `nbds+unix://${user}/?socket=${socket}&tls-psk-file=${file}`;
    await expectContent(uri("alice@", keys), content);
    await expectContent(uri("", keys), content); // the only one in the file
    const stranger = await reason(uri("alice@", strangers));
    expect(stranger).toMatch(/TLS failed|hung up|reset/);
    const key = (await readFile(strangers, "utf8")).trim().split(":")[1] as string;
    expect(stranger).not.toContain(key);
    expect(await reason(uri("bob@", keys))).toMatch(/it has no key of the user "bob"/);
    expect(await reason(uri("alice@", join(place.path, "none")))).toMatch(/^Cannot read ".*none": no such file/);
    await writeFile(strangers, "alice:xyzzy\n");
    expect(await reason(uri("alice@", strangers))).not.toContain("xyzzy");
  });

  testWith(
    { programs: ["nbdkit", "psktool", "openssl"] },
    "believes no server that shows a certificate instead",
    async () => {
      await using place = await scratchDirectory();
      await using pki = await certificates();
      await randomFile(join(place.path, "disk.img"), SIZE);
      const keys = join(place.path, "keys.psk");
      await run("psktool", "--username=alice", `--pskfile=${keys}`);
      const socket = join(place.path, "nbd.sock");
      const words = ["--tls=require", `--tls-certificates=${pki.path}`, "file", "disk.img"];
      await using _server = await startNbdkit(place.path, socket, ...words);
      process.env.SSL_CERT_FILE = join(pki.path, "ca-cert.pem");
      expect(await reason(`nbds+unix://alice@/?socket=${socket}&tls-psk-file=${keys}`)).toMatch(
        /TLS failed|hung up|reset/,
      );
    },
  );
});

// The NBD client against the servers that people run: nbdkit with plugins and filters, qemu-nbd, nbd-server. Each shows one
// sparse image; the client reads it whole, believes its holes only where there are zeros, changes it in all ways, and the
// server's own file has to hold what it should.
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { DeviceError } from "../../src/base/errors.ts";
import { NbdDevice, type NbdDeviceOptions } from "../../src/nbd/client/nbd-device.ts";
import { parseNbdUri } from "../../src/nbd/client/nbd-uri.ts";
import { randomFile, sparseFile } from "../support/files.ts";
import { until } from "../support/nbd-server.ts";
import { testWith } from "../support/needs.ts";
import { eventually } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { freePort, listens, startAtSocket, startNbdkit } from "../support/source-servers.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 8 * MIB;
/** Where the image has data. */
const PIECES: [number, number][] = [
  [0, 64 * KIB],
  [MIB, 300 * KIB],
  [5 * MIB + 4096, 4096],
  [SIZE - 64 * KIB, 64 * KIB],
];

const open = (uri: string, options: Partial<NbdDeviceOptions> = {}): Promise<NbdDevice> =>
  NbdDevice.open(parseNbdUri(uri), { access: "read-only", ...options });
const at = (socket: string, name = ""): string => `nbd+unix:///${name}?socket=${socket}`;

/** Why something fails, and its hint. */
async function reason(doing: Promise<unknown>): Promise<string> {
  const error = await doing.then(
    () => expect.fail("it did not fail"),
    (caught: unknown) => caught,
  );
  expect(error).toBeInstanceOf(Error);
  const { message, hint } = error as { message: string; hint?: string };
  return hint === undefined ? message : `${message}\n${hint}`;
}

/** All of a device, in odd pieces, many at a time. */
async function readAll(device: NbdDevice, piece = 777_777): Promise<Buffer> {
  const bytes = Buffer.alloc(device.size, 0xee);
  const reads: Promise<void>[] = [];
  for (let offset = 0; offset < bytes.length; offset += piece) {
    reads.push(device.read(offset, bytes.subarray(offset, offset + piece)));
  }
  await Promise.all(reads);
  return bytes;
}

function expectSame(actual: Buffer, expected: Buffer): void {
  const hash = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
  expect(hash(actual)).toBe(hash(expected));
}

/** Whether every extent that is called zero is, and the server tells some at all. */
async function expectExtents(device: NbdDevice, content: Buffer): Promise<boolean> {
  const extents = await device.extents(0, device.size);
  let offset = 0;
  for (const extent of extents) {
    expect(extent.offset).toBe(offset);
    offset += extent.length;
    if (extent.zero) expect(content.subarray(extent.offset, offset).every((byte) => byte === 0)).toBe(true);
  }
  expect(offset).toBe(device.size);
  return extents.some(({ zero }) => zero);
}

/** Changes a device in all ways, and the same bytes of `content`. */
async function change(device: NbdDevice, content: Buffer): Promise<void> {
  const write = async (offset: number, length: number, fua = false): Promise<void> => {
    const bytes = Buffer.alloc(length, (offset % 251) + 1);
    bytes.copy(content, offset);
    await device.write(offset, bytes, { fua });
  };
  const zero = async (offset: number, length: number, mayPunch: boolean): Promise<void> => {
    content.fill(0, offset, offset + length);
    await device.zero(offset, length, { mayPunch });
  };
  await Promise.all([
    write(3, 10),
    write(100, 5000),
    write(64 * KIB - 1, 2, true),
    write(2 * MIB, MIB + 777),
    zero(4 * MIB + 1, 70_000, true),
    zero(MIB + 5, 100_000, false),
    zero(MIB + 200_000, 512, true),
  ]);
  await device.flush();
  await device.discard(6 * MIB + 1, 100_000); // a hole anyway: it reads as zeros before and after, on all of these
  await write(SIZE - 7, 7);
  await device.flush();
}

/** Options of nbdkit, whether its client is told of holes, and how many connections it may have. */
const WAYS: [string, string[], { holes: boolean; connections: number }][] = [
  ["nbdkit file", ["file", "disk.img"], { holes: true, connections: 4 }],
  ["nbdkit without structured replies", ["--no-sr", "file", "disk.img"], { holes: false, connections: 4 }],
  ["nbdkit with 124 zeroes", ["--mask-handshake=1", "file", "disk.img"], { holes: true, connections: 4 }],
  ["nbdkit without extents", ["--filter=noextents", "file", "disk.img"], { holes: false, connections: 4 }],
  ["nbdkit without zeroes", ["--filter=nozero", "file", "disk.img"], { holes: true, connections: 4 }],
  [
    "nbdkit with emulated FUA",
    ["--filter=fua", "file", "disk.img", "fuamode=emulate"],
    { holes: true, connections: 4 },
  ],
  ["nbdkit one by one", ["-t", "1", "--filter=noparallel", "file", "disk.img"], { holes: true, connections: 4 }],
  [
    "nbdkit with delays",
    ["--filter=delay", "file", "disk.img", "delay-read=3ms", "delay-write=2ms"],
    { holes: true, connections: 4 },
  ],
  ["nbdkit at a rate", ["--filter=rate", "file", "disk.img", "rate=400M"], { holes: true, connections: 4 }],
  ["nbdkit behind a cache", ["--filter=cache", "file", "disk.img"], { holes: true, connections: 4 }],
  [
    "nbdkit for one connection",
    ["--filter=multi-conn", "file", "disk.img", "multi-conn-mode=disable"],
    { holes: true, connections: 1 },
  ],
  [
    "nbdkit with blocks of 4K, and not more than 64K at once",
    [
      ...["--filter=blocksize-policy", "file", "disk.img", "blocksize-error-policy=error"],
      ...["blocksize-minimum=4K", "blocksize-preferred=64K", "blocksize-maximum=64K"],
    ],
    { holes: true, connections: 4 },
  ],
  [
    "nbdkit with blocks of 64K",
    [
      ...["--filter=blocksize-policy", "file", "disk.img", "blocksize-error-policy=error"],
      ...["blocksize-minimum=64K", "blocksize-preferred=64K", "blocksize-maximum=32M"],
    ],
    { holes: true, connections: 4 },
  ],
];

describe("NbdDevice", () => {
  for (const [name, words, { holes, connections }] of WAYS) {
    testWith({ programs: ["nbdkit"] }, `reads and changes what ${name} shows`, async () => {
      await using place = await scratchDirectory();
      const content = await sparseFile(join(place.path, "disk.img"), SIZE, PIECES);
      const socket = join(place.path, "nbd.sock");
      await using _server = await startNbdkit(place.path, socket, ...words);
      {
        await using device = await open(at(socket), { access: "read-write" });
        expect(device.size).toBe(SIZE);
        expectSame(await readAll(device), content);
        expect(await expectExtents(device, content)).toBe(holes);
        await change(device, content);
        expectSame(await readAll(device), content);
        await expectExtents(device, content);
        expect(device.connections).toBe(connections);
        expect(device.incarnation).toBe(0);
      }
      expectSame(await readFile(join(place.path, "disk.img")), content);
    });
  }

  testWith({ programs: ["nbdkit"] }, "reads what nbdkit makes up: memory, data, a pattern beyond 4 GiB", async () => {
    await using place = await scratchDirectory();
    const socket = join(place.path, "nbd.sock");
    {
      await using _server = await startNbdkit(
        place.path,
        socket,
        "data",
        "data=( 0x55 0xAA )*1000 @1048576 7 0 0 0",
        "size=2M",
      );
      await using device = await open(at(socket));
      const bytes = await readAll(device);
      expect(bytes.subarray(0, 3)).toEqual(Buffer.from([0x55, 0xaa, 0x55]));
      expect(bytes.readUInt32LE(MIB)).toBe(7);
      expect((await device.extents(0, device.size)).some(({ zero }) => zero)).toBe(true);
    }
    {
      await using _server = await startNbdkit(place.path, socket, "pattern", "5T");
      await using device = await open(at(socket));
      for (const offset of [0, 2 ** 32 - 4096, 2 ** 41]) {
        const bytes = Buffer.alloc(8192);
        await device.read(offset, bytes);
        for (let i = 0; i < bytes.length; i += 8) expect(bytes.readBigUInt64BE(i)).toBe(BigInt(offset + i));
      }
    }
    {
      await using _server = await startNbdkit(place.path, socket, "memory", "6T");
      await using device = await open(at(socket), { access: "read-write" });
      await device.write(5 * 2 ** 40, Buffer.alloc(MIB, 1));
      expect((await device.extents(0, device.size)).filter(({ zero }) => !zero)).toEqual([
        { offset: 5 * 2 ** 40, length: MIB, hole: false, zero: false },
      ]);
      await device.zero(0, device.size);
      expect((await device.extents(0, device.size)).length).toBe(1);
    }
  });

  testWith({ programs: ["nbdkit"] }, "tells the errors of a server in its words", async () => {
    await using place = await scratchDirectory();
    const socket = join(place.path, "nbd.sock");
    const eval_ = [
      ...["eval", "get_size=echo 64K", "can_write=exit 0", "pread=echo EIO the head has crashed >&2; exit 1"],
      ...["pwrite=cat >/dev/null; echo ENOSPC no room >&2; exit 1"],
    ];
    await using _server = await startNbdkit(place.path, socket, ...eval_);
    await using device = await open(at(socket), { access: "read-write" });
    await expect(device.read(0, Buffer.alloc(512))).rejects.toMatchObject({ errno: "EIO", away: false, offset: 0 });
    await expect(device.write(0, Buffer.alloc(512))).rejects.toMatchObject({ errno: "ENOSPC" });
    expect(device.incarnation).toBe(0);
  });

  testWith({ programs: ["nbdkit"] }, "gets all of what fails at random in the end", async () => {
    await using place = await scratchDirectory();
    const content = await randomFile(join(place.path, "disk.img"), SIZE);
    const socket = join(place.path, "nbd.sock");
    const words = ["--filter=error", "file", "disk.img", "error-rate=5%", "error=EIO"];
    await using _server = await startNbdkit(place.path, socket, ...words);
    await using device = await open(at(socket));
    const bytes = Buffer.alloc(SIZE);
    let errors = 0;
    for (let offset = 0; offset < SIZE; offset += 16 * KIB) {
      const part = bytes.subarray(offset, offset + 16 * KIB);
      for (let done = false; !done; ) {
        done = await device.read(offset, part).then(
          () => true,
          (error) => {
            expect(error).toMatchObject({ errno: "EIO", away: false });
            errors += 1;
            return false;
          },
        );
      }
    }
    expectSame(bytes, content);
    expect(errors).toBeGreaterThan(0);
    expect(device.incarnation).toBe(0);
  });

  testWith({ programs: ["nbdkit"] }, "reads on through 20 deaths of its server", async () => {
    await using place = await scratchDirectory();
    const content = await randomFile(join(place.path, "disk.img"), 2 * SIZE);
    const socket = join(place.path, "nbd.sock");
    const words = ["--filter=delay", "file", "disk.img", "delay-read=2ms"];
    let server = await startNbdkit(place.path, socket, ...words);
    await using device = await open(at(socket));
    const bytes = Buffer.alloc(content.length);
    let [next, done] = [0, 0];
    const piece = 16 * KIB;
    const worker = async (): Promise<void> => {
      while (next < bytes.length) {
        const offset = next;
        next += piece;
        await device.read(offset, bytes.subarray(offset, offset + piece));
        done += 1;
      }
    };
    const workers = Promise.all(Array.from({ length: 8 }, worker));
    try {
      for (let deaths = 0; deaths < 20; deaths++) {
        const wanted = done + 30;
        await until(() => done >= wanted);
        await server.kill("SIGKILL");
        server = await startNbdkit(place.path, socket, ...words);
      }
      await workers;
    } finally {
      await server.kill("SIGKILL");
    }
    expectSame(bytes, content);
    expect(device.incarnation).toBeGreaterThanOrEqual(20);
    expect(device.changed).toBeUndefined();
  });

  testWith({ programs: ["nbdkit"] }, "says of what it cannot open why, and what can be done", async () => {
    await using place = await scratchDirectory();
    await randomFile(join(place.path, "disk.img"), 64 * KIB);
    const socket = join(place.path, "nbd.sock");
    {
      await using _server = await startNbdkit(place.path, socket, "-r", "file", "disk.img");
      expect(await reason(open(at(socket), { access: "read-write" }))).toMatch(
        /^Cannot open "nbd\+unix.*": the export is read-only$/,
      );
    }
    {
      await using _server = await startNbdkit(place.path, socket, "-o", "file", "disk.img");
      expect(await reason(open(at(socket)))).toMatch(/oldstyle/);
    }
    {
      await using _server = await startNbdkit(place.path, socket, "--mask-handshake=0", "file", "disk.img");
      expect(await reason(open(at(socket)))).toMatch(/fixed newstyle/);
    }
    {
      await using _server = await startNbdkit(place.path, socket, "file", "dir=.");
      expect(await reason(open(at(socket, "nosuch.img")))).toMatch(/"nosuch.img"/);
    }
    const tlsSocket = `nbds+unix:///?socket=${socket}&tls-verify-peer=0`;
    await using _server = await startNbdkit(place.path, socket, "file", "disk.img");
    expect(await reason(open(tlsSocket))).toMatch(/: the server offers no TLS/);
    await writeFile(join(place.path, "plain"), "");
    expect(await reason(open(at(join(place.path, "plain"))))).toMatch(/no socket|nobody listens/);
    expect(await reason(open(at(join(place.path, "none"))))).toMatch(/there is no such socket \(ENOENT\)$/);
  });

  for (const [name, words, connections] of [
    ["for eight clients", ["-e", "8"], 4],
    ["for one client", [], 1],
  ] as const) {
    testWith(
      { programs: ["qemu-nbd", "qemu-img"] },
      `reads and changes a qcow2 that qemu-nbd shows ${name}`,
      async () => {
        await using place = await scratchDirectory();
        const [raw, image, socket] = ["raw.img", "disk.qcow2", "q.sock"].map((file) => join(place.path, file)) as [
          string,
          string,
          string,
        ];
        const content = await sparseFile(raw, SIZE, PIECES);
        await run("qemu-img", "convert", "-O", "qcow2", raw, image);
        const words_ = [
          "qemu-nbd",
          "-t",
          "-f",
          "qcow2",
          "-x",
          "disk",
          "--discard=unmap",
          ...words,
          "-k",
          socket,
          image,
        ];
        {
          await using _server = await startAtSocket(words_, place.path, socket);
          await using device = await open(at(socket, "disk"), { access: "read-write" });
          expectSame(await readAll(device), content);
          expect(await expectExtents(device, content)).toBe(true);
          await change(device, content);
          expectSame(await readAll(device), content);
          expect(device.connections).toBe(connections);
          expect(await reason(open(at(socket, "other"), { connections: 1, requestTimeoutMs: 3000 }))).toMatch(
            connections === 4 ? /has no export "other"\nIts exports are "disk"/ : /did not answer|has no export/,
          );
          await device[Symbol.asyncDispose]();
          await using again = await open(at(socket, "disk"));
          expectSame(await readAll(again), content);
          await again[Symbol.asyncDispose]();
          await _server.kill("SIGTERM");
        }
        await run("qemu-img", "convert", "-O", "raw", image, raw);
        expectSame(await readFile(raw), content);
      },
    );
  }

  testWith({ programs: ["nbd-server"] }, "reads and changes what nbd-server shows", async () => {
    await using place = await scratchDirectory();
    const content = await sparseFile(join(place.path, "disk.img"), SIZE, PIECES);
    const port = await freePort();
    const file = join(place.path, "config");
    const common = `exportname = ${join(place.path, "disk.img")}\n`;
    await writeFile(
      file,
      `[generic]\nallowlist = true\nport = ${port}\nlistenaddr = 127.0.0.1\n` +
        `[disk]\n${common}flush = true\nfua = true\ntrim = true\n[plain]\n${common}[safe]\n${common}readonly = true\n`,
    );
    const pidFile = join(place.path, "nbd-server.pid");
    await run("nbd-server", "-C", file, "-p", pidFile); // goes to the background by itself
    await eventually("nbd-server listens", () => listens(port));
    const pid = Number(await readFile(pidFile, "utf8"));
    await using _server = { [Symbol.asyncDispose]: async () => void process.kill(pid) };
    const uri = (name: string): string => `nbd://127.0.0.1:${port}/${name}`;
    for (const name of ["disk", "plain"]) {
      await using device = await open(uri(name), { access: "read-write" });
      expect(device.size).toBe(SIZE);
      expectSame(await readAll(device), content);
      expect(await expectExtents(device, content)).toBe(false);
      await change(device, content);
      expectSame(await readAll(device), content);
      expect(device.canFlush).toBe(name === "disk");
    }
    expectSame(await readFile(join(place.path, "disk.img")), content);
    await using device = await open(uri("safe"));
    expectSame(await readAll(device), content);
    expect(await reason(open(uri("safe"), { access: "read-write" }))).toMatch(/the export is read-only$/);
    expect(await reason(open(uri("other")))).toMatch(
      /has no export "other"\nIts exports are "disk", "plain", "safe"\.$/,
    );
  });

  testWith({ programs: [] }, "says that nobody listens at a port, or that there is no such host", async () => {
    const port = await freePort();
    const failed = open(`nbd://127.0.0.1:${port}/`);
    await expect(failed).rejects.toBeInstanceOf(DeviceError);
    await expect(failed).rejects.toMatchObject({ errno: "ECONNREFUSED" });
    expect(await reason(open("nbd://no-such-host.invalid/"))).toMatch(/no such host|cannot be looked up/);
  });
});

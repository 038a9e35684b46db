// Replies that are not as they should be. A server that does so once loses its connection, and the read is right on the next;
// one that does it always ends in one clear error after a few attempts. What replies may be, they may be.
import { describe, expect, test } from "vitest";
import { DeviceError, LostWritesError } from "../../../src/base/errors.ts";
import { NbdDevice, type NbdDeviceOptions } from "../../../src/nbd/client/nbd-device.ts";
import { ChunkType, Command, Size, TransmissionFlag } from "../../../src/nbd/protocol.ts";
import {
  encodeErrorChunk,
  encodeHoleChunk,
  encodeStatusChunk,
  type Request,
} from "../../../src/nbd/transmission-codec.ts";
import {
  ALL_FLAGS,
  chunkBytes,
  dataBytes,
  FakeNbdServer,
  type FakePeer,
  type FakeServerOptions,
  simpleBytes,
} from "../../support/fake-nbd-server.ts";
import { until } from "../../support/nbd-server.ts";
import { QuickClock } from "../../support/quick-clock.ts";

const LENGTH = 8192;
const OFFSET = 4096;

function open(server: FakeNbdServer, options: Partial<NbdDeviceOptions> = {}): Promise<NbdDevice> {
  const clock = new QuickClock();
  return NbdDevice.open(server.address, { access: "read-only", connections: 1, clock, random: () => 0, ...options });
}

/** Content that no two neighbouring sectors share. */
async function fill(server: FakeNbdServer): Promise<Buffer> {
  const bytes = Buffer.alloc(server.disk.size);
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32BE((at * 2654435761) % 2 ** 32, at);
  await server.disk.write(0, bytes);
  return bytes;
}

type Answer = (request: Request, peer: FakePeer) => void;

const data = (request: Request, from: number, to: number, done = false, fill_ = 1): Buffer =>
  dataBytes(request, Buffer.alloc(to - from, fill_), { offset: request.offset + from, done });
const hole = (request: Request, from: number, to: number, done = false): Buffer => {
  const bytes = Buffer.alloc(Size.holeChunk);
  encodeHoleChunk(bytes, 0, { done, offset: request.offset + from, length: to - from }, request);
  return bytes;
};
const chunk = (request: Request, type: number, payload: Buffer, done = true): Buffer =>
  chunkBytes({ done, type, payload }, request);
const stranger = (request: Request): Request => ({ ...request, cookieLow: request.cookieLow + 100 });

const BROKEN_READS: [string, Answer, RegExp][] = [
  ["answers with another cookie", (r, p) => p.data(stranger(r), Buffer.alloc(LENGTH)), /not made/],
  [
    "answers with another half of the cookie",
    (r, p) => p.data({ ...r, cookieHigh: 77 }, Buffer.alloc(LENGTH)),
    /not made/,
  ],
  ["answers twice", (r, p) => p.send(data(r, 0, LENGTH, true), data(r, 0, LENGTH, true)), /not made/],
  ["sends garbage", (_, p) => p.send(Buffer.alloc(64, 0x5a)), /0x5a5a5a5a, which is no reply's/],
  ["answers by a simple reply", (r, p) => p.send(simpleBytes(0, r), Buffer.alloc(LENGTH)), /by a simple reply/],
  ["sends bytes before the range", (r, p) => p.send(data(r, -1, LENGTH, true)), /asked were/],
  ["sends bytes behind the range", (r, p) => p.send(data(r, 0, LENGTH + 1, true)), /asked were/],
  ["sends a hole behind the range", (r, p) => p.send(hole(r, LENGTH, LENGTH + 1, true)), /asked were/],
  [
    "sends 4 GiB",
    (r, p) => p.send(chunkBytes({ done: true, type: 1, length: 2 ** 32 - 1 }, r), Buffer.alloc(8)),
    /asked were/,
  ],
  ["sends bytes twice", (r, p) => p.send(data(r, 0, LENGTH), data(r, 100, 200, true)), /twice/],
  ["sends a hole over bytes", (r, p) => p.send(data(r, 0, LENGTH), hole(r, 0, 1, true)), /twice/],
  ["sends bytes over a hole", (r, p) => p.send(hole(r, 0, LENGTH), data(r, LENGTH - 1, LENGTH, true)), /twice/],
  ["leaves out the last byte", (r, p) => p.send(data(r, 0, LENGTH - 1, true)), /not send all/],
  ["leaves out the first byte", (r, p) => p.send(data(r, 1, LENGTH, true)), /not send all/],
  ["leaves out all", (r, p) => p.send(chunk(r, ChunkType.none, Buffer.alloc(0))), /not send all/],
  ["sends no bytes in a piece", (r, p) => p.send(chunk(r, ChunkType.offsetData, Buffer.alloc(8))), /too short/],
  ["sends a hole of no bytes", (r, p) => p.send(hole(r, 0, 0, true)), /without bytes/],
  ["sends half a hole", (r, p) => p.send(chunk(r, ChunkType.offsetHole, Buffer.alloc(8))), /does not have 8 bytes/],
  ["sends an unknown chunk", (r, p) => p.send(chunk(r, 77, Buffer.alloc(8))), /unknown type 77/],
  ["tells a status", (r, p) => p.send(encodeStatusChunk(7, [{ length: 1, flags: 0 }], true, r)), /not asked for/],
  ["says nothing, and goes on", (r, p) => p.send(chunk(r, ChunkType.none, Buffer.alloc(0), false)), /is not the last/],
  ["says nothing, at length", (r, p) => p.send(chunk(r, ChunkType.none, Buffer.alloc(9))), /does not have 9 bytes/],
  ["tells no error", (r, p) => p.send(encodeErrorChunk(0, Buffer.alloc(0), r)), /error that is none/],
  ["tells half an error", (r, p) => p.send(chunk(r, ChunkType.error, Buffer.alloc(5))), /does not have 5 bytes/],
  [
    "tells an error of other length",
    (r, p) => p.send(chunk(r, ChunkType.error, Buffer.from("000000050009", "hex"))),
    /does not have 6/,
  ],
  [
    "tells an error at length",
    (r, p) => p.send(chunkBytes({ done: true, type: ChunkType.error, length: 2 ** 31 }, r)),
    /does not have/,
  ],
  [
    "tells an error elsewhere",
    (r, p) => p.send(chunk(r, ChunkType.errorOffset, Buffer.from("0000000500000000000000000000", "hex"))),
    /an error at 0/,
  ],
  [
    "does not stop to tell errors",
    (r, p) => {
      const error = encodeErrorChunk(5, Buffer.alloc(0), r);
      error.writeUInt16BE(0, 4);
      p.send(...new Array(2000).fill(error));
    },
    /does not stop/,
  ],
];

const BROKEN_STATUS: [string, Answer, RegExp][] = [
  [
    "tells the status of another context",
    (r, p) => p.send(encodeStatusChunk(8, [{ length: 1, flags: 0 }], true, r)),
    /context 8/,
  ],
  ["tells no descriptors", (r, p) => p.send(chunk(r, ChunkType.blockStatus, Buffer.alloc(4))), /does not have 4 bytes/],
  [
    "tells half a descriptor",
    (r, p) => p.send(chunk(r, ChunkType.blockStatus, Buffer.alloc(16))),
    /no whole descriptors/,
  ],
  [
    "tells only of no bytes",
    (r, p) =>
      p.send(
        encodeStatusChunk(
          7,
          [
            { length: 0, flags: 0 },
            { length: 0, flags: 3 },
          ],
          true,
          r,
        ),
      ),
    /no status/,
  ],
  ["tells nothing", (r, p) => p.send(chunk(r, ChunkType.none, Buffer.alloc(0))), /no status/],
  ["answers by a simple reply", (r, p) => p.send(simpleBytes(0, r)), /no status/],
  [
    "tells more than 2^20 descriptors",
    (r, p) => p.send(chunkBytes({ done: true, type: 5, length: 12 + 2 ** 23 }, r)),
    /does not have/,
  ],
  [
    "tells it twice",
    (r, p) => p.send(...[false, true].map((done) => encodeStatusChunk(7, [{ length: 1, flags: 0 }], done, r))),
    /twice/,
  ],
  ["sends data", (r, p) => p.send(data(r, 0, 1, true)), /not asked for/],
];

function breaking(type: number, answer: Answer, { times = Number.POSITIVE_INFINITY } = {}): Partial<FakeServerOptions> {
  let left = times;
  return {
    onRequest: (request, _, peer) => {
      if (request.type !== type || left-- <= 0) return false;
      answer(request, peer);
      return true;
    },
  };
}

describe("A read of a server that", () => {
  test.each(BROKEN_READS)("%s is right on the next connection", async (_, answer) => {
    await using server = await FakeNbdServer.start(breaking(Command.read, answer, { times: 1 }));
    const content = await fill(server);
    await using device = await open(server);
    const buffer = Buffer.alloc(LENGTH);
    await device.read(OFFSET, buffer);
    if (server.connections === 1) await device.read(OFFSET, buffer); // the violation came behind a whole reply
    expect(buffer.equals(content.subarray(OFFSET, OFFSET + LENGTH))).toBe(server.connections === 2);
    expect(device.incarnation).toBe(1);
  });

  test.each(BROKEN_READS)("%s each time is an error that says so", async (name, answer, reason) => {
    await using server = await FakeNbdServer.start(breaking(Command.read, answer));
    await using device = await open(server);
    const buffer = Buffer.alloc(LENGTH);
    if (name === "answers twice") return; // the first answer is a good one
    const error = await device.read(OFFSET, buffer).catch((reason_) => reason_);
    expect(error).toBeInstanceOf(DeviceError);
    expect(error).toMatchObject({ errno: "EPROTO", offset: OFFSET, length: LENGTH });
    expect(error.message).toMatch(/^Cannot read 8192 bytes at 4096 .*: the server broke the NBD protocol: /);
    expect(error.message).toMatch(reason);
    expect(server.connections).toBeLessThanOrEqual(4);
    const before = Buffer.from(buffer);
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect(buffer.equals(before)).toBe(true); // it is the caller's again
  });

  test("sends a structured reply that was not agreed on, is an error", async () => {
    const answer: Answer = (request, peer) => peer.send(data(request, 0, LENGTH, true));
    await using server = await FakeNbdServer.start({ structured: false, ...breaking(Command.read, answer) });
    await using device = await open(server);
    await expect(device.read(OFFSET, Buffer.alloc(LENGTH))).rejects.toThrow(/was not agreed on/);
  });

  test("ends in the middle of a reply, wherever, is right on the next connection", async () => {
    let left = Number.POSITIVE_INFINITY;
    const answer: Answer = (request, peer) => {
      const whole = Buffer.concat([data(request, 0, 100, false, 9), data(request, 100, LENGTH, true, 9)]);
      peer.send(whole.subarray(0, left));
      if (left < whole.length) peer.socket.end();
      left = Number.POSITIVE_INFINITY;
    };
    await using server = await FakeNbdServer.start(breaking(Command.read, answer));
    await using device = await open(server);
    for (let bytes = 0; bytes < 200; bytes++) {
      left = bytes;
      const buffer = Buffer.alloc(LENGTH);
      await device.read(OFFSET, buffer);
      expect(buffer.every((byte) => byte === 9)).toBe(true);
    }
    expect(device.incarnation).toBe(200);
  });

  test("sends a reply byte by byte is right", async () => {
    const answer: Answer = async (request, peer) => {
      const whole = Buffer.concat([
        hole(request, 50, 100),
        data(request, 100, LENGTH, false, 9),
        data(request, 0, 50, true, 8),
      ]);
      for (const part of [...whole.subarray(0, 200)].map((byte) => Buffer.of(byte))) {
        peer.send(part);
        await new Promise((resolve) => setImmediate(resolve));
      }
      peer.send(whole.subarray(200));
    };
    await using server = await FakeNbdServer.start(breaking(Command.read, answer));
    await using device = await open(server);
    const buffer = Buffer.alloc(LENGTH, 1);
    await device.read(OFFSET, buffer);
    expect(buffer).toEqual(Buffer.concat([Buffer.alloc(50, 8), Buffer.alloc(50, 0), Buffer.alloc(LENGTH - 100, 9)]));
  });

  test("mixes the chunks of two replies is right", async () => {
    const waiting: Request[] = [];
    await using server = await FakeNbdServer.start({
      onRequest: (request, _, peer) => {
        waiting.push(request);
        const [first, second] = waiting;
        if (first === undefined || second === undefined) return true;
        peer.send(data(second, 4096, LENGTH, false, 2), data(first, 0, 4096, false, 1), hole(second, 0, 4096, false));
        peer.send(data(first, 4096, LENGTH, true, 1), chunk(second, ChunkType.none, Buffer.alloc(0)));
        return true;
      },
    });
    await using device = await open(server);
    const buffers = [Buffer.alloc(LENGTH, 7), Buffer.alloc(LENGTH, 7)] as const;
    await Promise.all([device.read(0, buffers[0]), device.read(OFFSET, buffers[1])]);
    expect(buffers[0].equals(Buffer.alloc(LENGTH, 1))).toBe(true);
    expect(buffers[1].equals(Buffer.concat([Buffer.alloc(4096, 0), Buffer.alloc(4096, 2)]))).toBe(true);
  });

  test.each([
    [
      "an error",
      (r: Request) => encodeErrorChunk(28, Buffer.from("disk is\n\u001b[1mfull"), r),
      "ENOSPC",
      / \(the server says: disk is \[1mfull\)$/,
    ],
    ["a simple error", (r: Request) => simpleBytes(5, r), "EIO", /: EIO$/],
    ["an unknown error", (r: Request) => encodeErrorChunk(4711, Buffer.alloc(0), r), "EINVAL", /: EINVAL$/],
    [
      "an error of an unknown type",
      (r: Request) => chunk(r, 0x8077, Buffer.from("00000005000031323334", "hex")),
      "EIO",
      /: EIO$/,
    ],
    [
      "an error after some data",
      (r: Request) => {
        const error = encodeErrorChunk(5, Buffer.alloc(0), r);
        error.writeUInt16BE(0, 4);
        return Buffer.concat([data(r, 0, 100), error, data(r, 200, 300), chunk(r, 0, Buffer.alloc(0))]);
      },
      "EIO",
      /: EIO$/,
    ],
  ] as [string, (request: Request) => Buffer, string, RegExp][])(
    "tells %s fails with it, and is not sent again",
    async (_, answer, errno, message) => {
      await using server = await FakeNbdServer.start(breaking(Command.read, (r, p) => p.send(answer(r))));
      await using device = await open(server);
      const error = await device.read(OFFSET, Buffer.alloc(LENGTH)).catch((reason) => reason);
      expect(error).toMatchObject({ errno, offset: OFFSET, length: LENGTH, away: false });
      expect(error.message).toMatch(message);
      expect(server.connections).toBe(1);
      expect(server.log.length).toBe(1);
    },
  );
});

describe("Block status of a server that", () => {
  test.each(BROKEN_STATUS)("%s is an error that says so", async (_, answer, reason) => {
    await using server = await FakeNbdServer.start(breaking(Command.blockStatus, answer));
    await using device = await open(server);
    const error = await device.extents(0, 65536).catch((reason_) => reason_);
    expect(error).toMatchObject({ errno: "EPROTO" });
    expect(error.message).toMatch(reason);
  });

  test("tells less, more, nothing in between and the same again is put together", async () => {
    const answers = [
      [
        { length: 0, flags: 0 },
        { length: 4096, flags: 3 },
        { length: 0, flags: 3 },
        { length: 4096, flags: 3 },
      ],
      [{ length: 8192, flags: 0 }],
      [
        { length: 2 ** 32 - 1, flags: 1 },
        { length: 100, flags: 0 },
      ],
    ];
    const answer: Answer = (request, peer) => peer.send(encodeStatusChunk(7, answers.shift() ?? [], true, request));
    await using server = await FakeNbdServer.start(breaking(Command.blockStatus, answer));
    await using device = await open(server);
    expect(await device.extents(4096, 65536)).toEqual([
      { offset: 4096, length: 8192, hole: true, zero: true },
      { offset: 12288, length: 8192, hole: false, zero: false },
      { offset: 20480, length: 49152, hole: true, zero: false },
    ]);
    expect(server.log).toEqual(["7 4096 65536 0", "7 12288 57344 0", "7 20480 49152 0"]);
  });

  test("refuses to tell it is data, of one that fails an error", async () => {
    await using server = await FakeNbdServer.start(breaking(Command.blockStatus, (r, p) => p.error(r, 22)));
    await using device = await open(server);
    expect(await device.extents(5, 100)).toEqual([{ offset: 5, length: 100, hole: false, zero: false }]);
    Object.assign(
      server.options,
      breaking(Command.blockStatus, (r, p) => p.error(r, 5)),
    );
    await expect(device.extents(0, 100)).rejects.toMatchObject({ errno: "EIO" });
  });

  test("tells of less than one of its blocks is believed that far, and not asked for ever", async () => {
    const answer: Answer = (request, peer) =>
      peer.send(encodeStatusChunk(7, [{ length: 512, flags: 3 }], true, request));
    const sizes = { minimum: 4096, preferred: 4096, maximum: 2 ** 25 };
    await using server = await FakeNbdServer.start({ sizes, ...breaking(Command.blockStatus, answer) });
    await using device = await open(server);
    expect(await device.extents(1024, 8192 - 1024)).toEqual([
      { offset: 1024, length: 3072, hole: false, zero: false },
      { offset: 4096, length: 512, hole: true, zero: true },
      { offset: 4608, length: 3584, hole: false, zero: false },
    ]);
  });

  test.each([1, 512])("tells of %i bytes at a time is asked only so often; the rest is data", async (length) => {
    const answer: Answer = (request, peer) => peer.send(encodeStatusChunk(7, [{ length, flags: 3 }], true, request));
    await using server = await FakeNbdServer.start({ size: 2 ** 25, ...breaking(Command.blockStatus, answer) });
    await using device = await open(server);
    const extents = await device.extents(0, 2 ** 25);
    const told = server.log.length * length;
    expect(server.log.length).toBe(64 + 4);
    expect(extents).toEqual([
      { offset: 0, length: told, hole: true, zero: true },
      { offset: told, length: 2 ** 25 - told, hole: false, zero: false },
    ]);
  });

  test.each([
    ["alike", () => 3],
    ["by turns", (index: number) => (index % 2) * 3],
  ])("tells of each byte of a range, %s, takes no more memory than the range is worth", async (_, flagsOf) => {
    const runs = Array.from({ length: 2 ** 20 }, (_each, index) => ({ length: 1, flags: flagsOf(index) }));
    const answer: Answer = (request, peer) => peer.send(encodeStatusChunk(7, runs, true, request));
    await using server = await FakeNbdServer.start({ size: 2 ** 23, ...breaking(Command.blockStatus, answer) });
    await using device = await open(server);
    const extents = await device.extents(0, 2 ** 23);
    expect(extents.length).toBeLessThanOrEqual(1024 + 2 ** 23 / 4096);
    expect(extents.at(-1)).toMatchObject({ hole: false, zero: false });
    expect(server.log.length).toBe(1);
  });

  test("is asked beyond 4 GiB in parts", async () => {
    await using server = await FakeNbdServer.start({ size: 2 ** 33 + 1000 });
    await server.disk.write(2 ** 32 + 4096, Buffer.alloc(1, 1));
    await using device = await open(server);
    expect(await device.extents(0, device.size)).toEqual([
      { offset: 0, length: 2 ** 32 + 4096, hole: true, zero: true },
      { offset: 2 ** 32 + 4096, length: 4096, hole: false, zero: false },
      { offset: 2 ** 32 + 8192, length: 2 ** 32 - 8192 + 1000, hole: true, zero: true },
    ]);
    for (const line of server.log) expect(Number(line.split(" ")[2])).toBeLessThan(2 ** 32);
  });
});

describe("NbdDevice", () => {
  test("has no more under way than fits in its window, on any connection", async () => {
    const held: [Request, FakePeer][] = [];
    await using server = await FakeNbdServer.start({
      size: 2 ** 30,
      onRequest: (request, _, peer) => {
        held.push([request, peer]);
        return true;
      },
    });
    await using device = await open(server, { connections: 4 });
    await until(() => device.connections === 4);
    const reads = Array.from({ length: 100 }, (_, i) => device.read(i * 2 ** 20, Buffer.alloc(2 ** 20)));
    const small = Array.from({ length: 1000 }, (_, i) => device.read(i * 2 ** 20, Buffer.alloc(512)));
    await until(() => held.length === 16);
    expect(held.reduce((bytes, [{ length }]) => bytes + length, 0)).toBe(16 * 2 ** 20);
    for (const peer of server.peers) expect(held.filter(([, each]) => each === peer).length).toBe(4);
    let most = 0;
    let done = false;
    const all = Promise.all([...reads, ...small]).then(() => {
      done = true;
    });
    while (!done) {
      most = Math.max(most, held.length);
      const [request, peer] = held.shift() ?? [];
      if (request !== undefined) peer?.data(request, Buffer.alloc(request.length));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await all;
    expect(most).toBeLessThanOrEqual(4 * 64);
    expect(most).toBeGreaterThan(64);
  });

  test("cuts what is larger than the server takes, and rounds what is smaller", async () => {
    const sizes = { minimum: 4096, preferred: 4096, maximum: 16384 };
    await using server = await FakeNbdServer.start({ sizes });
    const content = await fill(server);
    await using device = await open(server, { access: "read-write" });
    expect(device.mostAtOnce).toBe(16384);
    const buffer = Buffer.alloc(40_000);
    await device.read(1000, buffer);
    expect(buffer.equals(content.subarray(1000, 41_000))).toBe(true);
    expect(server.log.sort()).toEqual(["0 0 16384 0", "0 16384 16384 0", "0 32768 12288 0"]);
    server.log.length = 0;
    await device.write(5000, Buffer.alloc(10, 1));
    expect(server.log).toEqual(["0 4096 4096 0", "1 4096 4096 0"]);
    server.log.length = 0;
    await device.zero(4095, 8193);
    expect(server.log.sort()).toEqual(["0 0 4096 0", "1 0 4096 0", "6 4096 8192 16"]);
    server.log.length = 0;
    await device.discard(4095, 8194);
    await device.discard(1, 4096);
    expect(server.log).toEqual(["4 4096 8192 0"]);
    expect(device.blockSize).toBe(4096);
  });

  test("uses what the server offers for durable writes, and a flush where it offers none", async () => {
    for (const [flags, expected] of [
      [ALL_FLAGS, ["1 0 10 1", "6 0 10 19", "3 0 0 0"]],
      [ALL_FLAGS - TransmissionFlag.sendFua, ["1 0 10 0", "3 0 0 0", "6 0 10 18", "3 0 0 0", "3 0 0 0"]],
      [TransmissionFlag.hasFlags, ["1 0 10 0", "1 0 10 0"]],
    ] as const) {
      await using server = await FakeNbdServer.start({ flags });
      await using device = await open(server, { access: "read-write" });
      await device.write(0, Buffer.alloc(10, 1), { fua: true });
      await device.zero(0, 10, { fua: true, mayPunch: false });
      await device.flush();
      expect(server.log).toEqual(expected);
      expect(device.canFlush).toBe(flags !== TransmissionFlag.hasFlags);
      await device.discard(0, 10);
    }
  });

  test("asks for zeroes to be fast once, and says what came of it; until then it trusts in it where it is offered", async () => {
    await using server = await FakeNbdServer.start({
      onRequest: (request, _, peer) => {
        if (request.type !== Command.writeZeroes || request.flags < 16 || request.flags % 4 > 1) return false;
        peer.error(request, 95, "not fast");
        return true;
      },
    });
    await using device = await open(server, { access: "read-write" });
    expect(await device.canZeroFast({ mayPunch: true })).toBe(true);
    for (const mayPunch of [true, false, true, false]) await device.zero(0, 4096, { mayPunch });
    expect(server.log).toEqual(["6 0 4096 16", "6 0 4096 0", "6 0 4096 18", "6 0 4096 0", "6 0 4096 2"]);
    expect(await device.canZeroFast({ mayPunch: true })).toBe(false);
    expect(await device.canZeroFast({ mayPunch: false })).toBe(true);
    await using without = await FakeNbdServer.start({ flags: ALL_FLAGS - TransmissionFlag.sendFastZero });
    await using other = await open(without, { access: "read-write" });
    expect(await other.canZeroFast({ mayPunch: true })).toBe(false);
  });

  test.each([
    [5, "EIO"],
    [28, "ENOSPC"],
    [1, "EPERM"],
  ])(
    "a write that the server answers with %i fails with %s, and the next flush is only a flush",
    async (error, errno) => {
      await using server = await FakeNbdServer.start(breaking(Command.write, (r, p) => p.error(r, error)));
      await using device = await open(server, { access: "read-write" });
      await expect(device.write(0, Buffer.alloc(10))).rejects.toMatchObject({ errno, name: "DeviceError" });
      await device.flush();
      expect(server.connections).toBe(1);
    },
  );

  test("gives a write's buffer back only when the socket has taken it, however early the answer", async () => {
    await using server = await FakeNbdServer.start({ size: 2 ** 25 });
    await using device = await open(server, { access: "read-write" });
    const { socket } = [...server.peers][0] as FakePeer;
    // The server answers all of a write from the first of its headers, and reads the rest later.
    const pieces = 2 ** 24 / device.mostAtOnce;
    socket.removeAllListeners("data");
    socket.once("data", (bytes: Buffer) => {
      socket.pause();
      const [cookieHigh, first] = [bytes.readUInt32BE(8), bytes.readUInt32BE(12)];
      for (let index = 0; index < pieces; index++) {
        socket.write(chunkBytes({ done: true, type: ChunkType.none }, { cookieHigh, cookieLow: first + index }));
      }
    });
    socket.resume();
    let done = false;
    const written = device.write(0, Buffer.alloc(pieces * device.mostAtOnce, 1)).then(() => {
      done = true;
    });
    await until(() => socket.bytesWritten > 0 && socket.writableLength === 0);
    for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(done).toBe(false);
    socket.on("data", () => {});
    socket.resume();
    await written;
  });

  test("has lost a write that was answered, but not sent, when its connection is lost", async () => {
    await using server = await FakeNbdServer.start({ size: 2 ** 25 });
    await using device = await open(server, { access: "read-write" });
    const { socket } = [...server.peers][0] as FakePeer;
    // The server answers all of a write from the first of its headers, and reads the rest later.
    const pieces = 2 ** 24 / device.mostAtOnce;
    socket.removeAllListeners("data");
    socket.once("data", (bytes: Buffer) => {
      socket.pause();
      const [cookieHigh, first] = [bytes.readUInt32BE(8), bytes.readUInt32BE(12)];
      for (let index = 0; index < pieces; index++) {
        socket.write(chunkBytes({ done: true, type: ChunkType.none }, { cookieHigh, cookieLow: first + index }));
      }
    });
    socket.resume();
    const written = device.write(0, Buffer.alloc(pieces * device.mostAtOnce, 1)).catch((error) => error);
    await until(() => socket.bytesWritten > 0 && socket.writableLength === 0);
    for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
    socket.destroy();
    expect(await written).toBeInstanceOf(LostWritesError);
    await expect(device.flush()).rejects.toBeInstanceOf(LostWritesError);
  });
});

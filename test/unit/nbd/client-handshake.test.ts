// Servers that are not as they should be until transmission begins. Whatever one does, open() ends with one clear error, at
// once, holds no memory for it, and leaves no socket behind.
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { CloneError, DeviceError } from "../../../src/base/errors.ts";
import { NbdDevice, type NbdDeviceOptions } from "../../../src/nbd/client/nbd-device.ts";
import type { NbdAddress } from "../../../src/nbd/client/nbd-uri.ts";
import {
  encodeContext,
  encodeGreeting,
  encodeInfo,
  encodeOptionError,
  encodeOptionReply,
  encodeServer,
} from "../../../src/nbd/option-codec.ts";
import { InfoType, Option, OptionReply, TransmissionFlag } from "../../../src/nbd/protocol.ts";
import { ProtocolError } from "../../../src/nbd/protocol-error.ts";
import { ALL_FLAGS, FakeNbdServer, type FakePeer, type FakeServerOptions } from "../../support/fake-nbd-server.ts";
import { until } from "../../support/nbd-server.ts";
import { QuickClock } from "../../support/quick-clock.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const GO_ON = Buffer.from("go on");

function open(server: FakeNbdServer, options: Partial<NbdDeviceOptions> = {}, address: Partial<NbdAddress> = {}) {
  return NbdDevice.open({ ...server.address, ...address }, { access: "read-only", ...options });
}

/** What opening ends with, which must be an error; by then no connection is left. */
async function failure(
  server: FakeNbdServer,
  options: Partial<NbdDeviceOptions> = {},
  address: Partial<NbdAddress> = {},
): Promise<CloneError> {
  const error = await open(server, options, address).then(
    async (device) => {
      await device[Symbol.asyncDispose]();
      return expect.fail("it was opened");
    },
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(CloneError);
  expect((error as CloneError).message).toMatch(/^Cannot open "nbds?\+unix:\/\/\/disk\?socket=[^"]*": [^\n]+$/);
  await until(() => server.peers.size === 0);
  return error as CloneError;
}

/** A server that answers one option with bytes of its own. */
function answering(option: number, ...replies: Buffer[]): Partial<FakeServerOptions> {
  return {
    onOption: (asked, _, peer) => {
      if (asked !== option) return false;
      peer.send(...replies);
      return true;
    },
  };
}

const exportInfo = (size: number, flags = ALL_FLAGS): Buffer =>
  encodeOptionReply(Option.go, OptionReply.info, encodeInfo({ type: InfoType.export, size, flags }));
const sizesInfo = (minimum: number, preferred: number, maximum: number): Buffer => {
  const info = encodeInfo({ type: InfoType.blockSize, minimum, preferred, maximum });
  return encodeOptionReply(Option.go, OptionReply.info, info);
};
const ack = (option: number): Buffer => encodeOptionReply(option, OptionReply.ack);
const context = (id: number, name: string): Buffer =>
  encodeOptionReply(Option.setMetaContext, OptionReply.metaContext, encodeContext(id, name));

function hugeSize(): Buffer {
  const reply = exportInfo(0);
  reply.writeBigUInt64BE(2n ** 63n, 22);
  return reply;
}

/** A header that announces more than follows. */
function announcing(option: number, type: number, length: number): Buffer {
  const header = encodeOptionReply(option, type);
  header.writeUInt32BE(length, 16);
  return header;
}

const go = ack(Option.go);
const structured = ack(Option.structuredReply);
const broken = ack(Option.go);
broken.writeUInt32BE(0xdeadbeef, 0);
const BROKEN: [string, Partial<FakeServerOptions>, RegExp][] = [
  ["opens without a size", answering(Option.go, go), /without telling its size/],
  ["has 2^63 bytes", answering(Option.go, hugeSize(), go), /too large/],
  ["has 2^63 bytes by name", { go: false, ...answering(Option.exportName, Buffer.alloc(10, 0xff)) }, /too large/],
  ["has blocks of 0 bytes", answering(Option.go, exportInfo(512), sizesInfo(0, 4096, 65536), go), /make no sense/],
  ["has blocks of 3 bytes", answering(Option.go, exportInfo(512), sizesInfo(3, 4096, 65536), go), /make no sense/],
  [
    "has blocks of 128K",
    answering(Option.go, exportInfo(512), sizesInfo(131072, 131072, 2 ** 25), go),
    /make no sense/,
  ],
  ["prefers 100 bytes", answering(Option.go, exportInfo(512), sizesInfo(1, 100, 65536), go), /make no sense/],
  [
    "prefers less than a block",
    answering(Option.go, exportInfo(512), sizesInfo(4096, 512, 65536), go),
    /make no sense/,
  ],
  ["takes less than a block", answering(Option.go, exportInfo(512), sizesInfo(4096, 4096, 512), go), /make no sense/],
  ["answers another option", answering(Option.go, structured), /answered option 8, asked was 7/],
  ["answers with another magic number", answering(Option.go, broken), /magic number/],
  ["answers with a gigabyte", answering(Option.go, announcing(Option.go, OptionReply.info, 2 ** 30)), /too long/],
  ["refuses with 4 GiB", answering(Option.go, announcing(Option.go, OptionReply.errPolicy, 2 ** 32 - 1)), /too long/],
  ["acknowledges with data", answering(Option.go, encodeOptionReply(Option.go, OptionReply.ack, GO_ON)), /has 5 bytes/],
  [
    "answers GO as LIST",
    answering(Option.go, encodeOptionReply(Option.go, OptionReply.server, encodeServer("x"))),
    /is none to/,
  ],
  ["sends INFO without end", answering(Option.go, ...new Array(200).fill(exportInfo(512))), /more than 64 replies/],
  ["cuts INFO short", answering(Option.go, encodeOptionReply(Option.go, OptionReply.info, Buffer.alloc(5))), /missing/],
  ["chooses another context", answering(Option.setMetaContext, context(1, "qemu:dirty")), /not asked for/],
  [
    "chooses a context twice",
    answering(Option.setMetaContext, context(1, "base:allocation"), context(2, "base:allocation")),
    /twice/,
  ],
  [
    "tells a context's name of 5000 bytes",
    answering(Option.setMetaContext, context(1, "x".repeat(4096).concat("y"))),
    /./,
  ],
  ["greets otherwise", { onConnection: async (peer) => peer.send(Buffer.from("NBDMAGICwhatever?!")) }, /greeting/],
];

describe("NbdDevice.open()", () => {
  test.each(BROKEN)("of a server that %s is a protocol error", async (_, options, reason) => {
    await using server = await FakeNbdServer.start(options);
    const error = await failure(server);
    if (reason.source === ".") return;
    expect(error).toBeInstanceOf(ProtocolError);
    expect(error.message).toMatch(reason);
    expect(error.message).toContain("the server broke the NBD protocol: ");
  });

  test("of a server that hangs up after any of its bytes is an error, or done", async () => {
    for (const options of [{}, { structured: false, go: false, zeroes: true }]) {
      let left = Number.POSITIVE_INFINITY;
      let sent = 0;
      await using server = await FakeNbdServer.start(options);
      server.options.onConnection = async (peer) => {
        const send = peer.send.bind(peer);
        peer.send = (...parts) => {
          const bytes = Buffer.concat(parts);
          const now = bytes.subarray(0, Math.max(0, left));
          sent += bytes.length;
          left -= now.length;
          if (now.length > 0) send(now);
          if (left <= 0) peer.socket.end();
        };
        await server.serve(peer);
      };
      await (await open(server, { connections: 1 }))[Symbol.asyncDispose]();
      const whole = sent;
      expect(whole).toBeGreaterThan(100);
      for (let bytes = 0; bytes < whole; bytes++) {
        left = bytes;
        const error = await failure(server, { connections: 1 });
        expect(error.message).toMatch(/hung up|reset|closed/);
      }
    }
  });

  test.each([
    ["speaks HTTP", "HTTP/1.1 400 Bad Request\r\n\r\n", /no NBD server/],
    ["speaks SSH", "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", /no NBD server/],
    ["is oldstyle", Buffer.concat([Buffer.from("NBDMAGIC"), Buffer.from("0000420281861253", "hex")]), /oldstyle/],
    ["is not fixed newstyle", encodeGreeting(0), /fixed newstyle/],
  ])("of what %s says so", async (_, greeting, reason) => {
    await using server = await FakeNbdServer.start({
      onConnection: async (peer) => peer.send(Buffer.from(greeting)),
    });
    expect((await failure(server)).message).toMatch(reason);
  });

  test("of a server that says nothing ends when time is up", async () => {
    const clock = new QuickClock();
    await using server = await FakeNbdServer.start({ onConnection: async () => {} });
    const failed = failure(server, { clock, requestTimeoutMs: 10_000 });
    await until(() => server.connections === 1 && clock.sleeping > 0);
    await clock.expire(10_000);
    const error = await failed;
    expect(error.message).toContain("the server did not answer for 10 s");
    expect(error).toMatchObject({ errno: "ETIMEDOUT" });
  });

  test("of nobody is an error at once", async () => {
    const directory = await scratchDirectory();
    const path = join(directory.path, "nobody.sock");
    const opening = () => NbdDevice.open({ place: { path }, exportName: "" }, { access: "read-only" });
    await expect(opening()).rejects.toMatchObject({ errno: "ENOENT" });
    await expect(opening()).rejects.toThrow(/^Cannot open "nbd\+unix:\/\/\/\?socket=[^"]*": there is no such socket/);
    const tcp = createServer().listen(0, "127.0.0.1");
    await once(tcp, "listening");
    const { port } = tcp.address() as { port: number };
    tcp.close();
    await once(tcp, "close");
    const refused = NbdDevice.open({ place: { host: "127.0.0.1", port }, exportName: "" }, { access: "read-only" });
    await expect(refused).rejects.toMatchObject({ errno: "ECONNREFUSED" });
    await expect(refused).rejects.toBeInstanceOf(DeviceError);
    await directory[Symbol.asyncDispose]();
  });

  test("of an export that the server does not have lists those it has", async () => {
    await using server = await FakeNbdServer.start({ exports: ["disk", "b\u001b[31mad\n", ...ten()] });
    const other = await open(server, {}, { exportName: "wrong" }).catch((reason) => reason);
    expect(other.message).toMatch(/: the server has no export "wrong"$/);
    expect(other.hint).toBe(
      'Its exports are "disk", "b [31mad", "more0", "more1", "more2", "more3", "more4", "more5", "more6", "more7" and 2 more.',
    );
  });

  test.each([
    ["without end", new Array(5000).fill(encodeOptionReply(Option.list, OptionReply.server, encodeServer("x")))],
    ["not at all", [encodeOptionError(Option.list, OptionReply.errPolicy, "no")]],
    ["by other words", [encodeOptionReply(Option.list, OptionReply.info, Buffer.alloc(2))]],
    ["never", []],
  ])("of an export that a server that lists them %s does not have says so without them", async (_, replies) => {
    await using server = await FakeNbdServer.start(answering(Option.list, ...replies));
    if (replies.length === 0) {
      server.options.onOption = (asked, __, peer) => {
        if (asked === Option.list) peer.end();
        return asked === Option.list;
      };
    }
    const error = await open(server, {}, { exportName: "wrong" }).catch((reason) => reason);
    expect(error.message).toMatch(/: the server has no export "wrong"$/);
    expect(error.hint).toBeUndefined();
  });

  test.each([
    [OptionReply.errTlsRequired, /: the server wants TLS$/, /nbds:\/\//],
    [OptionReply.errShutdown, /: the server is shutting down \(it says: no, sorry\)$/, undefined],
  ])("of a server that refuses any option with %i says why", async (type, message, hint) => {
    for (const option of [Option.structuredReply, Option.setMetaContext, Option.go]) {
      await using server = await FakeNbdServer.start(answering(option, encodeOptionError(option, type, "no,\nsorry")));
      const error = await failure(server);
      expect(error.message).toMatch(message);
      if (hint === undefined) expect(error.hint).toBeUndefined();
      else expect(error.hint).toMatch(hint);
    }
  });

  test.each([
    [OptionReply.errPolicy, /refuses the export "disk": its policy forbids it: not you$/],
    [OptionReply.errBlockSizeRequired, /block sizes/],
    [OptionReply.errInvalid, /invalid/],
    [0x80001234, /error 0x80001234: not you/],
  ])("of an export that the server refuses with %i says why", async (type, message) => {
    await using server = await FakeNbdServer.start(answering(Option.go, encodeOptionError(Option.go, type, "not you")));
    expect((await failure(server)).message).toMatch(message);
  });

  test("of an empty export says so", async () => {
    await using server = await FakeNbdServer.start({ size: 0 });
    expect((await failure(server)).message).toMatch(/0 bytes/);
  });

  test("for writing of an export that is read-only says so", async () => {
    await using server = await FakeNbdServer.start({ flags: TransmissionFlag.hasFlags + TransmissionFlag.readOnly });
    expect((await failure(server, { access: "read-write" })).message).toMatch(/: the export is read-only$/);
    await (await open(server))[Symbol.asyncDispose]();
  });

  test("that is aborted ends with the reason", async () => {
    await using server = await FakeNbdServer.start({ onConnection: async () => {} });
    const controller = new AbortController();
    const opening = open(server, { signal: controller.signal });
    await until(() => server.connections === 1);
    controller.abort(new Error("enough"));
    await expect(opening).rejects.toThrow("enough");
    await expect(open(server, { signal: controller.signal })).rejects.toThrow("enough");
    await until(() => server.peers.size === 0);
  });
});

describe("NbdDevice.open() of nbds", () => {
  const tls = { type: "x509", verifyPeer: false } as const;

  test.each([
    [
      "does not know STARTTLS",
      answering(Option.startTls, encodeOptionError(Option.startTls, OptionReply.errUnsupported, "")),
      /offers no TLS$/,
    ],
    [
      "forbids it",
      answering(Option.startTls, encodeOptionError(Option.startTls, OptionReply.errPolicy, "off")),
      /offers no TLS \(it says: off\)$/,
    ],
    ["goes on in the clear", answering(Option.startTls, ack(Option.startTls), structured), /in the clear/],
    [
      "then hangs up",
      {
        onOption: (_option: number, _data: Buffer, peer: FakePeer) => {
          peer.send(ack(Option.startTls));
          peer.socket.end();
          return true;
        },
      },
      /TLS failed|hung up|closed/,
    ],
    [
      "answers something else",
      answering(Option.startTls, encodeOptionReply(Option.startTls, OptionReply.info, Buffer.alloc(2))),
      /is none to option 5/,
    ],
  ] as [string, Partial<FakeServerOptions>, RegExp][])(
    "of a server that %s fails, and asks for nothing else",
    async (_, options, reason) => {
      const asked: number[] = [];
      await using server = await FakeNbdServer.start({
        ...options,
        onOption: async (option, data, peer) => {
          asked.push(option);
          return (await options.onOption?.(option, data, peer)) ?? false;
        },
      });
      expect((await failure(server, {}, { tls })).message).toMatch(reason);
      expect(asked).toEqual([Option.startTls]);
    },
  );

  test("of a server that answers the client's TLS in the clear fails", async () => {
    await using server = await FakeNbdServer.start({
      onConnection: async (peer) => {
        peer.send(encodeGreeting(3));
        await peer.take(4 + 16);
        peer.send(ack(Option.startTls));
        await peer.take(1); // its hello
        peer.send(structured, structured, exportInfo(512), go);
      },
    });
    expect((await failure(server, {}, { tls })).message).toMatch(/: TLS failed: /);
  });
});

function ten(): string[] {
  return Array.from({ length: 10 }, (_, index) => `more${index}`);
}

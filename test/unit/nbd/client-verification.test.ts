// What a server shows when it is back is looked at through each new connection, before that takes any request.
import { describe, expect, test } from "vitest";
import { ChangedError } from "../../../src/base/errors.ts";
import { remoteSourceFingerprint, verifiedSource } from "../../../src/clone/fingerprint.ts";
import { SampledDevice } from "../../../src/clone/sampled-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { NbdDevice, type NbdDeviceOptions } from "../../../src/nbd/client/nbd-device.ts";
import { Command } from "../../../src/nbd/protocol.ts";
import { FakeNbdServer } from "../../support/fake-nbd-server.ts";
import { until } from "../../support/nbd-server.ts";
import { QuickClock } from "../../support/quick-clock.ts";

const SIZE = 1024 * 1024;

function content(byte: number): MemoryDevice {
  return new MemoryDevice({ size: SIZE, content: Buffer.alloc(SIZE, byte) });
}

async function open(server: FakeNbdServer, options: Partial<NbdDeviceOptions> = {}) {
  const clock = new QuickClock();
  const device = await NbdDevice.open(server.address, { access: "read-only", clock, random: () => 0, ...options });
  return { device, clock, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() };
}

/** The same, as a source that is verified. */
async function openVerified(server: FakeNbdServer, options: Partial<NbdDeviceOptions> = {}) {
  const opened = await open(server, options);
  return { ...opened, source: verifiedSource(opened.device, await remoteSourceFingerprint(opened.device)) };
}

/** The same, for writing, as a destination that is verified. */
async function openSampled(server: FakeNbdServer) {
  const opened = await open(server, { access: "read-write" });
  const destination = new SampledDevice(opened.device);
  opened.device.verifyBy((probe) => destination.difference(probe));
  return { ...opened, destination };
}

/** Has reads that are chosen fail; how many there were is told at any time. */
function failReads(server: FakeNbdServer, isChosen: (length: number, refused: number) => boolean): () => number {
  let refused = 0;
  server.options.onRequest = (request, _data, peer) => {
    if (request.type !== Command.read || !isChosen(request.length, refused)) return false;
    refused += 1;
    peer.error(request, 5, "bad sector");
    return true;
  };
  return () => refused;
}

/** Whether a promise has been settled, at any time. */
function watched(promise: Promise<unknown>): () => boolean {
  let ended = false;
  const end = (): void => {
    ended = true;
  };
  promise.then(end, end);
  return () => ended;
}

/** How many of the requests were reads of this many bytes. */
function reads(server: FakeNbdServer, length: number): number {
  return server.log.filter((line) => line.startsWith(`${Command.read} `) && line.split(" ")[2] === String(length))
    .length;
}

describe("An NBD source that is verified", () => {
  test("gives no byte of another export of the same size that is there when it is back", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    server.disk = content(7);
    await using opened = await openVerified(server);
    const { device, source } = opened;
    await until(() => device.connections === 4);
    await server.stop();
    server.disk = content(8);
    await server.listen();
    const buffers = Array.from({ length: 50 }, () => Buffer.alloc(512));
    const answers = await Promise.allSettled(buffers.map((buffer, index) => source.read(index * 512, buffer)));
    for (const answer of answers)
      expect(answer).toMatchObject({ status: "rejected", reason: expect.any(ChangedError) });
    expect(reads(server, 512)).toBe(0); // nobody has even asked
    expect(source.changed).toBe("its content is another");
    server.disk = content(7);
    await expect(source.read(0, Buffer.alloc(512))).rejects.toThrow(ChangedError);
  });

  test("is used again where it is the same, and looked at once", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    server.disk = content(7);
    await using opened = await openVerified(server, { connections: 1 });
    const { source } = opened;
    const before = reads(server, 16384);
    await server.stop();
    await server.listen();
    const buffer = Buffer.alloc(512);
    await source.read(0, buffer);
    expect(buffer[0]).toBe(7);
    expect(reads(server, 16384)).toBe(before + 9);
  });

  test("is found out by the first connection to it, while others are still to the right one", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    server.disk = content(7);
    await using opened = await openVerified(server, { connections: 3 });
    const { device } = opened;
    await until(() => device.connections === 3);
    server.disk = content(8);
    const [first] = server.peers;
    first?.end();
    await until(() => device.changed !== undefined);
    expect(device.connections).toBe(0);
  });

  test("that cannot read a sample any more is the same; one whose connection is lost meanwhile is called again", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    server.disk = content(7);
    await using opened = await openVerified(server, { connections: 1 });
    const { device, source } = opened;
    let samples = 0;
    server.options.onRequest = (request, _data, peer) => {
      if (request.length !== 16384) return false;
      samples += 1;
      if (samples === 5) peer.end();
      else if (request.offset === 0) peer.error(request, 5, "bad sector");
      else return false;
      return true;
    };
    await server.stop();
    await server.listen();
    await source.read(0, Buffer.alloc(512));
    expect(device.changed).toBeUndefined();
  });

  test("that fails at the samples of every new connection is not used, whatever it is, until they can be read", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    server.disk = content(7);
    await using opened = await openVerified(server);
    const { device, source } = opened;
    await until(() => device.connections === 4);
    await server.stop();
    server.disk = content(8);
    const refused = failReads(server, (length) => length === 16384);
    await server.listen();
    const buffer = Buffer.alloc(512);
    const reading = source.read(4096, buffer);
    const hasEnded = watched(reading);
    await until(() => refused() >= 100 || hasEnded());
    expect(reads(server, 512)).toBe(0);
    expect(device.connections).toBe(0);
    expect(device.changed).toBeUndefined(); // it may be the right one
    server.disk = content(7);
    server.options.onRequest = undefined;
    await reading;
    expect(buffer).toEqual(Buffer.alloc(512, 7));
  });

  test("that breaks the protocol whenever it is looked at is soon given up", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    await using opened = await openVerified(server, { connections: 1 });
    const { source } = opened;
    server.options.onRequest = (_request, _data, peer) => {
      peer.send(Buffer.alloc(64, 0x5a));
      return true;
    };
    server.cut();
    await expect(source.read(0, Buffer.alloc(512))).rejects.toMatchObject({ errno: "EPROTO", away: true });
    expect(server.connections).toBeLessThanOrEqual(6);
  });

  test("may be closed while it is looked at", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    await using opened = await openVerified(server, { connections: 1 });
    const { device, source } = opened;
    let asked = false;
    server.options.onRequest = () => {
      asked = true;
      return true; // and never answers
    };
    server.cut();
    const reading = source.read(0, Buffer.alloc(512)).catch((error) => error);
    await until(() => asked);
    await device[Symbol.asyncDispose]();
    expect(await reading).toMatchObject({ errno: "EBADF" });
    await until(() => server.peers.size === 0);
  });
});

describe("An NBD destination that is verified", () => {
  test("that fails at the samples of every new connection is not used, and an emptied one is found out when they can be read", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    await using opened = await openSampled(server);
    const { device, destination } = opened;
    for (let i = 0; i < 8; i++) await destination.write(i * 65536, Buffer.alloc(4096, 7));
    await destination.flush();
    await server.stop();
    server.disk = content(0);
    server.log.length = 0;
    const refused = failReads(server, () => true);
    await server.listen();
    const flushing = destination.flush();
    const hasEnded = watched(flushing);
    await until(() => refused() >= 40 || hasEnded());
    expect(hasEnded()).toBe(false);
    expect(device.changed).toBeUndefined(); // it may be the right one
    server.options.onRequest = undefined;
    await expect(flushing).rejects.toThrow(/it is another disk, or has lost what was flushed to it/);
    await expect(destination.read(0, Buffer.alloc(4096))).rejects.toThrow(ChangedError);
    expect(server.log.filter((line) => !line.startsWith(`${Command.read} `))).toEqual([]); // no flush, and no write
  });

  test("is used again once its samples can be read, and are there", async () => {
    await using server = await FakeNbdServer.start({ size: SIZE });
    await using opened = await openSampled(server);
    const { device, destination } = opened;
    await destination.write(0, Buffer.alloc(4096, 7));
    await destination.flush();
    await server.stop();
    const refused = failReads(server, (_length, before) => before < 10);
    await server.listen();
    await destination.flush();
    expect(refused()).toBe(10);
    expect(device.changed).toBeUndefined();
  });
});

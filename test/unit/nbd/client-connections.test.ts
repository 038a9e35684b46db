// Servers that go away and come back: what is sent again, what is told to be lost, and when it is given up. Pauses pass at
// once, deadlines when the test says so.
import { describe, expect, test } from "vitest";
import { ChangedError, DeviceError, LostWritesError } from "../../../src/base/errors.ts";
import { NbdDevice, type NbdDeviceOptions } from "../../../src/nbd/client/nbd-device.ts";
import { Command, Option, TransmissionFlag } from "../../../src/nbd/protocol.ts";
import { dataBytes, FakeNbdServer, type FakePeer } from "../../support/fake-nbd-server.ts";
import { until } from "../../support/nbd-server.ts";
import { QuickClock } from "../../support/quick-clock.ts";

const MINUTE = 60_000;
const NO_MULTI = { flags: TransmissionFlag.hasFlags + TransmissionFlag.sendFlush };

async function open(server: FakeNbdServer, options: Partial<NbdDeviceOptions> = {}) {
  const clock = new QuickClock();
  const notes: string[] = [];
  const device = await NbdDevice.open(server.address, {
    access: "read-only",
    clock,
    random: () => 0,
    onNote: (line) => notes.push(line),
    ...options,
  });
  return { device, clock, notes, [Symbol.asyncDispose]: () => device[Symbol.asyncDispose]() };
}

async function turns(count = 20): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
}

describe("A source", () => {
  test("that is stopped and started 20 times in the middle of reads is read whole", async () => {
    await using server = await FakeNbdServer.start({ size: 2 ** 22 });
    const content = Buffer.alloc(server.disk.size);
    for (let at = 0; at < content.length; at += 4) content.writeUInt32BE(at, at);
    await server.disk.write(0, content);
    await using opened = await open(server);
    const { device } = opened;
    const copy = Buffer.alloc(content.length);
    let stops = 0;
    let answered = 0;
    server.options.onRequest = () => {
      answered += 1;
      if (stops >= 20 || answered % 10 !== 5) return false;
      stops += 1;
      void server.stop().then(() => server.listen());
      return true;
    };
    const piece = 16_384;
    let at = 0;
    const worker = async (): Promise<void> => {
      while (at < copy.length) {
        const offset = at;
        at += piece;
        await device.read(offset, copy.subarray(offset, offset + piece));
      }
    };
    await Promise.all([worker(), worker(), worker(), worker(), worker(), worker()]);
    expect(stops).toBe(20);
    expect(copy.equals(content)).toBe(true);
    expect(device.incarnation).toBeGreaterThanOrEqual(20);
    expect(device.changed).toBeUndefined();
  });

  test("that does not come back is given up in time, and used again when it is there", async () => {
    await using server = await FakeNbdServer.start();
    await using opened = await open(server, { reconnectTimeoutMs: MINUTE });
    const { device, clock, notes } = opened;
    await until(() => device.connections === 4);
    await server.stop();
    const reads = [0, 1, 2].map((i) => device.read(i, Buffer.alloc(10)).catch((error) => error));
    await turns();
    await clock.expire(MINUTE);
    for (const error of await Promise.all(reads)) {
      expect(error).toBeInstanceOf(DeviceError);
      expect(error).toMatchObject({ errno: "ENOENT", away: true, length: 10 });
    }
    expect(notes.length).toBe(2);
    expect(notes[0]).toMatch(/^"nbd\+unix:[^"]*" is not there any more \(.*\); it is called again$/);
    expect(notes[1]).toMatch(/has not come back for 60 s \(there is no such socket/);
    // From now on each request fails at once, or after one more call.
    await expect(device.read(0, Buffer.alloc(10))).rejects.toMatchObject({ away: true });
    await expect(device.extents(0, 10)).rejects.toMatchObject({ away: true });
    expect(device.incarnation).toBe(0);
    await server.listen();
    await clock.expire(10_000);
    await device.read(0, Buffer.alloc(10));
    expect(notes[2]).toMatch(/is there again after [\d.]+ s$/);
    expect(device.incarnation).toBeGreaterThan(0);
    await until(() => device.connections === 4);
  });

  test("that is gone is not called again for every request", async () => {
    await using server = await FakeNbdServer.start();
    await using opened = await open(server, { connections: 1 });
    const { device, clock } = opened;
    server.options.onConnection = async (peer) => peer.end();
    server.cut();
    await turns(100);
    await clock.expire(MINUTE);
    await turns(100);
    const before = server.connections;
    for (let i = 0; i < 50; i++) await expect(device.read(0, Buffer.alloc(1))).rejects.toMatchObject({ away: true });
    expect(server.connections - before).toBeLessThanOrEqual(2);
  });

  test("that has another size when it is back has changed, for ever", async () => {
    await using server = await FakeNbdServer.start();
    await using opened = await open(server);
    const { device, notes } = opened;
    await server.stop();
    server.options.size = 4096;
    await server.listen();
    const error = await device.read(0, Buffer.alloc(10)).catch((reason) => reason);
    expect(error).toBeInstanceOf(ChangedError);
    expect(error).toMatchObject({ difference: "its size was 1048576 bytes, and is 4096 bytes" });
    expect(device.changed).toBe("its size was 1048576 bytes, and is 4096 bytes");
    server.options.size = 1048576;
    await expect(device.read(0, Buffer.alloc(10))).rejects.toBeInstanceOf(ChangedError);
    await expect(device.extents(0, 10)).rejects.toBeInstanceOf(ChangedError);
    expect(notes.at(-1)).toMatch(/has changed: its size was/);
    await turns();
    expect(server.peers.size).toBe(0);
  });

  test("that does not have the export yet when it is back is called again", async () => {
    await using server = await FakeNbdServer.start();
    await using opened = await open(server);
    const { exports } = server.options;
    await server.stop();
    server.options.exports = ["other"];
    await server.listen();
    const before = server.connections;
    const read = opened.device.read(0, Buffer.alloc(10));
    await until(() => server.connections > before + 2);
    server.options.exports = exports;
    await read;
  });

  test("that dies of a read is asked only so often", async () => {
    await using server = await FakeNbdServer.start({
      onRequest: (_request, _data, peer) => {
        peer.end();
        return true;
      },
    });
    await using opened = await open(server);
    await until(() => opened.device.connections === 4);
    const error = await opened.device.read(0, Buffer.alloc(10)).catch((reason) => reason);
    expect(error).toBeInstanceOf(DeviceError);
    expect(error).toMatchObject({ away: true });
    expect(error.message).toMatch(/^Cannot read 10 bytes at 0 from .*(hung up|reset|closed)/);
    expect(server.log.length).toBeLessThanOrEqual(40);
  });

  test("whose connections die of a read one after the other is asked on the others as well", async () => {
    let deaths = 0;
    await using server = await FakeNbdServer.start({
      onRequest: (_request, _data, peer) => {
        deaths += 1;
        if (deaths > 12) return false;
        peer.end();
        return true;
      },
    });
    await using opened = await open(server);
    await until(() => opened.device.connections === 4);
    await opened.device.read(0, Buffer.alloc(10)); // the four that there were at the same time count as one
    expect(deaths).toBe(13);
  });

  test("that worked is called again at once, one that did not after a pause", async () => {
    const clock = new QuickClock(0); // no pause passes by itself
    await using server = await FakeNbdServer.start();
    await using opened = await open(server, { connections: 1, clock });
    const { device } = opened;
    await device.read(0, Buffer.alloc(10));
    server.cut();
    await until(() => device.incarnation === 1);
    server.cut(); // before it was of any use
    await until(() => device.connections === 0 && clock.sleeping > 0);
    await turns(50);
    expect(server.connections).toBe(2);
    await clock.expire(100);
    await until(() => device.incarnation === 2);
    await device.read(0, Buffer.alloc(10));
    server.cut();
    await until(() => device.incarnation === 3);
  });

  test("that has larger blocks when it is back is called again", async () => {
    const sizes = { minimum: 512, preferred: 4096, maximum: 2 ** 25 };
    await using server = await FakeNbdServer.start({ sizes });
    await using opened = await open(server);
    const { device, clock } = opened;
    for (const worse of [
      { ...sizes, minimum: 4096 },
      { ...sizes, maximum: 65536 },
    ]) {
      server.options.sizes = worse;
      server.cut();
      await until(() => device.connections === 0);
      const failed = device.read(0, Buffer.alloc(10)).catch((error) => error);
      await turns();
      await clock.expire(MINUTE);
      expect((await failed).message).toMatch(
        /: the export (has larger blocks|takes only smaller requests) than before$/,
      );
      server.options.sizes = sizes;
      await clock.expire(10_000);
      await device.read(0, Buffer.alloc(10));
    }
  });

  test("that is silent loses its connection, and the read is sent again", async () => {
    const held: FakePeer[] = [];
    await using server = await FakeNbdServer.start({
      onRequest: (_request, _data, peer) => {
        held.push(peer);
        return held.length === 1;
      },
    });
    await using opened = await open(server, { connections: 1, requestTimeoutMs: MINUTE });
    const { device, clock, notes } = opened;
    const read = device.read(0, Buffer.alloc(10));
    await until(() => held.length === 1);
    await clock.expire(MINUTE - 1);
    expect(device.connections).toBe(1);
    await clock.expire(1 + MINUTE / 4);
    await read;
    expect(notes[0]).toContain("the server did not answer for 60 s");
    expect(server.connections).toBe(2);
  });

  test("that sends a little now and then is waited for, but not for ever", async () => {
    let held: FakePeer | undefined;
    await using server = await FakeNbdServer.start({
      onRequest: (request, _data, peer) => {
        if (held !== undefined) return false;
        held = peer;
        peer.send(dataBytes(request, Buffer.alloc(100_000), { offset: 0, done: true }).subarray(0, 1000));
        return true;
      },
    });
    await using opened = await open(server, { connections: 1, requestTimeoutMs: MINUTE });
    const { device, clock } = opened;
    const read = device.read(0, Buffer.alloc(100_000));
    await until(() => held !== undefined);
    let waited = 0;
    while (device.incarnation === 0 && waited < 100) {
      held?.send(Buffer.alloc(1));
      await turns(5);
      await clock.expire(MINUTE / 4);
      waited += 1;
    }
    await read;
    expect(waited).toBeGreaterThanOrEqual(38); // ten minutes
    expect(waited).toBeLessThan(45);
  });

  test.each([1, 4])("that lets in everybody, and answers nobody, is given up in time: %i connections", async (most) => {
    await using server = await FakeNbdServer.start({ onRequest: () => true });
    await using opened = await open(server, { connections: most, requestTimeoutMs: MINUTE });
    const { device, clock } = opened;
    await until(() => device.connections === most);
    const startedAt = clock.now();
    let failed: unknown;
    void device.read(0, Buffer.alloc(10)).catch((error) => {
      failed = error;
    });
    for (let quarter = 0; quarter < 20 && failed === undefined; quarter++) {
      await turns(50);
      await clock.expire(MINUTE / 4);
    }
    expect(failed).toMatchObject({ errno: "ETIMEDOUT", away: true, length: 10 });
    expect(clock.now() - startedAt).toBeLessThanOrEqual(2.75 * MINUTE);
    expect(server.log.length).toBe(2);
    // It is asked again, but others who are not answered wait no longer than for one answer.
    const againAt = clock.now();
    failed = undefined;
    void device.read(0, Buffer.alloc(10)).catch((error) => {
      failed = error;
    });
    for (let quarter = 0; quarter < 20 && failed === undefined; quarter++) {
      await turns(50);
      await clock.expire(MINUTE / 4);
    }
    expect(failed).toMatchObject({ errno: "ETIMEDOUT", away: true, length: 10 });
    expect(clock.now() - againAt).toBeLessThanOrEqual(1.5 * MINUTE);
    server.options.onRequest = undefined;
    await device.read(0, Buffer.alloc(10));
  });

  test("that breaks the protocol again and again is not called for a while, and then again", async () => {
    await using server = await FakeNbdServer.start({
      onRequest: (_request, _data, peer) => {
        peer.send(Buffer.alloc(64, 0x5a));
        return true;
      },
    });
    await using opened = await open(server, { reconnectTimeoutMs: MINUTE });
    const { device, clock, notes } = opened;
    await until(() => device.connections === 4);
    const read = (): Promise<void> => device.read(0, Buffer.alloc(10));
    const failures: { errno: string; away: boolean }[] = [];
    for (let i = 0; i < 4; i++) failures.push(await read().catch((error) => error));
    // At first that may be what was asked for, in the end it is the server.
    expect(failures[0]).toMatchObject({ errno: "EPROTO", away: false });
    expect(failures.at(-1)).toMatchObject({ errno: "EPROTO", away: true });
    expect(device.connections).toBe(0);
    await turns();
    const [asked, called] = [server.log.length, server.connections];
    expect(asked).toBeLessThanOrEqual(20);
    for (let i = 0; i < 50; i++) {
      await expect(read()).rejects.toThrow(/^Cannot read 10 bytes at 0 .*: the server broke the NBD protocol: /);
    }
    await clock.expire(MINUTE / 2);
    await expect(read()).rejects.toMatchObject({ errno: "EPROTO", away: true });
    expect(server.log.length).toBe(asked);
    expect(server.connections).toBe(called);
    expect(notes.at(-1)).toMatch(/ is not called for 60 s: the server broke the NBD protocol: /);
    expect(notes.length).toBeLessThanOrEqual(3);
    server.options.onRequest = undefined;
    await clock.expire(MINUTE);
    await read();
    expect(notes.at(-1)).toMatch(/ is there again after /);
    await until(() => device.connections === 4);
  });

  test("that breaks the protocol now and then is called again each time", async () => {
    let answers = 0;
    await using server = await FakeNbdServer.start({
      onRequest: (_request, _data, peer) => {
        answers += 1;
        if (answers % 2 === 0) peer.send(Buffer.alloc(64, 0x5a));
        return answers % 2 === 0;
      },
    });
    await using opened = await open(server, { connections: 1, reconnectTimeoutMs: MINUTE });
    for (let i = 0; i < 20; i++) {
      await opened.device.read(0, Buffer.alloc(10));
      await opened.clock.expire(MINUTE / 3);
    }
    expect(opened.device.incarnation).toBeGreaterThanOrEqual(19);
  });

  test("that comes and goes is not told of each time", async () => {
    await using server = await FakeNbdServer.start();
    await using opened = await open(server, { connections: 1 });
    const { device, clock, notes } = opened;
    const comeAndGo = async (): Promise<void> => {
      const before = device.incarnation;
      await device.read(0, Buffer.alloc(10));
      server.cut();
      await until(() => device.incarnation > before);
    };
    for (let i = 0; i < 10; i++) await comeAndGo();
    expect(notes.map((line) => line.replace(/^"[^"]*" (is \w+ \w+).*/, "$1"))).toEqual([
      "is not there",
      "is there again",
    ]);
    await clock.expire(MINUTE);
    await comeAndGo();
    expect(notes.length).toBe(4);
  });

  test("that is shutting down is left, and read elsewhere", async () => {
    let times = 0;
    await using server = await FakeNbdServer.start({
      onRequest: (request, _data, peer) => {
        times += 1;
        if (times > 1) return false;
        peer.error(request, 108, "bye");
        return true;
      },
    });
    await using opened = await open(server, { connections: 1 });
    await opened.device.read(0, Buffer.alloc(10));
    expect(server.connections).toBe(2);
  });

  test("that lets in only one client is read over one connection", async () => {
    for (const flags of [TransmissionFlag.hasFlags, TransmissionFlag.hasFlags + TransmissionFlag.canMultiConn]) {
      await using server = await FakeNbdServer.start({ mostConnections: 1, flags });
      await using opened = await open(server);
      await opened.device.read(0, Buffer.alloc(10));
      await turns(50);
      await opened.device.read(0, Buffer.alloc(10));
      expect(opened.device.connections).toBe(1);
      expect(opened.device.incarnation).toBe(0);
      expect(server.connections).toBeLessThanOrEqual(4);
    }
  });

  test("that lets a second client wait is read over one connection meanwhile", async () => {
    await using server = await FakeNbdServer.start({ flags: TransmissionFlag.hasFlags });
    let peers = 0;
    server.options.onConnection = async (peer) => {
      peers += 1;
      if (peers === 1) await server.serve(peer);
    };
    await using other = await open(server);
    await other.device.read(0, Buffer.alloc(10));
    await until(() => peers === 2);
    await other.clock.expire(5000);
    await other.device.read(0, Buffer.alloc(10));
    expect(other.device.connections).toBe(1);
    expect(peers).toBe(2);
  });

  test("whose second connection is lost alone gets another", async () => {
    await using server = await FakeNbdServer.start();
    await using opened = await open(server, { connections: 2 });
    const { device, notes } = opened;
    await until(() => device.connections === 2);
    await Promise.all([0, 1, 2, 3].map((i) => device.read(i, Buffer.alloc(1))));
    [...server.peers][1]?.end();
    await until(() => device.incarnation === 1);
    expect(device.connections).toBe(2);
    expect(notes).toEqual([]);
  });
});

describe("A destination", () => {
  const writing = { access: "read-write" } as const;

  test("has one connection, unless several are promised to be one", async () => {
    await using one = await FakeNbdServer.start(NO_MULTI);
    await using single = await open(one, writing);
    await single.device.write(0, Buffer.alloc(10));
    await turns(50);
    expect(one.connections).toBe(1);
    await using many = await FakeNbdServer.start();
    await using multiple = await open(many, writing);
    await until(() => multiple.device.connections === 4);
  });

  test.each(["write", "zero", "discard"] as const)(
    "that goes away under a %s tells so, and so does the next flush, once",
    async (verb) => {
      let held = 0;
      await using server = await FakeNbdServer.start({
        onRequest: () => {
          held += 1;
          return held === 1;
        },
      });
      await using opened = await open(server, { ...writing, connections: 1 });
      const { device } = opened;
      const doing = verb === "write" ? device.write(4096, Buffer.alloc(4096)) : device[verb](4096, 4096);
      const failed = doing.catch((error) => error);
      await until(() => held === 1);
      server.cut();
      const error = await failed;
      expect(error).toBeInstanceOf(LostWritesError);
      expect(error).toMatchObject({ offset: 4096, length: 4096, away: false });
      expect(server.log.length).toBe(1); // it was not sent again
      await expect(device.flush()).rejects.toBeInstanceOf(LostWritesError);
      expect(server.log.length).toBe(1);
      await device.flush();
      await device.write(0, Buffer.alloc(10));
      await device.flush();
    },
  );

  test("that goes away after a write that was not flushed tells so at the next flush, once", async () => {
    await using server = await FakeNbdServer.start(NO_MULTI);
    await using opened = await open(server, writing);
    const { device } = opened;
    await device.write(0, Buffer.alloc(10));
    await device.flush();
    server.cut();
    await until(() => device.incarnation === 1);
    await device.flush(); // all was durable
    await device.write(0, Buffer.alloc(10));
    server.cut();
    await until(() => device.incarnation === 2);
    await device.write(0, Buffer.alloc(10));
    await expect(device.flush()).rejects.toThrow(/and with it perhaps what was written$/);
    await device.flush();
  });

  test("that goes away under a flush tells so, once", async () => {
    let held = 0;
    await using server = await FakeNbdServer.start({
      onRequest: ({ type }) => {
        if (type === Command.flush) held += 1;
        return type === Command.flush && held === 1;
      },
    });
    await using opened = await open(server, { ...writing, connections: 1 });
    const { device } = opened;
    await device.write(0, Buffer.alloc(10));
    const flushed = device.flush().catch((error) => error);
    await until(() => held === 1);
    server.cut();
    expect(await flushed).toBeInstanceOf(LostWritesError);
    await device.flush();
  });

  test("that goes away under a flush that has nothing to vouch for is asked again", async () => {
    let held = 0;
    await using server = await FakeNbdServer.start({
      onRequest: ({ type }) => {
        if (type === Command.flush) held += 1;
        return type === Command.flush && held === 1;
      },
    });
    await using opened = await open(server, { ...writing, connections: 1 });
    const flushed = opened.device.flush();
    await until(() => held === 1);
    server.cut();
    await flushed;
    expect(held).toBe(2);
  });

  test("that is only read from is asked to flush what others have written", async () => {
    let flushes = 0;
    await using server = await FakeNbdServer.start({
      onRequest: ({ type }) => {
        if (type === Command.flush) flushes += 1;
        return false;
      },
    });
    await using opened = await open(server, { access: "read-only" });
    await opened.device.flush();
    expect(flushes).toBe(1);
  });

  test("that does not answer a flush, however often it is called, is given up in time", async () => {
    await using server = await FakeNbdServer.start({ ...NO_MULTI, onRequest: () => true });
    await using opened = await open(server, { ...writing, requestTimeoutMs: MINUTE });
    let failed: unknown;
    void opened.device.flush().catch((error) => {
      failed = error;
    });
    const startedAt = opened.clock.now();
    for (let minute = 0; minute < 60 && failed === undefined; minute++) {
      await turns(50);
      await opened.clock.expire(MINUTE);
    }
    expect(failed).toMatchObject({ errno: "ETIMEDOUT", away: true });
    expect(opened.clock.now() - startedAt).toBeLessThanOrEqual(6 * MINUTE);
  });

  test("of whose connections one is lost vouches for nothing that any of them took", async () => {
    let flushing: (() => void) | undefined;
    await using server = await FakeNbdServer.start({
      onRequest: async ({ type }) => {
        if (type === Command.flush && flushing === undefined) {
          await new Promise<void>((resolve) => {
            flushing = resolve;
          });
        }
        return false;
      },
    });
    await using opened = await open(server, { ...writing, connections: 2 });
    const { device } = opened;
    await until(() => device.connections === 2);
    await device.write(0, Buffer.alloc(10));
    const flushed = device.flush().catch((error) => error);
    await until(() => flushing !== undefined);
    const [first, second] = [...server.peers] as [FakePeer, FakePeer];
    // Either may be the one that the flush goes over: the other is cut.
    const before = server.peers.size;
    (server.log.length % 2 === 0 ? second : first).end();
    await until(() => server.peers.size < before || device.incarnation > 0);
    flushing?.();
    expect(await flushed).toBeInstanceOf(LostWritesError);
    await device.flush();
  });

  test("that answers a write as shutting down may have lost it", async () => {
    await using server = await FakeNbdServer.start({
      onRequest: (request, _data, peer) => {
        if (server.connections > 1) return false;
        peer.error(request, 108);
        return true;
      },
    });
    await using opened = await open(server, { ...writing, connections: 1 });
    await expect(opened.device.write(0, Buffer.alloc(10))).rejects.toBeInstanceOf(LostWritesError);
    await expect(opened.device.flush()).rejects.toBeInstanceOf(LostWritesError);
    await opened.device.flush();
  });

  test("that is away when a write is made gets it when it is back", async () => {
    await using server = await FakeNbdServer.start(NO_MULTI);
    await using opened = await open(server, writing);
    await server.stop();
    await turns();
    const written = opened.device.write(0, Buffer.alloc(10, 1));
    await turns();
    await server.listen();
    await written;
    await opened.device.flush();
  });

  test("that is away for too long refuses writes, and has not lost what was never sent", async () => {
    await using server = await FakeNbdServer.start(NO_MULTI);
    await using opened = await open(server, writing);
    const { device, clock } = opened;
    await server.stop();
    await turns();
    const written = device.write(0, Buffer.alloc(10, 1)).catch((error) => error);
    await turns();
    await clock.expire(MINUTE);
    const error = await written;
    expect(error).toMatchObject({ away: true });
    expect(error).not.toBeInstanceOf(LostWritesError);
    await server.listen();
    await clock.expire(10_000);
    await device.flush();
  });

  test("that is read-only when it is back is called again", async () => {
    await using server = await FakeNbdServer.start(NO_MULTI);
    await using opened = await open(server, writing);
    const { device, clock } = opened;
    server.options.flags = TransmissionFlag.hasFlags + TransmissionFlag.readOnly;
    server.cut();
    await turns();
    const written = device.write(0, Buffer.alloc(10, 1)).catch((error) => error);
    await turns();
    await clock.expire(MINUTE);
    expect((await written).message).toMatch(/: the export is read-only$/);
  });
});

describe("NbdDevice, disposed of,", () => {
  test("takes leave of the server, and leaves nothing behind", async () => {
    await using server = await FakeNbdServer.start();
    const opened = await open(server);
    await until(() => opened.device.connections === 4);
    await opened.device.read(0, Buffer.alloc(10));
    await opened[Symbol.asyncDispose]();
    await opened[Symbol.asyncDispose]();
    await until(() => server.peers.size === 0);
    await expect(opened.device.read(0, Buffer.alloc(10))).rejects.toMatchObject({ errno: "EBADF" });
    expect(opened.clock.sleeping).toBe(0);
    expect(opened.notes).toEqual([]);
  });

  test("lets connections that are being made be made, and takes leave on them", async () => {
    const held: FakePeer[] = [];
    let release: () => void = () => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    await using server = await FakeNbdServer.start({
      onOption: async (option, _data, peer) => {
        if (option !== Option.go || server.connections === 1) return false;
        held.push(peer);
        await released;
        return false;
      },
    });
    const opened = await open(server, { clock: new QuickClock(100) });
    await until(() => held.length === 3);
    const disposed = opened[Symbol.asyncDispose]();
    await turns();
    expect(held.map(({ socket }) => socket.destroyed)).toEqual([false, false, false]);
    release();
    await disposed;
    await until(() => server.peers.size === 0);
  });

  test("does not wait for connections that are not made", async () => {
    await using server = await FakeNbdServer.start();
    server.options.onOption = (option) => option === Option.go && server.connections > 1; // and says nothing
    const clock = new QuickClock(100);
    const opened = await open(server, { clock });
    await until(() => server.connections === 4);
    const disposed = opened[Symbol.asyncDispose]();
    await turns();
    await clock.expire(250);
    await disposed;
    await until(() => server.peers.size === 0);
    expect(clock.sleeping).toBe(0);
  });

  test("ends what is under way, and whoever waits", async () => {
    await using server = await FakeNbdServer.start({ onRequest: () => true });
    const opened = await open(server, { access: "read-write", connections: 1 });
    const waiting = [
      opened.device.read(0, Buffer.alloc(2 ** 20)),
      opened.device.write(0, Buffer.alloc(10)),
      opened.device.flush(),
      ...Array.from({ length: 100 }, () => opened.device.read(0, Buffer.alloc(2 ** 20))),
    ].map((each) => each.catch((error) => error));
    await until(() => server.log.length > 10);
    await opened[Symbol.asyncDispose]();
    for (const error of await Promise.all(waiting)) expect(error).toBeInstanceOf(DeviceError);
    await until(() => server.peers.size === 0);
  });

  test("does so while the server is away", async () => {
    await using server = await FakeNbdServer.start();
    const opened = await open(server);
    await server.stop();
    const read = opened.device.read(0, Buffer.alloc(10)).catch((error) => error);
    await turns();
    await opened[Symbol.asyncDispose]();
    expect(await read).toBeInstanceOf(DeviceError);
    expect(opened.clock.sleeping).toBe(0);
  });

  test("does so while the server accepts nothing any more", async () => {
    await using server = await FakeNbdServer.start({
      onRequest: () => {
        for (const { socket } of server.peers) socket.pause();
        return true;
      },
    });
    const opened = await open(server, { connections: 1 });
    const read = opened.device.read(0, Buffer.alloc(10)).catch((error) => error);
    await until(() => server.log.length === 1);
    await opened[Symbol.asyncDispose]();
    await read;
  });
});

// What bad clients cannot do: use up memory, take all places, keep others waiting, or have half a write done.
import { connect } from "node:net";
import { describe, expect, test } from "vitest";
import { statusCost } from "../../../src/nbd/block-status.ts";
import { encodeInfoRequest, encodeOption } from "../../../src/nbd/option-codec.ts";
import { Command, CommandFlag, NbdErrno, Option, OptionReply } from "../../../src/nbd/protocol.ts";
import { DEFAULT_LIMITS } from "../../../src/nbd/server-limits.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { CLIENT_FLAGS, NbdClient, requestBytes } from "../../support/nbd-client.ts";
import { testServer, until } from "../../support/nbd-server.ts";
import { ServedMemory } from "../../support/served-devices.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

/** A promise and the function that settles it. */
function gate() {
  let open: () => void = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

/** Waits until nothing has changed for a while. */
async function settled(value: () => number): Promise<number> {
  for (let last = Number.NaN; ; ) {
    const now = value();
    if (now === last) return now;
    last = now;
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
}

describe("A client that never takes its replies", () => {
  test.for([
    ["4 KiB, at once", 4 * KIB, true],
    ["256 KiB, at once", 256 * KIB, true],
    ["4 KiB, later", 4 * KIB, false],
    ["256 KiB, later", 256 * KIB, false],
  ] as const)("is not read from any more, and others are served: reads of %s", async ([, length, immediate]) => {
    const device = new ServedMemory(4 * MIB, { immediate });
    device.bytes.fill(7);
    await using served = await testServer({ device, limits: { bytesPerConnection: 2 * MIB } });
    await using slow = await NbdClient.go(served);
    await using other = await NbdClient.go(served);
    slow.detach();
    const count = Math.ceil((32 * MIB) / length);
    slow.send(
      Buffer.concat(Array.from({ length: count }, (_, cookie) => requestBytes({ type: Command.read, length, cookie }))),
    );
    const held = await settled(() => served.server.bytesInFlight);
    expect(held).toBeGreaterThan(0);
    expect(held).toBeLessThan(4 * MIB);
    expect((await other.read(0, 512)).error).toBe(0);

    slow.replaceStream(slow.socket);
    const cookies = new Set<number>();
    for (let index = 0; index < count; index++) {
      const reply = await slow.reply();
      expect(reply.error).toBe(0);
      cookies.add(reply.cookie);
    }
    expect(cookies.size).toBe(count);
    expect(served.server.bytesInFlight).toBe(0);
  });

  test("is not read from in its handshake either", async () => {
    await using served = await testServer();
    await using slow = await NbdClient.connect(served);
    await slow.greet();
    slow.detach();
    const count = 50_000;
    slow.send(Buffer.concat(Array.from({ length: count }, () => encodeOption(Option.list))));
    expect(await settled(() => served.server.bytesInFlight)).toBeLessThan(MIB);
    slow.replaceStream(slow.socket);
    for (let index = 0; index < count; index++) await slow.optionAnswers(Option.list);
  });
});

describe("Requests in flight", () => {
  test("are bounded in number: more are not read from the socket, and all are answered in the end", async () => {
    const { open, opened } = gate();
    const device = new ServedMemory(MIB, { before: () => opened });
    await using served = await testServer({ device, limits: { requestsInFlight: 10 } });
    await using client = await NbdClient.go(served);
    for (let cookie = 0; cookie < 100; cookie++) client.post({ type: Command.read, length: 512, cookie });
    await until(() => device.log.length >= 10);
    expect(await settled(() => device.log.length)).toBe(10);
    expect(served.server.counters.requestsInFlight).toBe(10);
    open();
    for (let index = 0; index < 100; index++) await client.reply();
    expect(served.server.counters.requestsInFlight).toBe(0);
  });

  test("are bounded in bytes, but one larger than the bound is let in alone", async () => {
    const { open, opened } = gate();
    const device = new ServedMemory(8 * MIB, { before: () => opened });
    const limits = { bytesPerConnection: MIB, bytesReserved: 256 * KIB, bytesShared: MIB };
    await using served = await testServer({ device, limits });
    await using client = await NbdClient.go(served);
    for (let cookie = 0; cookie < 16; cookie++) client.post({ type: Command.read, length: 256 * KIB, cookie });
    await until(() => device.log.length >= 4);
    expect(await settled(() => device.log.length)).toBe(4);
    open();
    for (let index = 0; index < 16; index++) await client.reply();
    expect((await client.read(0, 8 * MIB)).data.length).toBe(8 * MIB);
    expect((await client.write(0, Buffer.alloc(8 * MIB), CommandFlag.fua)).error).toBe(0);
    expect(served.server.bytesInFlight).toBe(0);
  });

  test("for block status are bounded by what their answers may take", async () => {
    const { open, opened } = gate();
    const device = new ServedMemory(64 * MIB, { before: () => opened });
    const limits = { bytesReserved: 0, bytesShared: 2 * statusCost(64 * MIB) };
    await using served = await testServer({ device, limits });
    await using client = await NbdClient.go(served, { contexts: ["base:allocation"] });
    for (let cookie = 0; cookie < 20; cookie++) client.post({ type: Command.blockStatus, length: 64 * MIB, cookie });
    await until(() => device.log.length >= 2);
    expect(await settled(() => device.log.length)).toBe(2);
    open();
    for (let index = 0; index < 20; index++) expect((await client.reply()).error).toBe(0);
    expect(served.server.bytesInFlight).toBe(0);
  });

  test("of one connection do not keep another's small ones waiting, only those that need what it holds", async () => {
    const { open, opened } = gate();
    const device = new ServedMemory(8 * MIB, { before: (_verb, offset) => (offset === 0 ? opened : undefined) });
    const limits = { bytesReserved: 64 * KIB, bytesShared: MIB };
    await using served = await testServer({ device, limits });
    await using greedy = await NbdClient.go(served);
    await using modest = await NbdClient.go(served);
    greedy.post({ type: Command.read, length: MIB, cookie: 1 });
    await until(() => device.log.length === 1);
    expect((await modest.read(4 * MIB, 64 * KIB)).error).toBe(0);
    modest.post({ type: Command.read, offset: 4 * MIB, length: 512 * KIB, cookie: 2 });
    expect(await settled(() => device.log.length)).toBe(2);
    open();
    expect((await modest.reply()).cookie).toBe(2);
    expect((await greedy.reply()).cookie).toBe(1);
  });
});

describe("A client that stalls", () => {
  const limits = { bytesReserved: 64 * KIB, bytesShared: MIB, stallMs: 1000 };

  test("in mid-write is dropped when others wait for the memory it holds, and only then", async () => {
    const clock = new ManualClock();
    const device = new ServedMemory(8 * MIB);
    await using served = await testServer({ device, limits, clock });
    await using stalled = await NbdClient.go(served);
    await using other = await NbdClient.go(served);
    stalled.send(requestBytes({ type: Command.write, length: MIB }));
    await until(() => served.server.bytesInFlight >= MIB);
    for (let second = 0; second < 10; second++) await clock.advance(1000);
    expect(served.server.connections).toBe(2);

    expect((await other.write(0, Buffer.alloc(8, 1))).error).toBe(0);
    other.post({ type: Command.write, data: Buffer.alloc(512 * KIB, 2), cookie: 9 });
    while (served.server.connections === 2) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      await clock.advance(1000);
    }
    expect((await other.reply()).cookie).toBe(9);
    await stalled.closed();
    expect(served.warnings).toEqual(["a client was disconnected: others wait for the memory that it holds"]);
    expect(served.server.connections).toBe(1);
    expect(device.log).toEqual(["tryWrite 0 8", `tryWrite 0 ${512 * KIB}`]);
  });

  test("without taking its replies is dropped when others wait; one that is only slow is not", async () => {
    const clock = new ManualClock();
    const device = new ServedMemory(8 * MIB);
    device.bytes.fill(1);
    await using served = await testServer({ device, limits, clock });
    await using stalled = await NbdClient.go(served);
    stalled.detach();
    stalled.post({ type: Command.read, length: MIB, cookie: 1 });
    await until(() => served.server.bytesInFlight >= MIB / 2);
    await using slow = await NbdClient.go(served);
    slow.send(requestBytes({ type: Command.write, length: 512 * KIB, cookie: 9 }));
    let sent = 0;
    for (; served.server.connections === 2; sent += KIB) {
      slow.send(Buffer.alloc(KIB));
      await new Promise((resolve) => setTimeout(resolve, 10));
      await clock.advance(1000);
    }
    slow.send(Buffer.alloc(512 * KIB - sent));
    expect((await slow.reply()).cookie).toBe(9);
  });
});

describe("A client that is slow", () => {
  test("is not dropped for it, though others wait for what it holds", async () => {
    const clock = new ManualClock();
    const limits = { bytesReserved: 64 * KIB, bytesShared: MIB, stallMs: 1000 };
    await using served = await testServer({ limits, clock });
    await using slow = await NbdClient.go(served);
    await using other = await NbdClient.go(served);
    slow.send(requestBytes({ type: Command.write, length: MIB, cookie: 1 }));
    await until(() => served.server.bytesInFlight >= MIB);
    other.post({ type: Command.write, data: Buffer.alloc(512 * KIB), cookie: 9 });
    for (let second = 0; second < 10; second++) {
      slow.send(Buffer.alloc(KIB));
      await new Promise((resolve) => setTimeout(resolve, 40));
      await clock.advance(1000);
    }
    expect(served.warnings).toEqual([]);
    slow.send(Buffer.alloc(MIB - 10 * KIB));
    expect((await slow.reply()).cookie).toBe(1);
    expect((await other.reply()).cookie).toBe(9);
  });

  test("and waits for memory that it could not use yet, does not keep those behind it waiting", async () => {
    const [holding, late] = [gate(), gate()];
    const before = (_verb: string, offset: number) => [holding.opened, late.opened][offset / MIB];
    const device = new ServedMemory(8 * MIB, { before });
    Object.assign(device, { tryRead: (offset: number) => offset >= 2 * MIB });
    const limits = { bytesReserved: 512 * KIB, bytesShared: MIB, bytesQueued: MIB };
    await using served = await testServer({ device, limits });
    await using holder = await NbdClient.go(served);
    await using slow = await NbdClient.go(served);
    await using other = await NbdClient.go(served);
    slow.detach();
    holder.post({ type: Command.read, offset: 0, length: MIB + 512 * KIB, cookie: 1 });
    await until(() => device.log.length === 1);
    // Its replies fill what lies between, but not all that it may have queued …
    const held = (): number => served.server.bytesInFlight - (MIB + 512 * KIB);
    while (held() < 600 * KIB) {
      slow.post({ type: Command.read, offset: 2 * MIB, length: 16 * KIB });
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    // … so that it comes to ask for more than its own; then what it asked for before is answered, and fills the queue.
    for (let index = 0; index < 8; index++) slow.post({ type: Command.read, offset: MIB, length: 64 * KIB });
    slow.post({ type: Command.read, offset: 2 * MIB, length: 512 * KIB });
    await until(() => device.log.length === 1 + 8);
    await settled(() => served.server.bytesInFlight);
    other.post({ type: Command.read, offset: 2 * MIB, length: MIB, cookie: 2 });
    late.open();
    await until(() => served.server.counters.requestsInFlight === 1);
    await settled(() => served.server.bytesInFlight);
    holding.open();
    expect((await other.reply()).cookie).toBe(2);
    expect((await holder.reply()).cookie).toBe(1);
  });
});

describe("A client gone in mid-write", () => {
  test.for([
    ["a small one", 4096],
    ["one of its own buffer", 256 * KIB],
  ] as const)("has no part of it done, and leaves nothing behind: %s", async ([, length]) => {
    await using served = await testServer();
    for (const there of [0, 1, length / 2, length - 1]) {
      await using client = await NbdClient.go(served);
      client.send(requestBytes({ type: Command.write, length }));
      client.send(Buffer.alloc(there, 1));
      await new Promise((resolve) => setTimeout(resolve, 5));
      client.socket.destroy();
    }
    await until(() => served.server.connections === 0);
    expect(served.device.log).toEqual([]);
    expect(served.server.bytesInFlight).toBe(0);
    await using client = await NbdClient.go(served);
    expect((await client.read(0, length)).data.every((byte) => byte === 0)).toBe(true);
  });

  test("while its requests are in flight: the device's answers go nowhere, and the memory comes back", async () => {
    const { open, opened } = gate();
    const device = new ServedMemory(MIB, { before: () => opened });
    await using served = await testServer({ device, limits: { bytesReserved: 0 } });
    {
      await using client = await NbdClient.go(served);
      for (let cookie = 0; cookie < 10; cookie++) client.post({ type: Command.read, length: 4096, cookie });
      client.post({ type: Command.write, data: Buffer.alloc(4096), cookie: 10 });
      await until(() => device.log.length === 11);
      client.send(Buffer.alloc(28, 1)); // no request: it is dropped
      await client.closed();
    }
    expect(served.server.connections).toBe(0);
    expect(served.server.counters.requestsInFlight).toBe(11);
    open();
    await until(() => served.server.counters.requestsInFlight === 0);
    await using client = await NbdClient.go(served);
    expect((await client.read(0, 8)).error).toBe(0);
  });
});

describe("The handshake", () => {
  test.for([
    ["nothing", Buffer.alloc(0)],
    ["half of its flags", Buffer.from([0, 0])],
    ["half an option", Buffer.concat([CLIENT_FLAGS, encodeOption(Option.go, Buffer.alloc(20)).subarray(0, 30)])],
    [
      "options without end",
      Buffer.concat([CLIENT_FLAGS, ...Array.from({ length: 9 }, () => encodeOption(Option.list))]),
    ],
  ] as const)("of a client that sends %s takes no longer than it may", async ([, bytes]) => {
    const clock = new ManualClock();
    await using served = await testServer({ clock, limits: { handshakeMs: 3000 } });
    await using client = await NbdClient.connect(served);
    await using done = await NbdClient.go(served);
    client.send(bytes);
    await clock.advance(2999);
    expect(served.server.connections).toBe(2);
    await clock.advance(1);
    await client.closed();
    await until(() => served.server.connections === 1);
    expect(served.warnings).toEqual(["a client was disconnected: its handshake took longer than 3 s"]);
    expect((await done.read(0, 8)).error).toBe(0);
  });

  test("goes on after an option too long to be kept, which is refused", async () => {
    await using served = await testServer();
    await using client = await NbdClient.connect(served);
    await client.greet();
    for (const option of [Option.go, Option.setMetaContext, 99]) {
      const [answer] = await client.option(option, Buffer.alloc(70_000));
      expect(answer?.type).toBe(OptionReply.errTooBig);
    }
    expect((await client.option(Option.go, Buffer.alloc(65_536))).map(({ type }) => type)).toEqual([
      OptionReply.errInvalid,
    ]);
    await client.negotiate({});
    expect((await client.read(0, 8)).error).toBe(0);
  });

  test.for([
    ["unknown client flags", Buffer.from([0, 0, 0, 7])],
    ["an option of another magic number", Buffer.concat([CLIENT_FLAGS, Buffer.alloc(16, 1)])],
    [
      "the name of an export of 4 GiB",
      Buffer.concat([CLIENT_FLAGS, Buffer.from("49484156454f505400000001ffffffff", "hex")]),
    ],
    ["HTTP", Buffer.from("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")],
  ] as const)("of a client that sends %s ends at once", async ([, bytes]) => {
    await using served = await testServer();
    await using client = await NbdClient.connect(served);
    client.send(bytes);
    await client.closed();
    expect(served.warnings.length).toBe(1);
    expect(served.server.counters.connectionsDropped).toBe(1);
  });

  test("may be in as many pieces as there are bytes", async () => {
    await using served = await testServer();
    await using client = await NbdClient.connect(served);
    const go = encodeOption(Option.go, encodeInfoRequest("disk", []));
    const read = requestBytes({ type: Command.read, length: 8, cookie: 3 });
    const write = requestBytes({ type: Command.write, data: Buffer.alloc(8, 9), cookie: 4 });
    await client.take(18);
    for (const byte of Buffer.concat([CLIENT_FLAGS, go])) {
      client.send(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect((await client.optionAnswers(Option.go)).length).toBe(2);
    for (const byte of Buffer.concat([read, write])) {
      client.send(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    client.replaceStream(client.socket);
    expect((await client.take(16 + 16)).length).toBe(32);
    await until(() => served.device.log.includes("tryWrite 0 8"));
  });
});

describe("Connections", () => {
  test("beyond the limit are closed at once, and those there are served; a place that becomes free is taken", async () => {
    await using served = await testServer({ limits: { connections: 2 } });
    await using one = await NbdClient.go(served);
    {
      await using _two = await NbdClient.go(served);
      await using three = await NbdClient.connect(served);
      expect((await three.closed()).length).toBe(0);
      expect((await one.read(0, 8)).error).toBe(0);
    }
    await until(() => served.server.connections === 1);
    await using two = await NbdClient.go(served);
    expect((await two.read(0, 8)).error).toBe(0);
    expect(served.server.counters.connectionsRefused).toBe(1);
  });

  test("that linger in their handshake give way to those who come, and those beyond it never do", async () => {
    const clock = new ManualClock();
    await using served = await testServer({ clock, limits: { connections: 3 } });
    await using done = await NbdClient.go(served);
    await using idle = await NbdClient.connect(served);
    await using idleToo = await NbdClient.connect(served);
    await until(() => served.server.connections === 3);
    await clock.advance(1000);
    await using late = await NbdClient.go(served);
    expect((await late.read(0, 8)).error).toBe(0);
    expect((await done.read(0, 8)).error).toBe(0);
    await idle.closed();
    expect(idleToo.socket.destroyed).toBe(false);
  });

  test("whose client has said goodbye, and does not go, are ended in time", async () => {
    const clock = new ManualClock();
    await using served = await testServer({ clock, limits: { closeMs: 3000 } });
    // Its side of the stream stays open when ours has ended.
    await using client = new NbdClient(connect({ path: served.path, allowHalfOpen: true }));
    await client.greet();
    await client.negotiate({});
    await until(() => clock.sleeping === 1); // the handshake is over: only stalling clients are looked for
    client.send(requestBytes({ type: Command.disconnect, cookie: 1 }));
    await until(() => clock.sleeping === 2);
    await clock.advance(2999);
    expect(served.server.connections).toBe(1);
    await clock.advance(1);
    await until(() => served.server.connections === 0);
  });

  test("by the thousand disturb nobody", async () => {
    await using served = await testServer();
    await using client = await NbdClient.go(served);
    let answered = 0;
    const sockets = Array.from({ length: 1000 }, () => {
      const socket = connect(served.path);
      socket.once("connect", () => answered++);
      socket.once("error", () => answered++); // the queue of those who want in is full
      socket.on("error", () => {});
      socket.resume();
      return socket;
    });
    for (let index = 0; index < 20; index++) expect((await client.read(0, 4096)).error).toBe(0);
    await until(() => answered >= 1000);
    expect(served.server.connections).toBeLessThanOrEqual(DEFAULT_LIMITS.connections);
    for (const socket of sockets) socket.destroy();
    await until(() => served.server.connections === 1);
    await using another = await NbdClient.go(served);
    expect((await another.read(0, 4096)).error).toBe(0);
  });

  test("are counted, and who wants to know is told", async () => {
    const counts: number[] = [];
    await using served = await testServer({ onConnections: (count) => counts.push(count) });
    {
      await using _one = await NbdClient.go(served);
      await using _two = await NbdClient.go(served);
    }
    await until(() => served.server.connections === 0);
    expect(counts).toEqual([1, 2, 1, 0]);
  });
});

describe("Garbage in the transmission phase", () => {
  test("ends that connection and no other, and nothing of it is done", async () => {
    await using served = await testServer();
    await using good = await NbdClient.go(served);
    await using bad = await NbdClient.go(served);
    bad.send(requestBytes({ type: Command.write, data: Buffer.alloc(8, 1), cookie: 1 }));
    expect((await bad.reply()).error).toBe(0);
    bad.send(Buffer.alloc(64, 0x25));
    await bad.closed();
    expect(served.warnings).toEqual(["a client was disconnected: a request does not begin with its magic number"]);
    expect((await good.read(0, 8)).data).toEqual(Buffer.alloc(8, 1));
  });

  test("again and again does not fill a log", async () => {
    const clock = new ManualClock();
    await using served = await testServer({ clock });
    const garbage = async (): Promise<void> => {
      await using client = await NbdClient.connect(served);
      client.send(Buffer.alloc(64, 1));
      await client.closed();
    };
    for (let index = 0; index < 50; index++) await garbage();
    expect(served.warnings.length).toBe(20);
    await clock.advance(10_000);
    await garbage();
    expect(served.warnings.slice(20)).toEqual(["30 more warnings were not shown", served.warnings[0]]);
    expect(served.server.counters.connectionsDropped).toBe(51);
  });

  test("a flood of refused requests is answered, one by one", async () => {
    await using served = await testServer();
    await using client = await NbdClient.go(served);
    const flood = Array.from({ length: 20_000 }, (_, cookie) => requestBytes({ type: 77, cookie }));
    client.send(Buffer.concat(flood));
    for (let index = 0; index < flood.length; index++) {
      expect(await client.reply()).toMatchObject({ cookie: index, error: NbdErrno.EINVAL });
    }
  });
});

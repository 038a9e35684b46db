// How a server ends: what is in flight is answered, what comes is refused, and nothing can keep it for longer than it waits.
import { existsSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { Command, NbdErrno, Option, OptionReply } from "../../../src/nbd/protocol.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { NbdClient, requestBytes } from "../../support/nbd-client.ts";
import { testServer, until } from "../../support/nbd-server.ts";
import { ServedMemory } from "../../support/served-devices.ts";

/** A device whose reads of offset 0 wait until they are let go. */
function slowDevice() {
  let open: () => void = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const before = (verb: string, offset: number) => (verb === "read" && offset === 0 ? opened : undefined);
  return { open, device: new ServedMemory(1024 * 1024, { before }) };
}

describe("NbdServer.shutdown()", () => {
  test("answers what is in flight, refuses what comes with ESHUTDOWN, then closes", async () => {
    const { open, device } = slowDevice();
    await using served = await testServer({ device });
    await using client = await NbdClient.go(served);
    await using haggling = await NbdClient.connect(served);
    await haggling.greet();
    client.post({ type: Command.read, length: 8, cookie: 1 });
    await until(() => device.log.length === 1);
    let done = false;
    const shutdown = served.server.shutdown({ graceMs: 60_000 }).then(() => {
      done = true;
    });
    client.post({ type: Command.write, data: Buffer.alloc(8), cookie: 2 });
    client.post({ type: Command.flush, cookie: 3 });
    expect(await client.reply()).toMatchObject({ cookie: 2, error: NbdErrno.ESHUTDOWN });
    expect(await client.reply()).toMatchObject({ cookie: 3, error: NbdErrno.ESHUTDOWN });
    expect(done).toBe(false);
    open();
    expect(await client.reply()).toMatchObject({ cookie: 1, error: 0 });
    expect((await client.closed()).length).toBe(0);
    await haggling.closed();
    client.socket.destroy();
    haggling.socket.destroy();
    await shutdown;
    expect(device.log).toEqual(["read 0 8"]);
    expect(served.server.connections).toBe(0);
  });

  test("answers a request that came with it, and refuses an option", async () => {
    await using served = await testServer();
    await using client = await NbdClient.go(served);
    await using haggling = await NbdClient.connect(served);
    await haggling.greet();
    await haggling.option(Option.list);
    client.send(requestBytes({ type: Command.read, length: 8, cookie: 1 }));
    haggling.send(Buffer.from("49484156454f50540000000300000000", "hex"));
    const shutdown = served.server.shutdown({ graceMs: 60_000 });
    expect((await client.reply()).error).toBe(NbdErrno.ESHUTDOWN);
    expect((await haggling.optionAnswers(Option.list)).map(({ type }) => type)).toEqual([OptionReply.errShutdown]);
    await Promise.all([client.closed(), haggling.closed()]);
    client.socket.destroy();
    haggling.socket.destroy();
    await shutdown;
  });

  test("lets nobody in any more, and takes its socket file away", async () => {
    await using served = await testServer();
    expect(existsSync(served.path)).toBe(true);
    await served.server.shutdown({ graceMs: 1000 });
    await expect(NbdClient.connect(served)).rejects.toThrow(/ENOENT|ECONNREFUSED/);
    expect(existsSync(served.path)).toBe(false);
    await served.server.shutdown({ graceMs: 1000 });
    await expect(served.server.listen({ path: served.path })).rejects.toThrow(TypeError);
  });

  test("waits no longer than it is told to, whatever the device or a client does", async () => {
    const clock = new ManualClock();
    const { open, device } = slowDevice();
    await using served = await testServer({ device, clock });
    await using waiting = await NbdClient.go(served);
    await using inWrite = await NbdClient.go(served);
    waiting.post({ type: Command.read, length: 8, cookie: 1 });
    inWrite.send(requestBytes({ type: Command.write, length: 512 * 1024 }));
    await until(() => device.log.length === 1 && served.server.bytesInFlight > 8);
    let done = false;
    const shutdown = served.server.shutdown({ graceMs: 5000 }).then(() => {
      done = true;
    });
    await clock.advance(4999);
    expect(done).toBe(false);
    await clock.advance(1);
    await shutdown;
    await Promise.all([waiting.closed(), inWrite.closed()]);
    expect(served.server.connections).toBe(0);
    open();
    await until(() => served.server.counters.requestsInFlight === 0);
  });

  test("waits for the device's answer to a client that is gone", async () => {
    const { open, device } = slowDevice();
    await using served = await testServer({ device });
    {
      await using client = await NbdClient.go(served);
      client.post({ type: Command.read, length: 8, cookie: 1 });
      await until(() => device.log.length === 1);
      client.send(Buffer.alloc(28, 1)); // no request: it is dropped
      await client.closed();
    }
    expect(served.server.connections).toBe(0);
    let done = false;
    const shutdown = served.server.shutdown({ graceMs: 60_000 }).then(() => {
      done = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(done).toBe(false);
    open();
    await shutdown;
  });
});

// Changes that were lost with their connection, and that the server may still carry out.
import { describe, expect, test } from "vitest";
import { LostWritesError } from "../../../src/base/errors.ts";
import { NbdDevice } from "../../../src/nbd/client/nbd-device.ts";
import { StrayChanges } from "../../../src/nbd/client/stray-changes.ts";
import { FakeNbdServer } from "../../support/fake-nbd-server.ts";
import { until } from "../../support/nbd-server.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

const FOR_MS = 120_000;

describe("StrayChanges", () => {
  test("are where they were to be carried out, and nowhere else", () => {
    const strays = new StrayChanges(new VirtualClock(), FOR_MS);
    expect(strays.in(0, 1000)).toBeUndefined();
    strays.add([
      { offset: 200, length: 100 },
      { offset: 100, length: 50 },
    ]);
    for (const [offset, length] of [
      [0, 101],
      [149, 1],
      [0, 1000],
      [299, 500],
    ] as const) {
      expect(strays.in(offset, length)).toBeInstanceOf(Promise);
    }
    for (const [offset, length] of [
      [0, 100],
      [150, 50],
      [300, 500],
      [120, 0],
    ] as const) {
      expect(length === 0 || strays.in(offset, length) === undefined).toBe(true);
    }
    strays.close();
  });

  test("are over after their time, each after its own", async () => {
    const clock = new VirtualClock();
    const strays = new StrayChanges(clock, FOR_MS);
    strays.add([{ offset: 0, length: 100 }]);
    await clock.sleep(1000);
    strays.add([{ offset: 50, length: 100 }]);
    await strays.in(0, 10);
    expect(clock.now()).toBe(FOR_MS);
    expect(strays.in(0, 50)).toBeUndefined();
    await strays.in(0, 51);
    expect(clock.now()).toBe(FOR_MS + 1000);
    expect(strays.in(0, 1000)).toBeUndefined();
  });

  test("are not kept one by one without a bound", () => {
    const strays = new StrayChanges(new VirtualClock(), FOR_MS);
    strays.add(Array.from({ length: 1000 }, (_, index) => ({ offset: 10 * index, length: 1 })));
    expect(strays.in(5, 1)).toBeUndefined();
    strays.add(Array.from({ length: 1000 }, (_, index) => ({ offset: 20_000 + 10 * index, length: 1 })));
    expect(strays.in(5, 1)).toBeInstanceOf(Promise);
    expect(strays.in(29_991, 1)).toBeUndefined();
    strays.close();
  });

  test("keep nobody waiting once nobody asks any more", async () => {
    const clock = new VirtualClock();
    const strays = new StrayChanges(clock, FOR_MS);
    strays.add([{ offset: 0, length: 100 }]);
    const over = strays.in(0, 100);
    strays.close();
    await over;
    expect([clock.now(), strays.in(0, 100)]).toEqual([0, undefined]);
  });
});

test("An NbdDevice knows what strays from the moment of the loss, for twice the time of a request", async () => {
  const clock = new VirtualClock();
  const held: number[] = [];
  const sleeps: number[] = [];
  await using server = await FakeNbdServer.start({
    onRequest: ({ offset }) => {
      held.push(offset);
      return held.length <= 2;
    },
  });
  await using device = await NbdDevice.open(server.address, {
    access: "read-write",
    clock: { now: () => clock.now(), sleep: (ms, signal) => new Promise((resolve) => hold(ms, signal, resolve)) },
    random: () => 0,
    connections: 1,
    requestTimeoutMs: 1000,
  });
  function hold(ms: number, signal: AbortSignal | undefined, resolve: () => void): void {
    sleeps.push(ms);
    signal?.addEventListener("abort", resolve, { once: true });
  }
  const lost = [device.write(8192, Buffer.alloc(4096)), device.zero(16_384, 4096)].map((change) =>
    change.catch((error: unknown) => error),
  );
  await until(() => held.length === 2);
  expect(device.strayIn(0, server.disk.size)).toBeUndefined(); // under way is not lost
  server.cut();
  for (const error of await Promise.all(lost)) expect(error).toBeInstanceOf(LostWritesError);
  expect(device.strayIn(0, 8192)).toBeUndefined();
  expect(device.strayIn(12_288, 4096)).toBeUndefined();
  expect(device.strayIn(12_287, 1)).toBeInstanceOf(Promise);
  expect(device.strayIn(20_479, 1)).toBeInstanceOf(Promise);
  expect(sleeps.slice(-2)).toEqual([2000, 2000]);
});

// Links are simulated: replies queue at the far end and come at the link's speed. A background that always wants more fills
// the window, and a client reads now and then; what it has to wait for beyond the link itself is the queue before it.
import { describe, expect, test } from "vitest";
import type { Clock } from "../../../src/base/clock.ts";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { LesserAllowance } from "../../../src/engine/lesser-allowance.ts";
import { TransferWindow } from "../../../src/engine/transfer-window.ts";
import { type Link, LinkDevice } from "../../support/link-device.ts";
import { seededRandom } from "../../support/power-loss-device.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

const MIB = 2 ** 20;
const MBIT = 1_000_000 / 8;
const CLIENT_READ = 512;

/** Answers without a byte being moved: a second on a fast link would be many. */
class EmptyDevice extends FilterDevice {
  override async read(): Promise<void> {}
}

/** Nothing but a length. */
const bytes = (length: number): Uint8Array => ({ length }) as Uint8Array;

/** Some requests at a time, and no more; the first ones are answered at once, any other after a while. */
class ServerDevice extends FilterDevice {
  readonly #clock: Clock;
  readonly #server: { requestsAtOnce: number; quick: number; requestMs: number };
  #requests = 0;
  #busy = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(inner: BlockDevice, clock: Clock, server: { requestsAtOnce: number; quick: number; requestMs: number }) {
    super(inner);
    this.#clock = clock;
    this.#server = server;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    const { requestsAtOnce, quick, requestMs } = this.#server;
    if (this.#busy < requestsAtOnce) this.#busy++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    if (this.#requests++ >= quick) await this.#clock.sleep(requestMs);
    await super.read(offset, buffer);
    const next = this.#waiting.shift();
    if (next === undefined) this.#busy--;
    else next();
  }
}

function setUp(link: Link, server = { requestsAtOnce: Infinity, quick: Infinity, requestMs: 0 }, { writeMs = 0 } = {}) {
  const clock = new VirtualClock();
  const nothing = new EmptyDevice(new MemoryDevice({ name: "source", size: MIB }));
  const far = new LinkDevice(nothing, clock, link, seededRandom(1));
  const window = new TransferWindow({ clock, requestsAtOnce: server.requestsAtOnce });
  const source = window.watch(new ServerDevice(far, clock, server));
  let stopped = false;
  let most = 0;
  let entered = 0;
  const idle: (() => void)[] = [];
  const copyOne = async (_: unknown, index: number): Promise<void> => {
    while (!stopped) {
      if (index >= window.depth) {
        await new Promise<void>((resolve) => idle.push(resolve));
        continue;
      }
      const length = window.pieceLength;
      await window.enter(length);
      entered += length;
      most = Math.max(most, entered);
      await source.read(0, bytes(length));
      entered -= length;
      window.leave(length);
      if (writeMs > 0) await clock.sleep(writeMs);
      for (const resolve of idle.splice(0)) resolve();
    }
  };
  const copiers = Array.from({ length: 64 }, copyOne);
  const stop = async (): Promise<void> => {
    stopped = true;
    for (const resolve of idle.splice(0)) resolve();
    await Promise.all(copiers);
  };
  /** Lets `ms` pass; how much of the link was used, and how long the client waited, as a median. */
  const watch = async (ms: number) => {
    const waitedMs: number[] = [];
    const began = { at: clock.now(), bytes: far.bytes };
    while (clock.now() < began.at + ms) {
      await clock.sleep(137);
      const sentAt = clock.now();
      await source.read(0, bytes(CLIENT_READ));
      waitedMs.push(clock.now() - sentAt - far.link.roundTripMs);
    }
    const share = ((far.bytes - began.bytes) * 1000) / (clock.now() - began.at) / far.link.bytesPerSecond;
    waitedMs.sort((a, b) => a - b);
    return { share, waitMs: waitedMs[Math.floor(waitedMs.length / 2)] as number, longestMs: waitedMs.at(-1) as number };
  };
  return { clock, far, window, source, stop, watch, most: () => most };
}

/** How long a client may wait behind the background: two of the smallest pieces on the slowest link, or hardly longer than the way takes. */
const bearable = (roundTripMs: number): number => Math.max(135, 2 * roundTripMs);

describe("TransferWindow", () => {
  test.for([
    [1, 10],
    [1, 100],
    [10, 50],
    [100, 1],
    [100, 50],
    [100, 200],
    [1000, 1],
    [1000, 20],
    [1000, 100],
  ] as const)("fills a link of %i Mbit/s and %i ms without a queue to speak of", async ([mbit, roundTripMs]) => {
    const { window, stop, watch, most } = setUp({ bytesPerSecond: mbit * MBIT, roundTripMs });
    await watch(6000);
    const { share, waitMs } = await watch(15_000);
    expect(share).toBeGreaterThan(0.9);
    expect(waitMs).toBeLessThan(bearable(roundTripMs));
    expect(window.bytesPerSecond).toBeGreaterThan(0.9 * mbit * MBIT);
    expect(most()).toBeLessThanOrEqual(18 * MIB);
    await stop();
  });

  test("fills a link of 1 Gbit/s and 50 ms within ten round trips", async () => {
    const { stop, watch } = setUp({ bytesPerSecond: 1000 * MBIT, roundTripMs: 50 });
    await watch(500);
    expect((await watch(500)).share).toBeGreaterThan(0.9);
    await stop();
  });

  test("is not kept small by writes that do not let it be filled", async () => {
    const { clock, window, stop } = setUp({ bytesPerSecond: 2e9, roundTripMs: 0.2 }, undefined, { writeMs: 4 });
    await clock.sleep(80);
    expect([window.length, window.pieceLength]).toEqual([16 * MIB, 2 * MIB]);
    await stop();
  });

  // A web server that sends head and body by two writes: once the client's acknowledgements are delayed, each reply is.
  test.for([0, 1, 2, 4, 8, 20, 50, 100, 300])(
    "does not take requests for queued that need 40 ms each after %i quick ones",
    async (quick) => {
      for (const requestsAtOnce of [1, 2, 3, 4, 6, 8, 12, 16, Infinity]) {
        const link = { bytesPerSecond: 8000 * MBIT, roundTripMs: 1.5 };
        const { window, far, stop, watch } = setUp(link, { requestsAtOnce, quick, requestMs: 40 });
        await watch(1000);
        expect(far.bytes, `with ${requestsAtOnce} requests at once`).toBeGreaterThan(24 * MIB);
        expect(window.pieceLength).toBe(2 * MIB);
        await stop();
      }
    },
  );

  test("asks a slow link for little at a time from the beginning: nobody waits for seconds", async () => {
    const { window, stop, watch } = setUp({ bytesPerSecond: MBIT, roundTripMs: 50 });
    const { longestMs } = await watch(10_000);
    expect(longestMs).toBeLessThan(1200);
    expect(window.pieceLength).toBe(8192);
    expect(window.length).toBeLessThanOrEqual(32 * 1024);
    await stop();
  });

  test("fills a link though the server behind it takes very different times", async () => {
    const { stop, watch } = setUp({ bytesPerSecond: 100 * MBIT, roundTripMs: 30, jitterMs: 150 });
    await watch(10_000);
    expect((await watch(20_000)).share).toBeGreaterThan(0.85);
    await stop();
  });

  test("asks for as much as it ever does where more always comes, and no more", async () => {
    const { window, stop, watch, most } = setUp({ bytesPerSecond: 1e12, roundTripMs: 50 });
    await watch(2000);
    expect([window.length, window.pieceLength]).toEqual([16 * MIB, 2 * MIB]);
    expect(most()).toBeLessThanOrEqual(18 * MIB);
    expect(window.depth * window.pieceLength).toBe(24 * MIB);
    await stop();
  });

  test("follows a link that becomes slower, or the way there longer", async () => {
    const { far, stop, watch } = setUp({ bytesPerSecond: 100 * MBIT, roundTripMs: 20 });
    await watch(5000);
    far.link.bytesPerSecond = 10 * MBIT;
    await watch(15_000);
    const slow = await watch(10_000);
    expect(slow.share).toBeGreaterThan(0.9);
    expect(slow.waitMs).toBeLessThan(bearable(20));
    far.link.bytesPerSecond = 100 * MBIT;
    await watch(15_000);
    expect((await watch(5000)).share).toBeGreaterThan(0.9);
    far.link.roundTripMs = 200;
    await watch(15_000);
    const long = await watch(10_000);
    expect(long.share).toBeGreaterThan(0.9);
    expect(long.waitMs).toBeLessThan(bearable(200));
    await stop();
  });

  test("does not take a client's few reads for all that could come", async () => {
    const { clock, window, source, stop, watch } = setUp({ bytesPerSecond: 100 * MBIT, roundTripMs: 50 });
    await watch(5000);
    await stop();
    const { length } = window;
    for (let i = 0; i < 500; i++) {
      await source.read(0, bytes(CLIENT_READ));
      await clock.sleep(20);
    }
    expect(window.length).toBe(length);
  });

  test("counts no bytes that did not come", async () => {
    const clock = new VirtualClock();
    const broken = new EmptyDevice(new MemoryDevice({ name: "source", size: MIB }));
    broken.read = async () => {
      await clock.sleep(20);
      throw new Error("broken");
    };
    const window = new TransferWindow({ clock });
    const source = window.watch(broken);
    for (let i = 0; i < 20; i++) await expect(source.read(0, bytes(MIB))).rejects.toThrow("broken");
    expect(window.bytesPerSecond).toBeUndefined();
  });

  test("asks in what a source reads best", () => {
    const clock = new VirtualClock();
    expect(new TransferWindow({ clock, blockSize: 65_536 }).pieceLength).toBe(65_536);
    expect(new TransferWindow({ clock, mostAtOnce: 10_000 }).pieceLength).toBe(8192);
    expect(new TransferWindow({ clock, blockSize: 2 * MIB, mostAtOnce: 65_536 }).pieceLength).toBe(65_536);
  });

  test("lets in one more whenever there is any room, first come, first served", async () => {
    const window = new TransferWindow({ clock: new VirtualClock() });
    const order: string[] = [];
    const enter = (name: string, length: number): void => void window.enter(length).then(() => order.push(name));
    enter("a", 100_000);
    enter("b", 2 * MIB); // there was room left
    enter("c", MIB);
    enter("d", 1);
    await whenIdle();
    expect(order).toEqual(["a", "b"]);
    window.leave(100_000);
    await whenIdle();
    expect(order).toEqual(["a", "b"]);
    window.leave(2 * MIB);
    await whenIdle();
    expect(order).toEqual(["a", "b", "c"]);
  });
});

describe("ByteGate", () => {
  test("lets in no more requests than can be under way, however few bytes they are", async () => {
    const window = new TransferWindow({ clock: new VirtualClock(), requestsAtOnce: 2 });
    const order: number[] = [];
    for (const i of [1, 2, 3]) void window.enter(1).then(() => order.push(i));
    await whenIdle();
    expect(order).toEqual([1, 2]);
    window.leave(1);
    await whenIdle();
    expect(order).toEqual([1, 2, 3]);
  });
});

describe("LesserAllowance", () => {
  test("is as little as the one or the other allows, in bytes", () => {
    const wide = { pieceLength: 2 * MIB, depth: 8, shareLength: Infinity };
    const none = { pieceLength: Infinity, depth: Infinity, shareLength: 16 * MIB };
    const busy = { pieceLength: 131_072, depth: 2, shareLength: MIB };
    const narrow = { pieceLength: 8192, depth: 2, shareLength: Infinity };
    const of = (...allowances: [typeof wide, typeof wide]) => {
      const { pieceLength, depth, shareLength } = new LesserAllowance(...allowances);
      return { pieceLength, depth, shareLength };
    };
    expect(of(wide, none)).toEqual({ pieceLength: 2 * MIB, depth: 8, shareLength: 16 * MIB });
    expect(of(wide, busy)).toEqual(busy);
    expect(of(busy, narrow)).toEqual({ pieceLength: 8192, depth: 2, shareLength: MIB });
  });
});

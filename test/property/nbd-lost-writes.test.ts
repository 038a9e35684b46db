// What a flush vouches for is there, whatever the server loses. The server keeps writes in a cache that only a flush makes
// durable, answers in any order, crashes (of what was not flushed anything may have reached its disk), and loses single
// connections, with any of what was under way on them done or not. Against it a client writes, at times durably, and flushes.
//
// Held to account: when flush() returns, every write that had returned before it was called is on the disk, or was
// overwritten since. When it throws LostWritesError, all that had returned by then is taken back, as the pipeline does, and
// unless something is cut again the next flush succeeds.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LostWritesError } from "../../src/base/errors.ts";
import { NbdDevice } from "../../src/nbd/client/nbd-device.ts";
import { Command, CommandFlag, TransmissionFlag } from "../../src/nbd/protocol.ts";
import type { Request } from "../../src/nbd/transmission-codec.ts";
import { ALL_FLAGS, FakeNbdServer, type FakePeer } from "../support/fake-nbd-server.ts";
import { QuickClock } from "../support/quick-clock.ts";
import { type SeededRandom, seededRandom } from "../support/random.ts";

const BLOCK = 512;
const BLOCKS = 8;

type Step = { kind: "write"; block: number; fua: boolean } | { kind: "flush" | "crash" | "cut one" | "wait" };

/** The numbers that a server's blocks hold: what is read, and what survives. */
class CachingServer {
  readonly cached = new Array<number>(BLOCKS).fill(0);
  readonly durable = new Array<number>(BLOCKS).fill(0);
  /** Writes since the last flush. */
  #unflushed: { block: number; value: number }[] = [];
  #life = 0;
  readonly #random: SeededRandom;

  constructor(random: SeededRandom) {
    this.#random = random;
  }

  /** Does a request some time, and answers it some time later; or not, where the server has crashed meanwhile. */
  async handle(request: Request, data: Buffer, peer: FakePeer): Promise<void> {
    const life = this.#life;
    await this.#turns();
    const isCut = peer.socket.destroyed;
    if (life !== this.#life || (isCut && this.#random.oneIn(2))) return;
    const block = request.offset / BLOCK;
    if (request.type === Command.write) {
      const value = data.readUInt32BE(0);
      // Done after its client has gone, but not over what came later: of that nobody could know.
      if (isCut && (this.cached[block] as number) > value) return;
      this.cached[block] = value;
      if (request.flags % 2 === CommandFlag.fua) {
        this.durable[block] = value;
        // What the cache had for this block is older, and gone.
        this.#unflushed = this.#unflushed.filter((write) => write.block !== block);
      } else this.#unflushed.push({ block, value });
    } else if (request.type === Command.flush) {
      for (const [index, value] of this.cached.entries()) this.durable[index] = value;
      this.#unflushed = [];
    }
    await this.#turns();
    if (life === this.#life && !peer.socket.destroyed) peer.done(request);
  }

  crash(): void {
    this.#life += 1;
    for (const { block, value } of this.#unflushed) if (this.#random.oneIn(2)) this.durable[block] = value;
    this.#unflushed = [];
    for (const [index, value] of this.durable.entries()) this.cached[index] = value;
  }

  async #turns(): Promise<void> {
    for (let turn = this.#random.integer(0, 3); turn > 0; turn--) await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Runs the steps; throws where a flush vouches for what is not there. Returns how many flushes told of a loss. */
async function play(steps: readonly Step[], seed: number, connections: number): Promise<number> {
  const random = seededRandom(seed);
  const model = new CachingServer(random);
  const multi = connections > 1 ? 0 : TransmissionFlag.canMultiConn;
  await using server = await FakeNbdServer.start({
    size: BLOCK * BLOCKS,
    flags: ALL_FLAGS - multi,
    onRequest: (request, data, peer) => {
      void model.handle(request, data, peer);
      return true;
    },
  });
  const clock = new QuickClock();
  await using device = await NbdDevice.open(server.address, {
    access: "read-write",
    connections,
    clock,
    random: () => 0,
  });
  /** Returned, and not vouched for yet: the number that each block has to hold, or a higher one. */
  const owed = new Map<number, number>();
  const busy = new Map<number, Promise<void>>();
  const running: Promise<void>[] = [];
  let [number, lost, cuts] = [0, 0, 0];

  const write = async (block: number, fua: boolean, before: Promise<void> | undefined): Promise<void> => {
    await before;
    const value = ++number;
    const bytes = Buffer.alloc(BLOCK);
    bytes.writeUInt32BE(value, 0);
    try {
      await device.write(block * BLOCK, bytes, { fua });
      if (fua) expect(model.durable[block]).toBeGreaterThanOrEqual(value);
      owed.set(block, value);
    } catch (error) {
      if (!(error instanceof LostWritesError)) throw error;
    }
  };
  const flush = async (): Promise<void> => {
    const promised = new Map(owed);
    try {
      await device.flush();
    } catch (error) {
      if (!(error instanceof LostWritesError)) throw error;
      lost += 1;
      owed.clear();
      return;
    }
    for (const [block, value] of promised) {
      expect(model.durable[block], `block ${block} after a flush`).toBeGreaterThanOrEqual(value);
      if (owed.get(block) === value) owed.delete(block);
    }
  };

  for (const step of steps) {
    if (step.kind === "write") {
      const doing = write(step.block, step.fua, busy.get(step.block));
      busy.set(step.block, doing);
      running.push(doing);
    } else if (step.kind === "flush") running.push(flush());
    else if (step.kind === "wait") await Promise.all(running.splice(0));
    else if (step.kind === "crash") {
      cuts += 1;
      model.crash();
      server.cut();
    } else {
      cuts += 1;
      const peers = [...server.peers];
      peers[random.integer(0, Math.max(0, peers.length - 1))]?.end();
    }
    if (random.oneIn(2)) await new Promise((resolve) => setImmediate(resolve));
  }
  await Promise.all(running);
  // Until the client knows of every cut: the last may have come after the last step.
  for (let turn = 0; turn < 30; turn++) await new Promise((resolve) => setImmediate(resolve));
  await flush();
  const before = lost;
  await flush();
  expect(lost, "a loss is told once").toBe(before);
  expect(cuts === 0 ? lost : 0).toBe(0);
  return lost;
}

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("write" as const),
      block: fc.integer({ min: 0, max: BLOCKS - 1 }),
      fua: fc.integer({ min: 0, max: 5 }).map((n) => n === 0),
    }),
  },
  { weight: 3, arbitrary: fc.constant<Step>({ kind: "flush" }) },
  { weight: 3, arbitrary: fc.constant<Step>({ kind: "wait" }) },
  { weight: 1, arbitrary: fc.constant<Step>({ kind: "crash" }) },
  { weight: 1, arbitrary: fc.constant<Step>({ kind: "cut one" }) },
);

describe("NbdDevice.flush()", () => {
  test.each([1, 3])("vouches for nothing that is lost, over %i connections", async (connections) => {
    let told = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 3, maxLength: 40 }), fc.integer(), async (steps, seed) => {
        told += await play(steps, seed, connections);
      }),
      { numRuns: 150 },
    );
    expect(told).toBeGreaterThan(0); // the steps do lose something
  });
});

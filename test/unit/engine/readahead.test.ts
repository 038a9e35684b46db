import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { Readahead } from "../../../src/engine/readahead.ts";
import { ReadsInFlight } from "../../../src/engine/reads-in-flight.ts";
import { TransferWindow } from "../../../src/engine/transfer-window.ts";
import { bytesAt, makeClone } from "../../support/clone-device.ts";
import { CountingSource } from "../../support/counting-source.ts";
import { noise } from "../../support/layout.ts";
import { type Link, LinkDevice } from "../../support/link-device.ts";
import { seededRandom } from "../../support/power-loss-device.ts";
import { VirtualClock } from "../../support/virtual-clock.ts";

const KIB = 1024;
const MIB = 2 ** 20;

describe("Readahead", () => {
  const make = (most = 8 * MIB) => new Readahead({ size: 64 * MIB, most: () => most });
  const drawn = (range: { offset: number; length: number } | undefined) =>
    range && `${range.offset / KIB}K+${range.length / KIB}K`;

  test("reads ahead from the second read on, twice as far whenever half of it is used up", () => {
    const readahead = make(1 * MIB);
    const asked: (string | undefined)[] = [];
    for (let read = 0; read < 48; read++) {
      const range = drawn(readahead.note(read * 64 * KIB, (read + 1) * 64 * KIB));
      if (range !== undefined) asked.push(`${read}: ${range}`);
    }
    expect(asked).toEqual([
      "1: 128K+128K",
      "2: 256K+192K",
      "4: 448K+384K",
      "8: 832K+768K",
      "16: 1600K+512K",
      "24: 2112K+512K",
      "32: 2624K+512K",
      "40: 3136K+512K",
    ]);
  });

  test("asks for nothing twice, nor beyond the end", () => {
    const readahead = make();
    let covered = 0;
    for (let offset = 0; offset < 64 * MIB; offset += 16 * KIB) {
      const range = readahead.note(offset, offset + 16 * KIB);
      if (range === undefined) continue;
      if (covered > 0) expect(range.offset).toBe(covered);
      covered = range.offset + range.length;
    }
    expect(covered).toBe(64 * MIB);
  });

  test("takes requests out of order, and little gaps, for one reader", () => {
    const readahead = make();
    const order = [1, 0, 3, 2, 5, 4, 7, 6, 9];
    const asked = order.map((at) => readahead.note(at * 20 * KIB, at * 20 * KIB + 16 * KIB));
    expect(asked.filter((range) => range !== undefined).length).toBeGreaterThan(0);
  });

  test("follows many readers at once, and forgets the one that has been quiet for the longest", () => {
    const readahead = make();
    const at = (reader: number, read: number): boolean =>
      readahead.note(reader * 2 * MIB + read * 16 * KIB, reader * 2 * MIB + (read + 1) * 16 * KIB) !== undefined;
    for (let reader = 0; reader < 16; reader++) at(reader, 0);
    at(16, 0); // the first one is forgotten
    expect(Array.from({ length: 15 }, (_, reader) => at(reader + 1, 1))).toEqual(new Array(15).fill(true));
    expect(at(0, 1)).toBe(false);
  });

  test("reads nothing ahead of reads here and there", () => {
    const readahead = make();
    const random = seededRandom(1);
    let asked = 0;
    for (let read = 0; read < 1000; read++) {
      const offset = Math.floor(random() * 4096) * 16 * KIB;
      asked += readahead.note(offset, offset + 16 * KIB)?.length ?? 0;
    }
    expect(asked).toBeLessThan(1000 * 64 * KIB); // by chance some of them lie together
  });

  test("begins no stream where it is not to, but goes on with one", () => {
    const readahead = make();
    readahead.note(0, KIB, { begins: false });
    expect(readahead.note(KIB, 2 * KIB, { begins: false })).toBeUndefined();
    readahead.note(2 * KIB, 3 * KIB);
    expect(readahead.note(3 * KIB, 4 * KIB, { begins: false })).toEqual({ offset: 4 * KIB, length: 128 * KIB });
  });
});

describe("A clone of a source far away", () => {
  async function setUp(link: Link, size: number) {
    const clock = new VirtualClock();
    const content = noise(size, 1);
    const counting = new CountingSource(new MemoryDevice({ name: "source", size, content }));
    const far = new LinkDevice(counting, clock, link);
    const window = new TransferWindow({ clock });
    const clone = await makeClone({
      size,
      regionSize: 64 * KIB,
      clock,
      source: window.watch(far),
      destination: new MemoryDevice({ name: "destination", size }),
      hydrateOnRead: "always",
      reads: new ReadsInFlight(),
      sourceDepth: 128,
      readAheadBytes: () => Math.max(256 * KIB, Math.min(8 * MIB, 2 * window.length)),
    });
    const read = async (offset: number, length: number): Promise<void> => {
      const bytes = await bytesAt(clone.device, offset, length);
      expect(Buffer.compare(bytes, content.subarray(offset, offset + length))).toBe(0);
    };
    return { ...clone, counting, read };
  }

  test("gives a sequential reader what the link gives, and asks for each byte once", async () => {
    const size = 24 * MIB;
    const { clock, counting, read, device } = await setUp({ bytesPerSecond: 12.5e6, roundTripMs: 50 }, size);
    for (let offset = 0; offset < size; offset += 128 * KIB) await read(offset, 128 * KIB);
    const ideal = (size / 12.5e6) * 1000 + 50;
    expect(clock.now()).toBeLessThan(1.3 * ideal); // and not 192 round trips
    await device.drain();
    expect([counting.bytes, counting.most]).toEqual([size, 1]);
  });

  test("gives a sequential reader of 4 KiB at a time no less", async () => {
    const size = 6 * MIB;
    const { clock, read } = await setUp({ bytesPerSecond: 12.5e6, roundTripMs: 50 }, size);
    for (let offset = 0; offset < size; offset += 4 * KIB) await read(offset, 4 * KIB);
    expect(clock.now()).toBeLessThan(1500); // and not 96 round trips, one for each region
  });

  test("asks for little more than what is read here and there", async () => {
    const { counting, read, device } = await setUp({ bytesPerSecond: 12.5e6, roundTripMs: 50 }, 16 * MIB);
    const random = seededRandom(2);
    const touched = new Set<number>();
    for (let i = 0; i < 60; i++) {
      const offset = Math.floor(random() * 1024) * 16 * KIB;
      touched.add(Math.floor(offset / (64 * KIB)));
      await read(offset, 16 * KIB);
    }
    await device.drain();
    expect(counting.bytes).toBeLessThan(1.3 * touched.size * 64 * KIB);
  });
});

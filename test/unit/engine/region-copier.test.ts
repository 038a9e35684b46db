import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import type { BlockDevice, Extent } from "../../../src/device/block-device.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { PaddedDevice } from "../../../src/device/filters/padded.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { ExtentCache } from "../../../src/engine/extent-cache.ts";
import { RegionCopier, type RegionCopierParts, SourceReadError } from "../../../src/engine/region-copier.ts";
import { Throttle } from "../../../src/engine/throttle.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { imageOf } from "../../support/image.ts";
import { arbitraryRuns, deviceOf, noise } from "../../support/layout.ts";
import { LoggingDevice } from "../../support/logging-device.ts";
import { SlowDevice } from "../../support/slow-device.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

const MIB = 2 ** 20;
const NOISE = noise(MIB, 1);
const never = new AbortController().signal;

function copierOf(
  source: BlockDevice,
  destination: BlockDevice,
  parts: Partial<RegionCopierParts> & { trusted?: boolean } = {},
): RegionCopier {
  return new RegionCopier({
    source,
    destination,
    extents: new ExtentCache(source, { trusted: parts.trusted ?? true }),
    throttle: new Throttle(new VirtualClock(), null),
    pieceLength: 65536,
    depth: 3,
    zeroUnit: 4096,
    allocate: (byteLength) => new Uint8Array(byteLength).fill(0xa5), // as dirty as the last user may leave it
    verify: false,
    halt: never,
    ...parts,
  });
}

describe("RegionCopier", () => {
  test("makes any destination equal any source, whatever both held, in regions of any size, up to an odd tail", () =>
    fc.assert(
      fc.asyncProperty(
        fc.record({
          sourceRuns: arbitraryRuns(),
          destinationRuns: arbitraryRuns(),
          size: fc.integer({ min: 1, max: 500_000 }),
          regionSize: fc.integer({ min: 12, max: 20 }).map((power) => 2 ** power),
          pieceLength: fc.constantFrom(65536, 131072, MIB),
          depth: fc.integer({ min: 1, max: 4 }),
          trusted: fc.boolean(),
          verify: fc.boolean(),
          rate: fc.option(fc.integer({ min: 50_000, max: 10_000_000 })),
          together: fc.integer({ min: 1, max: 5 }),
        }),
        async ({ sourceRuns, destinationRuns, size, regionSize, rate, together, ...parts }) => {
          const file = await deviceOf(sourceRuns, size, 1);
          const reused = await deviceOf(destinationRuns, size, 2);
          const [source, destination] = [new PaddedDevice(file), new PaddedDevice(reused)];
          const clock = new VirtualClock();
          const copier = copierOf(source, destination, {
            ...parts,
            throttle: new Throttle(clock, rate),
            zeroUnit: Math.min(65536, regionSize),
          });
          const ranges: { offset: number; length: number }[] = [];
          for (let offset = 0; offset < source.size; offset += regionSize) {
            ranges.push({ offset, length: Math.min(regionSize, source.size - offset) });
          }
          const worker = async () => {
            for (let range = ranges.pop(); range !== undefined; range = ranges.pop()) await copier.copy(range, never);
          };
          await Promise.all(Array.from({ length: together }, worker));
          expect(Buffer.compare(await imageOf(reused), await imageOf(file))).toBe(0);
          const { copied, reflinked, zeroed, skipped } = copier.counts;
          expect(copied + zeroed + skipped).toBe(source.size);
          expect(reflinked).toBe(0);
        },
      ),
      { numRuns: 120 },
    ));

  test("neither writes nor zeroes where source and destination show zeros, told or found", async () => {
    for (const trusted of [true, false]) {
      const log: string[] = [];
      const source = await deviceOf(
        [
          { kind: "hole", length: MIB },
          { kind: "zero", length: MIB },
        ],
        2 * MIB,
        1,
      );
      const destination = new LoggingDevice(new MemoryDevice({ size: 2 * MIB }), "to", log);
      const copier = copierOf(source, destination, { trusted });
      await copier.copy({ offset: 0, length: 2 * MIB }, never);
      expect(log).toEqual([]);
      expect(copier.counts).toEqual({ copied: 0, reflinked: 0, zeroed: 0, skipped: 2 * MIB });
    }
  });

  test("zeroes by zero(), not by writing, where the destination does not show zeros", async () => {
    for (const trusted of [true, false]) {
      const log: string[] = [];
      const source = new MemoryDevice({ size: 4 * 65536 });
      const reused = await deviceOf(
        [
          { kind: "hole", length: 65536 },
          { kind: "data", length: 65536 },
        ],
        4 * 65536,
        2,
      );
      const copier = copierOf(source, new LoggingDevice(reused, "to", log), { trusted });
      await copier.copy({ offset: 0, length: 4 * 65536 }, never);
      expect(log).toEqual(["to zero 65536+65536"]);
      expect(copier.counts).toEqual({ copied: 0, reflinked: 0, zeroed: 65536, skipped: 3 * 65536 });
      expect((await imageOf(reused)).every((byte) => byte === 0)).toBe(true);
    }
  });

  test("asks the destination about its holes each time, and does not believe an earlier answer", async () => {
    const source = new MemoryDevice({ size: 65536 });
    const destination = new MemoryDevice({ size: 65536 });
    const copier = copierOf(source, destination);
    await copier.copy({ offset: 0, length: 65536 }, never);
    await destination.write(5000, noise(3, 1)); // what an unflushed write may do after a restart
    await copier.copy({ offset: 0, length: 65536 }, never);
    expect((await imageOf(destination)).every((byte) => byte === 0)).toBe(true);
  });

  test("does not take a hole that is not known to read as zeros for zeros, on either side", async () => {
    class Vague extends FilterDevice {
      override async extents(offset: number, length: number): Promise<Extent[]> {
        return [{ offset, length, hole: true, zero: false }];
      }
    }
    const [source, destination] = [
      await deviceOf([{ kind: "data", length: 65536 }], 131072, 1),
      await deviceOf([{ kind: "data", length: 131072 }], 131072, 2),
    ];
    const copier = copierOf(new Vague(source), new Vague(destination));
    await copier.copy({ offset: 0, length: 131072 }, never);
    expect(Buffer.compare(await imageOf(destination), await imageOf(source))).toBe(0);
    expect(copier.counts).toEqual({ copied: 65536, reflinked: 0, zeroed: 65536, skipped: 0 });
  });

  test("holds as many pieces in flight as it may, all calls together, and no more", async () => {
    const clock = new VirtualClock();
    const source = new SlowDevice(new MemoryDevice({ size: 4 * MIB, content: noise(4 * MIB, 1) }), clock, 10);
    const destination = new SlowDevice(new MemoryDevice({ size: 4 * MIB }), clock, 10);
    const copier = copierOf(source, destination, { depth: 3 });
    await Promise.all([0, 1, 2, 3].map((i) => copier.copy({ offset: i * MIB, length: MIB }, never)));
    expect(source.mostInFlight).toBe(3);
    expect(destination.mostInFlight).toBe(3);
  });

  test("zeroes a dirty destination in pieces of at most 32 MiB, as many at once as it may copy", async () => {
    const clock = new VirtualClock();
    const log: string[] = [];
    const size = 512 * MIB;
    const dirty = new (class extends MemoryDevice {
      override async extents(offset: number, length: number): Promise<Extent[]> {
        return [{ offset, length, hole: false, zero: false }];
      }
    })({ size });
    const destination = new SlowDevice(new LoggingDevice(dirty, "to", log), clock, 10);
    const copier = copierOf(new MemoryDevice({ size }), destination, { depth: 3 });
    const parts = Array.from({ length: 8 }, (_, index) => ({ offset: (index * size) / 8, length: size / 8 }));
    await Promise.all(parts.map((part) => copier.copy(part, never)));
    expect(destination.mostInFlight).toBe(3);
    expect(log).toHaveLength(16);
    expect(log.every((entry) => entry.endsWith(`+${32 * MIB}`))).toBe(true);
    expect(copier.counts.zeroed).toBe(size);
  });

  test("reads and writes pieces that end on multiples of the piece length, wherever the range begins", async () => {
    const log: string[] = [];
    const source = new MemoryDevice({ size: MIB, content: NOISE });
    const copier = copierOf(source, new LoggingDevice(new MemoryDevice({ size: MIB }), "to", log), { depth: 1 });
    await copier.copy({ offset: 4096, length: 150_000 - (150_000 % 512) }, never);
    expect(log).toEqual(["to write 4096+61440", "to write 65536+65536", "to write 131072+22528"]);
  });

  test("follows a piece length and a depth that change while it copies", async () => {
    const clock = new VirtualClock();
    const log: string[] = [];
    const content = noise(4 * MIB, 1);
    const source = new SlowDevice(new MemoryDevice({ size: 4 * MIB, content }), clock, 10);
    const memory = new MemoryDevice({ size: 4 * MIB });
    const allowance = { pieceLength: MIB, depth: 9, shareLength: MIB };
    const copier = copierOf(source, new LoggingDevice(memory, "to", log), {
      pieceLength: 262144,
      depth: 4,
      allowance,
    });
    expect(copier.preferredLength).toBe(262144);
    const copying = copier.copy({ offset: 0, length: 4 * MIB }, never);
    void clock.sleep(15).then(() => {
      Object.assign(allowance, { pieceLength: 4096, depth: 1 });
      source.mostInFlight = 0;
    });
    void clock.sleep(495).then(() => {
      Object.assign(allowance, { pieceLength: MIB, depth: 9 });
      source.mostInFlight = 0;
    });
    await clock.sleep(494);
    expect(source.mostInFlight).toBeLessThanOrEqual(4); // those that were in flight
    expect(copier.preferredLength).toBe(4096);
    await copying;
    const lengths = log.map((entry) => Number(entry.split("+")[1]));
    expect(lengths.slice(0, 5)).toEqual([262144, 262144, 262144, 262144, 4096]);
    expect(lengths.filter((length) => length === 4096).length).toBeGreaterThan(30);
    expect(Math.max(...lengths)).toBe(262144);
    expect(Buffer.compare(await imageOf(memory), content)).toBe(0);
  });

  test("charges every byte that moves to the rate, once, and no byte that does not", async () => {
    const clock = new VirtualClock();
    const size = 40 * 65536;
    const source = await deviceOf(
      [
        { kind: "data", length: size / 4 },
        { kind: "zero", length: size / 4 },
      ],
      size,
      1,
    );
    const destination = await deviceOf(
      [
        { kind: "hole", length: size / 4 },
        { kind: "data", length: size / 2 },
      ],
      size,
      2,
    );
    const copier = copierOf(source, destination, { throttle: new Throttle(clock, size) });
    await copier.copy({ offset: 0, length: size }, never);
    // A quarter copied, a quarter read and found to be zeros, a quarter zeroed, a quarter skipped.
    expect(clock.now()).toBeGreaterThan(600);
    expect(clock.now()).toBeLessThanOrEqual(750);
    expect(Buffer.compare(await imageOf(destination), await imageOf(source))).toBe(0);
  });

  test.for(["write", "zero", "skip, found", "skip, told"])(
    "with verify finds a destination that lies about a %s",
    async (lie) => {
      class Liar extends FilterDevice {
        override async write(offset: number, data: Uint8Array): Promise<void> {
          const bytes = Buffer.from(data);
          if (lie === "write") bytes[100] = (bytes[100] as number) ^ 1;
          await super.write(offset, bytes);
        }
        override async zero(offset: number, length: number): Promise<void> {
          if (lie !== "zero") await super.zero(offset, length);
        }
        override async extents(offset: number, length: number): Promise<Extent[]> {
          return lie.startsWith("skip")
            ? [{ offset, length, hole: true, zero: true }]
            : await super.extents(offset, length);
        }
      }
      const size = 4 * 65536;
      const source =
        lie === "write" ? await deviceOf([{ kind: "data", length: size }], size, 1) : new MemoryDevice({ size });
      const dirty = () => deviceOf([{ kind: "data", length: size }], size, 2, "disk");
      const range = { offset: 65536, length: 65536 };
      const trusted = lie !== "skip, found";
      const honest = await dirty();
      await copierOf(source, honest, { verify: true, trusted }).copy(range, never);
      expect(
        Buffer.compare(
          (await imageOf(honest)).subarray(65536, 131072),
          (await imageOf(source)).subarray(65536, 131072),
        ),
      ).toBe(0);
      await copierOf(source, new Liar(await dirty()), { trusted }).copy(range, never); // unasked it does not look
      await expect(
        copierOf(source, new Liar(await dirty()), { verify: true, trusted }).copy(range, never),
      ).rejects.toThrow('Cannot trust "disk": 65536 bytes at 65536 read back differently from what was written');
    },
  );

  test("turns a read error of the source into a SourceReadError with errno, place and cause, a question's too", async () => {
    const bad = new FaultyDevice(new MemoryDevice({ name: "old disk", size: MIB, content: NOISE }), {
      failRead: ({ offset }) => offset === 131072,
    });
    const copier = copierOf(bad, new MemoryDevice({ size: MIB }));
    const error = await copier.copy({ offset: 0, length: MIB }, never).catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(SourceReadError);
    expect(error).toMatchObject({
      message: 'Cannot read 65536 bytes at 131072 from "old disk": EIO',
      errno: "EIO",
      offset: 131072,
      length: 65536,
      cause: expect.any(DeviceError),
    });
    class Mute extends FilterDevice {
      override async extents(): Promise<Extent[]> {
        throw new DeviceError("Cannot query", { errno: "ESTALE" });
      }
    }
    const asked = copierOf(new Mute(bad), new MemoryDevice({ size: MIB })).copy({ offset: 0, length: 4096 }, never);
    await expect(asked).rejects.toBeInstanceOf(SourceReadError);
    await expect(asked).rejects.toMatchObject({ errno: "ESTALE" });
  });

  test("leaves an error of the destination what it is", async () => {
    const source = await deviceOf([{ kind: "data", length: 65536 }], MIB, 1);
    for (const [inner, offset] of [
      [new MemoryDevice({ size: MIB }), 0],
      [await deviceOf([{ kind: "data", length: MIB }], MIB, 2), 65536],
    ] as const) {
      const full = new FaultyDevice(inner, { failWrite: () => true, errno: "ENOSPC" });
      const error = await copierOf(source, full)
        .copy({ offset, length: 65536 }, never)
        .catch((caught: unknown) => caught);
      expect(error).toBeInstanceOf(DeviceError);
      expect(error).not.toBeInstanceOf(SourceReadError);
      expect(error).toMatchObject({ errno: "ENOSPC" });
    }
  });

  test("has nothing in flight any more when it rejects, so that nobody writes to a region given up", () =>
    fc.assert(
      fc.asyncProperty(fc.nat(15), fc.constantFrom("read", "write", "stop", "halt"), async (index, how) => {
        const clock = new VirtualClock();
        const log: string[] = [];
        const [stop, halt] = [new AbortController(), new AbortController()];
        const source = new FaultyDevice(
          new MemoryDevice({ size: MIB, content: NOISE }),
          how === "read" ? { failRead: [index] } : {},
        );
        const logged = new LoggingDevice(new MemoryDevice({ size: MIB }), "to", log);
        const faulty = new FaultyDevice(
          logged,
          how === "write" ? { failWrite: ({ offset, length }) => length === 65536 && offset === index * 65536 } : {},
        );
        const copier = copierOf(new SlowDevice(source, clock, 7), new SlowDevice(faulty, clock, 11), {
          halt: halt.signal,
        });
        if (how === "stop" || how === "halt") {
          void clock.sleep(3 + 4 * index).then(() => (how === "stop" ? stop : halt).abort(new Error(how)));
        }
        const error = await copier.copy({ offset: 0, length: MIB }, stop.signal).catch((caught: unknown) => caught);
        expect(error).toBeInstanceOf(Error);
        if (how === "stop" || how === "halt") expect(error).toMatchObject({ message: how });
        const written = log.length;
        expect(copier.counts.copied).toBe(written * 65536);
        await clock.sleep(10_000);
        expect(log).toHaveLength(written);
      }),
    ));

  test("writes nothing more once it is halted, not even what it has read already", async () => {
    for (const zeros of [false, true]) {
      const clock = new VirtualClock();
      const log: string[] = [];
      const halt = new AbortController();
      const content = zeros ? {} : { content: NOISE };
      const source = new SlowDevice(new MemoryDevice({ size: MIB, ...content }), clock, 100);
      const destination = new LoggingDevice(await deviceOf([{ kind: "data", length: MIB }], MIB, 2), "to", log);
      const copier = copierOf(source, destination, { halt: halt.signal });
      void clock.sleep(50).then(() => halt.abort(new Error("halted")));
      await expect(copier.copy({ offset: 0, length: MIB }, never)).rejects.toThrow("halted");
      expect(log).toEqual([]);
    }
  });

  test("does not wait for the rate any more once in a hurry, and ends its copy well", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, 4096);
    const memory = new MemoryDevice({ size: MIB });
    const copier = copierOf(new MemoryDevice({ size: MIB, content: NOISE }), memory, { throttle });
    const hurry = new AbortController();
    void clock.sleep(5000).then(() => hurry.abort());
    await copier.copy({ offset: 0, length: MIB }, never, { hurry: hurry.signal });
    expect(clock.now()).toBe(5000);
    expect(Buffer.compare(await imageOf(memory), NOISE)).toBe(0);
  });

  test("in a hurry is not kept by those that wait for the rate, however many they are", async () => {
    const clock = new VirtualClock();
    const throttle = new Throttle(clock, 4096);
    const memory = new MemoryDevice({ size: MIB });
    const copier = copierOf(new MemoryDevice({ size: MIB, content: NOISE }), memory, { throttle, depth: 2 });
    const stop = new AbortController();
    const patient = [0, 1, 2, 3].map((part) =>
      copier.copy({ offset: part * 131072, length: 131072 }, stop.signal).catch(() => {}),
    );
    const hurry = new AbortController();
    hurry.abort();
    await copier.copy({ offset: 786432, length: 262144 }, never, { hurry: hurry.signal });
    expect(clock.now()).toBeLessThan(1000); // at this rate the others take two minutes
    stop.abort(new Error("stopped"));
    await Promise.all(patient);
  });

  test("leaves a wait for the rate at once when stopped", async () => {
    const clock = new VirtualClock();
    const log: string[] = [];
    const stop = new AbortController();
    const destination = new LoggingDevice(new MemoryDevice({ size: MIB }), "to", log);
    const throttle = new Throttle(clock, 1000);
    await throttle.take(1000);
    const copying = copierOf(new MemoryDevice({ size: MIB, content: NOISE }), destination, { throttle }).copy(
      { offset: 0, length: MIB },
      stop.signal,
    );
    for (let i = 0; i < 30; i++) await Promise.resolve();
    stop.abort(new Error("stopped"));
    await expect(copying).rejects.toThrow("stopped");
    await whenIdle();
    expect(clock.now()).toBeLessThanOrEqual(1000);
    expect(log).toEqual([]);
  });
});

/** A device that shares with a source as a file system would, at most `times` times. */
class Sharing extends FilterDevice {
  times: number;
  readonly shared: string[] = [];
  error: Error | undefined;

  constructor(inner: BlockDevice, times: number) {
    super(inner);
    this.times = times;
  }

  override async reflinkFrom(source: BlockDevice, from: number, offset: number, length: number): Promise<boolean> {
    if (this.error !== undefined) throw this.error;
    if (this.times-- <= 0) return false;
    const bytes = new Uint8Array(length);
    await source.read(from, bytes);
    await this.inner.write(offset, bytes);
    this.shared.push(`${offset}+${length}`);
    return true;
  }
}

describe("RegionCopier between devices that can share", () => {
  const SIZE = 8 * MIB;
  const content = noise(SIZE, 1);

  test("shares, copies nothing, and asks for long ranges from then on", async () => {
    const source = new MemoryDevice({ size: SIZE, content });
    const destination = new Sharing(new MemoryDevice({ size: SIZE }), Infinity);
    const copier = copierOf(source, destination);
    expect(copier.preferredLength).toBe(65536);
    await copier.copy({ offset: 0, length: 65536 }, never);
    expect(copier.preferredLength).toBe(256 * MIB);
    await copier.copy({ offset: 65536, length: SIZE - 65536 }, never);
    expect(destination.shared).toEqual(["0+65536", `65536+${SIZE - 65536}`]);
    expect(copier.counts).toEqual({ copied: 0, reflinked: SIZE, zeroed: 0, skipped: 0 });
    expect(Buffer.compare(await imageOf(destination), content)).toBe(0);
  });

  test("shares no more by one call than it was told", async () => {
    const destination = new Sharing(new MemoryDevice({ size: SIZE }), Infinity);
    const copier = copierOf(new MemoryDevice({ size: SIZE, content }), destination, {
      allowance: { pieceLength: 4096, depth: 1, shareLength: 2 * MIB },
    });
    await copier.copy({ offset: 0, length: 5 * MIB }, never);
    expect(destination.shared).toEqual([`0+${2 * MIB}`, `${2 * MIB}+${2 * MIB}`, `${4 * MIB}+${MIB}`]);
    expect(copier.preferredLength).toBe(2 * MIB);
  });

  test("copies what was refused, also in the middle, and never asks again", async () => {
    for (let times = 0; times < 4; times++) {
      const clock = new VirtualClock();
      const destination = new Sharing(await deviceOf([{ kind: "data", length: SIZE }], SIZE, 2), times);
      // The rate cuts the range into shares of one MiB each.
      const throttle = new Throttle(clock, 20 * MIB);
      const copier = copierOf(new MemoryDevice({ size: SIZE, content }), destination, { throttle });
      await copier.copy({ offset: 0, length: 4 * MIB }, never);
      destination.times = Infinity;
      await copier.copy({ offset: 4 * MIB, length: 4 * MIB }, never);
      expect(destination.shared).toHaveLength(times);
      expect(copier.counts.reflinked).toBe(times * MIB);
      expect(Buffer.compare(await imageOf(destination), content)).toBe(0);
      expect(copier.preferredLength).toBe(65536);
    }
  });

  test("charges what is shared to the rate, and stops and halts between two shares", async () => {
    for (const how of ["finish", "stop", "halt"]) {
      const clock = new VirtualClock();
      const [stop, halt] = [new AbortController(), new AbortController()];
      const destination = new Sharing(new MemoryDevice({ size: SIZE }), Infinity);
      const parts = { throttle: new Throttle(clock, 2 * MIB), halt: halt.signal };
      const copier = copierOf(new MemoryDevice({ size: SIZE, content }), destination, parts);
      if (how !== "finish") void clock.sleep(1000).then(() => (how === "stop" ? stop : halt).abort(new Error(how)));
      const copying = copier.copy({ offset: 0, length: SIZE }, stop.signal);
      if (how === "finish") {
        await copying;
        expect(clock.now()).toBeGreaterThan(3800);
      } else {
        await expect(copying).rejects.toThrow(how);
        expect(copier.counts.reflinked).toBeLessThan(2.5 * MIB);
        expect(copier.counts.copied).toBe(0);
      }
    }
  });

  test("with verify compares what was shared", async () => {
    const liar = new (class extends Sharing {
      override async reflinkFrom(): Promise<boolean> {
        return true; // shared nothing
      }
    })(new MemoryDevice({ name: "disk", size: SIZE }), 1);
    const copying = copierOf(new MemoryDevice({ size: SIZE, content }), liar, { verify: true }).copy(
      { offset: 0, length: MIB },
      never,
    );
    await expect(copying).rejects.toThrow('Cannot trust "disk"');
    const honest = new Sharing(new MemoryDevice({ size: SIZE }), Infinity);
    await copierOf(new MemoryDevice({ size: SIZE, content }), honest, { verify: true }).copy(
      { offset: 0, length: MIB },
      never,
    );
    expect(honest.shared).toHaveLength(1);
  });

  test("lets copying decide whether a share failed because of the source or the destination, and shares on elsewhere", async () => {
    const source = new FaultyDevice(new MemoryDevice({ size: SIZE, content }), {
      failRead: ({ offset }) => offset === 0,
    });
    const destination = new Sharing(new MemoryDevice({ size: SIZE }), Infinity);
    const copier = copierOf(source, destination);
    destination.error = new DeviceError("Cannot reflink", { errno: "EIO" });
    await expect(copier.copy({ offset: 0, length: 65536 }, never)).rejects.toBeInstanceOf(SourceReadError);
    await copier.copy({ offset: 65536, length: 65536 }, never);
    expect(copier.counts.copied).toBe(65536);
    destination.error = undefined;
    await copier.copy({ offset: 131072, length: 65536 }, never);
    expect(destination.shared).toEqual(["131072+65536"]);
    destination.error = new TypeError("a mistake");
    await expect(copier.copy({ offset: 0, length: 65536 }, never)).rejects.toThrow("a mistake");
  });
});

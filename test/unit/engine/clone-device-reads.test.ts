import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { bytesAt, destinationOf, drawing, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { formattedStore } from "../../support/hydration.ts";
import { noise } from "../../support/layout.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 16 * REGION;
const OLD = noise(SIZE, 1);
const NEW = noise(SIZE, 2);

function devices() {
  const source = new HeldDevice(new MemoryDevice({ name: "source", size: SIZE, content: OLD }));
  const destination = new HeldDevice(new MemoryDevice({ name: "destination", size: SIZE, content: NEW }));
  return { source, destination };
}

/** What a read must show where the regions 2–5 and 9 are hydrated. */
const HYDRATED = [
  { start: 2, end: 6 },
  { start: 9, end: 10 },
];
const SHOWN = Buffer.from(OLD);
for (const { start, end } of HYDRATED) NEW.copy(SHOWN, start * REGION, start * REGION, end * REGION);

describe("CloneDevice.read()", () => {
  test.for([
    ["hydrated regions", 2 * REGION, 4 * REGION],
    ["a part of a hydrated region", 3 * REGION + 100, 1000],
    ["unhydrated regions", 6 * REGION, 3 * REGION],
    ["a part of an unhydrated region", 6 * REGION + 100, 1000],
    ["everything", 0, SIZE],
    ["the end of one and the begin of the other", 6 * REGION - 1, 2],
    ["from inside of one to inside of another", REGION + 5, 9 * REGION],
  ] as const)("shows %s, each from where its truth is", async ([, offset, length]) => {
    const { device } = await makeClone({ ...devices(), hydrated: HYDRATED });
    expect(Buffer.compare(await bytesAt(device, offset, length), SHOWN.subarray(offset, offset + length))).toBe(0);
  });

  test("of unhydrated regions changes nothing, and says what is next", async () => {
    const { device, hints, destination, regions } = await makeClone({ ...devices(), hydrated: HYDRATED });
    await bytesAt(device, 7 * REGION + 10, 20);
    expect(drawing({ regions })).toBe("..####...#......");
    expect((destination as HeldDevice).log).toEqual([]);
    expect(hints).toEqual(["nearby 7-16"]);
  });

  test("asks each device once for each run, not for each region", async () => {
    const { source, destination } = devices();
    const { device } = await makeClone({ source, destination, hydrated: HYDRATED });
    await bytesAt(device, 0, SIZE);
    expect(destination.log).toEqual([`read ${2 * REGION}+${4 * REGION}`, `read ${9 * REGION}+${REGION}`]);
    expect(source.log).toHaveLength(3);
    expect(device.stats).toMatchObject({ reads: 1, readBytes: SIZE, sourceServedBytes: 11 * REGION });
  });

  test("does not wait for a hydration: what is being copied or overwritten is still the source's", async () => {
    const { source, destination } = devices();
    const { device, regions, geometry, copier } = await makeClone({ source, destination, hydrated: HYDRATED });
    destination.hold("write");
    const hydration = regions.begin({ start: 0, end: 2 });
    const copying = copier.copy(geometry.bytesOf(hydration), new AbortController().signal);
    const writing = device.write(7 * REGION, Buffer.alloc(REGION, 7));
    await whenIdle();
    expect(drawing({ regions })).toBe("~~####.~.#......");
    expect(Buffer.compare(await bytesAt(device, 0, SIZE), SHOWN)).toBe(0);
    destination.release("write");
    await Promise.all([copying, writing]);
    expect((await bytesAt(device, 7 * REGION, REGION)).every((byte) => byte === 7)).toBe(true);
  });

  test("fails where the source does, and nowhere else", async () => {
    const { source, destination } = devices();
    const failing = new FaultyDevice(source, { failRead: ({ offset }) => offset >= 10 * REGION });
    const { device, regions, commits } = await makeClone({ source: failing, destination, hydrated: HYDRATED });
    await expect(bytesAt(device, 9 * REGION, 2 * REGION)).rejects.toMatchObject({ errno: "EIO" });
    expect(Buffer.compare(await bytesAt(device, 0, 10 * REGION), SHOWN.subarray(0, 10 * REGION))).toBe(0);
    expect(drawing({ regions })).toBe("..####...#......");
    expect([device.stats.failures, commits.failure]).toEqual([1, undefined]);
  });

  test("that fails in one part ends when the others have: nothing fills the buffer later", async () => {
    const { source, destination } = devices();
    const failing = new FaultyDevice(source, { failRead: () => true });
    const { device } = await makeClone({ source: failing, destination, hydrated: HYDRATED });
    destination.hold("read");
    let ended = false;
    const reading = bytesAt(device, 5 * REGION, 2 * REGION).finally(() => {
      ended = true;
    });
    const failed = expect(reading).rejects.toThrow("EIO");
    await whenIdle();
    expect(ended).toBe(false);
    expect(device.inFlight).toBe(1);
    destination.release("read");
    await failed;
    expect(device.inFlight).toBe(0);
  });

  test("of a source that hangs fails after the time limit; the clone goes on, and so does the source when it is back", async () => {
    const { source, destination } = devices();
    const { device, clock, meter } = await makeClone({
      source,
      destination,
      hydrated: HYDRATED,
      sourceTimeoutMs: 5000,
      sourceDepth: 2,
    });
    source.hold("read");
    const reads = [0, 1, 6, 7].map((region) => bytesAt(device, region * REGION, REGION));
    const hydrated = bytesAt(device, 2 * REGION, 4 * REGION);
    const written = device.write(3 * REGION, NEW.subarray(3 * REGION, 4 * REGION));
    const results = await Promise.allSettled(reads);
    expect(clock.now()).toBe(5000);
    for (const result of results) expect(result).toMatchObject({ status: "rejected", reason: { errno: "ETIMEDOUT" } });
    expect(Buffer.compare(await hydrated, SHOWN.subarray(2 * REGION, 6 * REGION))).toBe(0);
    await written;
    // The two that were under way hold their places, and no others are begun.
    expect(source.waiting).toHaveLength(2);
    expect(device.stats.timeouts).toBe(4);
    expect(meter.busy).toBe(0);
    await device.drain(); // which does not wait for what clients gave up
    source.release("read");
    expect(Buffer.compare(await bytesAt(device, 0, SIZE), SHOWN)).toBe(0);
  });

  test("of much from the source is cut into pieces of a MiB", async () => {
    const size = 8 * 2 ** 20;
    const content = noise(size, 3);
    const source = new HeldDevice(new MemoryDevice({ name: "source", size, content }));
    const destination = new MemoryDevice({ size });
    const { device } = await makeClone({ size, regionSize: 65536, source, destination });
    expect(Buffer.compare(await bytesAt(device, 70_000, 5_000_000), content.subarray(70_000, 5_070_000))).toBe(0);
    expect(source.log).toHaveLength(5);
    expect(source.log[0]).toBe(`read 70000+${2 ** 20 - 70_000}`);
    expect(source.log[1]).toBe(`read ${2 ** 20}+${2 ** 20}`);
  });

  test("of an odd size reaches the last byte, from either device", async () => {
    const size = 2 * REGION + 700;
    for (const hydrated of [[], [{ start: 0, end: 3 }]]) {
      const { device } = await makeClone({ size, hydrated });
      expect(device.size).toBe(size);
      const bytes = await bytesAt(device, 0, size);
      expect(Buffer.compare(bytes, noise(size, hydrated.length === 0 ? 1 : 2))).toBe(0);
      expect(() => device.tryRead(size - 1, Buffer.alloc(2))).toThrow(RangeError);
    }
  });

  test("reaches regions around and beyond 2 GiB, 4 GiB and 2^32 sectors, and so do writes", async () => {
    const regionSize = 2 ** 22;
    const size = 2 ** 41 + 2 ** 30;
    const source = new MemoryDevice({ name: "source", size });
    const destination = new MemoryDevice({ name: "destination", size });
    const places = [
      2 ** 31 - REGION,
      2 ** 32 - REGION,
      2 ** 32,
      2 ** 32 + regionSize,
      2 ** 41 + 3 * regionSize,
      size - REGION,
    ];
    for (const [index, offset] of places.entries()) await source.write(offset, Buffer.alloc(REGION, index + 1));
    const store = await formattedStore(size, regionSize);
    const { device, regions, metadata } = await makeClone({ size, regionSize, source, destination, store });
    const check = async (): Promise<void> => {
      for (const [index, offset] of places.entries()) {
        expect(Buffer.compare(await bytesAt(device, offset, REGION), Buffer.alloc(REGION, index + 1))).toBe(0);
      }
    };
    await check();
    // A write beside each copies its region, and no other.
    for (const offset of places) await device.write(offset - 3 * REGION, Buffer.alloc(100, 99));
    await check();
    const touched = places.map((offset) => Math.floor((offset - 3 * REGION) / regionSize));
    expect(metadata.hydratedCount).toBe(new Set(touched).size);
    for (const region of touched) expect(regions.state(region)).toBe("hydrated");
    await device.write(2 ** 41, Buffer.alloc(regionSize, 5));
    expect(regions.state(2 ** 41 / regionSize)).toBe("hydrated");
    expect(await bytesAt(destination, 2 ** 41 + regionSize - 1, 2)).toEqual(Buffer.from([5, 0]));
    await device.discard(2 ** 41 + regionSize, size - 2 ** 41 - regionSize);
    expect(regions.stateEnd(2 ** 41 / regionSize, regions.regionCount)).toBe(regions.regionCount);
  });
});

describe("CloneDevice.tryRead()", () => {
  test("serves hydrated regions, if the destination can; and source's where nothing is to be kept of it", async () => {
    const source = new MemoryDevice({ name: "source", size: SIZE, content: OLD });
    const destination = new MemoryDevice({ name: "destination", size: SIZE, content: NEW });
    const { device, regions, meter, hints } = await makeClone({ source, destination, hydrated: HYDRATED });
    const tries = (offset: number, length: number): boolean => {
      const buffer = Buffer.alloc(length);
      const done = device.tryRead(offset, buffer);
      if (done) expect(Buffer.compare(buffer, SHOWN.subarray(offset, offset + length))).toBe(0);
      return done;
    };
    expect(tries(2 * REGION, 4 * REGION)).toBe(true);
    expect(tries(3 * REGION + 1, 10)).toBe(true);
    expect(tries(0, 2 * REGION)).toBe(true);
    expect(hints).toEqual(["nearby 0-16"]);
    expect(tries(REGION, 2 * REGION)).toBe(false); // both
    device.hydrateOnRead = "always";
    expect(tries(10, REGION)).toBe(false); // which completes the regions
    device.hydrateOnRead = "never";
    regions.begin({ start: 7, end: 8 });
    expect(tries(6 * REGION, 3 * REGION)).toBe(true);
    expect(meter).toEqual({ busy: 0, touches: 4, measured: 0 });
    expect(device.stats).toMatchObject({ reads: 4, readBytes: 9 * REGION + 10, sourceServedBytes: 5 * REGION });
  });

  test("serves nothing where the devices cannot at once", async () => {
    const { device, meter } = await makeClone({ ...devices(), hydrated: HYDRATED });
    expect(device.tryRead(2 * REGION, Buffer.alloc(REGION))).toBe(false);
    expect(device.tryRead(0, Buffer.alloc(REGION))).toBe(false);
    expect(device.stats.reads).toBe(0);
    expect(meter.touches).toBe(0);
  });
});

test("A clone of an odd size shows its clients nothing of what lies behind", async () => {
  const size = REGION + 300;
  const disk = new MemoryDevice({ name: "disk", size: SIZE, content: NEW });
  const { device } = await makeClone({ size, destination: destinationOf(disk, size) });
  await device.write(0, Buffer.alloc(size, 9));
  const bytes = await bytesAt(disk, 0, SIZE);
  expect(bytes.subarray(0, size).every((byte) => byte === 9)).toBe(true);
  expect(Buffer.compare(bytes.subarray(size), NEW.subarray(size))).toBe(0);
});

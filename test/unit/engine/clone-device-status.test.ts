import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { HYDRATED_CONTEXT } from "../../../src/engine/region-status.ts";
import { bytesAt, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { deviceOf, noise } from "../../support/layout.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 8 * REGION;
const data = (length: number) => ({ kind: "data" as const, length });
const hole = (length: number) => ({ kind: "hole" as const, length });

async function setUp(options: Parameters<typeof makeClone>[0] = {}) {
  // source: ddhhddhh, destination: dhdhdhdh
  const source = new HeldDevice(
    await deviceOf([data(2 * REGION), hole(2 * REGION), data(2 * REGION)], SIZE, 1, "source"),
  );
  const runs = Array.from({ length: 8 }, (_, region) => (region % 2 === 0 ? data(REGION) : hole(REGION)));
  const destination = new HeldDevice(await deviceOf(runs, SIZE, 2, "destination"));
  return { ...(await makeClone({ size: SIZE, source, destination, ...options })), source, destination };
}

/** `d` and `h` for each region, from extents that end at regions; `?` otherwise. */
function letters(extents: { offset: number; length: number; hole: boolean; zero: boolean }[]): string {
  return extents
    .map(({ length, hole: isHole, zero }) =>
      (isHole && zero ? "h" : isHole || zero ? "?" : "d").repeat(length / REGION),
    )
    .join("");
}

describe("CloneDevice.extents()", () => {
  test("tells of each region what the device says that has its truth", async () => {
    const { device } = await setUp({ hydrated: [{ start: 1, end: 5 }] });
    expect(letters(await device.extents(0, SIZE))).toBe("dhdhddhh");
    expect(await device.extents(0, SIZE)).toHaveLength(6); // neighbours alike are one
    const clipped = await device.extents(REGION + 100, 2 * REGION);
    expect(clipped.map(({ offset, length }) => [offset, length])).toEqual([
      [REGION + 100, REGION - 100],
      [2 * REGION, REGION],
      [3 * REGION, 100],
    ]);
    expect(await device.extents(5, 0)).toEqual([]);
  });

  test("of what is being hydrated tells what the source does", async () => {
    const { device, regions } = await setUp();
    regions.begin({ start: 0, end: 8 });
    expect(letters(await device.extents(0, SIZE))).toBe("ddhhddhh");
  });

  test("takes all of a source for data whose holes are not trusted, that fails, or does not answer in time", async () => {
    const untrusted = await setUp({ trusted: false, hydrated: [{ start: 1, end: 2 }] });
    expect(letters(await untrusted.device.extents(0, SIZE))).toBe("dhdddddd");

    const { source } = await setUp();
    source.extents = () => Promise.reject(Object.assign(new Error("broken")));
    const broken = await setUp({ source });
    await expect(broken.device.extents(0, SIZE)).rejects.toThrow("broken"); // no DeviceError: a mistake of ours
    const failing = new FaultyDevice(new MemoryDevice({ size: SIZE }), {});
    failing.extents = async () => {
      failing.faults = { failRead: () => true };
      await failing.read(0, Buffer.alloc(1));
      return [];
    };
    const failed = await setUp({ source: failing });
    expect(letters(await failed.device.extents(0, SIZE))).toBe("dddddddd");

    const hanging = await setUp({ sourceTimeoutMs: 5000, hydrated: [{ start: 1, end: 2 }] });
    hanging.source.hold("extents");
    expect(letters(await hanging.device.extents(0, SIZE))).toBe("dhdddddd");
    expect(hanging.clock.now()).toBe(5000);
  });

  test("never calls zeros what is data by then: where the truth is, is decided before anybody is asked", async () => {
    const { device, destination } = await setUp();
    await device.write(0, noise(REGION, 3));
    destination.hold("extents");
    const asking = device.extents(0, 2 * REGION);
    await whenIdle();
    // Region 1, a hole of the destination, is hydrated while the destination answers, and was data in the source.
    await device.write(REGION, noise(REGION, 4));
    destination.release("extents");
    expect(letters(await asking)).toBe("dd");
  });

  test("asks each device once, whatever the regions", async () => {
    const { device, metadata, destination, source } = await setUp();
    for (const start of [1, 3, 5]) metadata.markHydrated({ start, end: start + 1 });
    const asked: string[] = [];
    for (const [name, one] of Object.entries({ source, destination })) {
      const extents = one.extents.bind(one);
      one.extents = (offset, length) => {
        asked.push(`${name} ${offset / REGION}+${length / REGION}`);
        return extents(offset, length);
      };
    }
    expect(letters(await device.extents(0, SIZE))).toBe("dhhhdhhh");
    expect(asked).toEqual(["destination 1+5", "source 0+8"]);
  });
});

describe(`The context ${HYDRATED_CONTEXT}`, () => {
  test("tells hydrated regions, those on their way, and the others", async () => {
    const { device, metadata, regions } = await setUp();
    metadata.markHydrated({ start: 1, end: 3 });
    regions.begin({ start: 3, end: 4 });
    regions.begin({ start: 4, end: 6 });
    const [context] = device.contexts;
    expect(context?.name).toBe("x-clone:hydrated");
    const runs = (offset: number, length: number, most = 100) =>
      context?.runs(offset, length, most).map((run) => [run.length, run.flags]);
    expect(runs(0, SIZE)).toEqual([
      [REGION, 0],
      [2 * REGION, 1],
      [3 * REGION, 2], // one run, though two hydrations
      [2 * REGION, 0],
    ]);
    expect(runs(REGION + 10, 2 * REGION)).toEqual([
      [2 * REGION - 10, 1],
      [10, 2],
    ]);
    expect(runs(0, SIZE, 2)).toEqual([
      [REGION, 0],
      [2 * REGION, 1],
    ]);
    expect(runs(0, 0)).toEqual([]);
  });
});

describe("CloneDevice.hint()", () => {
  test("passes on what is not hydrated, from the first such region on, and returns at once", async () => {
    const { device, hints } = await setUp({ hydrated: [{ start: 0, end: 3 }] });
    device.hint(REGION, 4 * REGION + 1);
    device.hint(0, 3 * REGION);
    device.hint(5 * REGION, 0);
    device.hint(7 * REGION, REGION);
    expect(hints).toEqual(["asked 3-6", "asked 7-8"]);
    expect(device.stats.hints).toBe(4);
  });
});

describe("CloneDevice.becomeLinear()", () => {
  test("waits until everything is hydrated, that is on disk, and nothing is under way", async () => {
    const { device, commits, metadata } = await setUp();
    expect(device.becomeLinear()).toBe(false);
    await device.zero(0, SIZE);
    expect(metadata.hydratedCount).toBe(8);
    expect(device.becomeLinear()).toBe(false); // judged by what is committed
    await commits.commit();
    expect([device.isLinear, device.becomeLinear(), device.isLinear, device.becomeLinear()]).toEqual([
      false,
      true,
      true,
      true,
    ]);
  });

  test("leaves a device that is the destination, and asks nobody else any more", async () => {
    const { device, source, destination, hints, commits, regions, meter } = await setUp({ hydrateOnRead: "always" });
    await device.zero(0, SIZE, { fua: true });
    expect(device.becomeLinear()).toBe(true);
    source.hold("read", "extents");
    destination.log.length = 0;
    const bytes = noise(2 * REGION, 5);
    await device.write(100, bytes, { fua: true });
    expect(Buffer.compare(await bytesAt(device, 100, 2 * REGION), bytes)).toBe(0);
    await device.zero(0, 512, { mayPunch: false });
    await device.zero(0, 512, { fast: true });
    await device.discard(REGION, REGION, { fua: true });
    await device.flush();
    expect(destination.log).toEqual([
      `write 100+${2 * REGION}`,
      "flush",
      `read 100+${2 * REGION}`,
      "zero 0+512",
      "zero 0+512",
      `zero ${REGION}+${REGION}`,
      "flush",
      "flush",
    ]);
    expect((await device.extents(0, SIZE)).reduce((sum, { length }) => sum + length, 0)).toBe(SIZE);
    expect(device.contexts[0]?.runs(10, 20, 5)).toEqual([{ length: 20, flags: 1 }]);
    device.hint(0, SIZE);
    expect(hints).toEqual([]);
    device.hydrateOnRead = "whole";
    expect(device.hydrateOnRead).toBe("never");
    expect([commits.complete, regions.hydratingCount, meter.busy]).toEqual([true, 0, 0]);
    await device.drain();
  });

  test("leaves requests that began before what they had, and tells when the last of them has ended", async () => {
    const size = 32 * 2 ** 20;
    const regionSize = 65536;
    const source = new HeldDevice(new MemoryDevice({ name: "source", size, content: noise(size, 1) }));
    const destination = new MemoryDevice({ name: "destination", size });
    const { device, metadata } = await makeClone({ size, regionSize, source, destination });
    source.hold("read");
    const buffer = new Uint8Array(size);
    let read = false;
    const reading = device.read(0, buffer).then(() => {
      read = true; // of more parts than are at work at once: it looks at the map again
    });
    await whenIdle();
    const after = noise(size, 3);
    await device.write(0, after, { fua: true });
    expect(device.becomeLinear()).toBe(true);
    let drained = false;
    const draining = device.drainLive().then(async () => {
      drained = true;
      expect(read).toBe(true);
      await metadata[Symbol.asyncDispose]();
    });
    await device.write(0, after.subarray(0, 512)); // who comes now does not wait, and is not waited for
    await whenIdle();
    expect(drained).toBe(false);
    source.release("read");
    await Promise.all([reading, draining]);
    // Each byte is as before or after the write, which it did not wait for.
    const before = noise(size, 1);
    const odd = buffer.findIndex((byte, at) => byte !== after[at] && byte !== before[at]);
    expect(odd).toBe(-1);
  });

  test("is no end of failing: a flush that fails is final, and writes are refused from then on", async () => {
    const bad = new FaultyDevice(new MemoryDevice({ name: "destination", size: SIZE }), {});
    const { device, commits } = await setUp({ destination: bad });
    await device.zero(0, SIZE, { fua: true });
    expect(device.becomeLinear()).toBe(true);
    bad.faults = { failFlush: () => true };
    await expect(device.flush()).rejects.toThrow("EIO");
    bad.faults = {};
    await expect(device.flush()).rejects.toBe(commits.failure);
    await expect(device.write(0, Buffer.alloc(1))).rejects.toBe(commits.failure);
    expect(() => device.tryWrite(0, Buffer.alloc(1))).toThrow("EIO");
    await bytesAt(device, 0, 100);
  });

  test("does not disturb a request that is under way", async () => {
    const { device, destination } = await setUp();
    await device.zero(0, SIZE, { fua: true });
    destination.hold("write", "read");
    const writing = device.write(100, Buffer.alloc(REGION, 7));
    const reading = bytesAt(device, 0, 100);
    await whenIdle();
    expect(device.becomeLinear()).toBe(true);
    destination.release("write");
    destination.release("read");
    await Promise.all([writing, reading]);
    expect(await bytesAt(device, 100, REGION)).toEqual(Buffer.alloc(REGION, 7));
  });
});

describe("CloneDevice.drain()", () => {
  test("waits for requests, for copies that they waited for, and for what is written behind; and refuses nothing", async () => {
    const { device, source, destination, regions } = await setUp({ hydrateOnRead: "whole" });
    destination.hold("write");
    const writing = device.write(10, Buffer.alloc(10));
    await bytesAt(device, 4 * REGION, REGION);
    let drained = false;
    const draining = device.drain().then(() => {
      drained = true;
    });
    await whenIdle();
    expect([drained, device.inFlight]).toEqual([false, 3]); // the write, its copy, the write behind
    await bytesAt(device, 6 * REGION, 10);
    destination.release("write");
    await draining;
    await writing;
    expect([device.inFlight, regions.hydratingCount]).toEqual([0, 0]);
    expect(source.log.length).toBeGreaterThan(0);
    await device.drain();
  });

  test("disposing of a clone device ends its timers, and may be done twice", async () => {
    const { device, clock, source } = await setUp({ sourceTimeoutMs: 5000 });
    source.hold("read");
    void bytesAt(device, 0, 10).catch(() => {});
    expect(clock.sleeping).toBe(1);
    await device[Symbol.asyncDispose]();
    await device[Symbol.asyncDispose]();
    await whenIdle();
    expect(clock.sleeping).toBe(0);
  });
});

// Regions that are hydrated by an immediate read: in the same breath where the destination takes them, behind it otherwise.
import { describe, expect, test } from "vitest";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { bytesAt, drawing, makeClone } from "../../support/clone-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { noise } from "../../support/layout.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 16 * REGION;
const OLD = noise(SIZE, 1);

const destinationMemory = () => new MemoryDevice({ name: "destination", size: SIZE, content: noise(SIZE, 2) });

/** Takes nothing at once, and looks at what it is to write only when its caller has gone on. */
class LateDevice extends FilterDevice {
  override tryWrite(): boolean {
    return false;
  }

  override async write(offset: number, data: Uint8Array): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    await super.write(offset, data);
  }
}

describe("CloneDevice.tryRead() of whole unhydrated regions that are to be kept", () => {
  test("hydrates them before it returns, where the destination takes them at once", async () => {
    const destination = destinationMemory();
    const source = new MemoryDevice({ name: "source", size: SIZE, content: OLD });
    const { device, regions } = await makeClone({ source, destination, hydrateOnRead: "whole" });
    const buffer = Buffer.alloc(3 * REGION);
    expect(device.tryRead(2 * REGION, buffer)).toBe(true);
    expect(drawing({ regions })).toBe("..###...........");
    expect(Buffer.compare(buffer, OLD.subarray(2 * REGION, 5 * REGION))).toBe(0);
    buffer.fill(0xee);
    expect(
      Buffer.compare(await bytesAt(destination, 2 * REGION, 3 * REGION), OLD.subarray(2 * REGION, 5 * REGION)),
    ).toBe(0);
    expect(device.stats).toMatchObject({ hydratedOnReadBytes: 3 * REGION, writeBehindBytes: 0 });
    expect(device.inFlight).toBe(0);
  });

  test("hydrates them soon, where it does not, from bytes that are not the reader's", async () => {
    const memory = destinationMemory();
    const destination = new LateDevice(memory);
    const source = new MemoryDevice({ name: "source", size: SIZE, content: OLD });
    const { device, regions } = await makeClone({ source, destination, hydrateOnRead: "always" });
    const buffer = Buffer.alloc(2 * REGION);
    expect(device.tryRead(14 * REGION, buffer)).toBe(true);
    buffer.fill(0xee);
    expect(drawing({ regions })).not.toContain("#");
    await device.drain();
    await whenIdle();
    expect(drawing({ regions })).toBe("..............##");
    expect(Buffer.compare(await bytesAt(memory, 14 * REGION, 2 * REGION), OLD.subarray(14 * REGION))).toBe(0);
  });

  test("makes zeros of zeros instead of writing them", async () => {
    const destination = destinationMemory();
    const content = Buffer.from(OLD).fill(0, REGION, 2 * REGION);
    const source = new MemoryDevice({ name: "source", size: SIZE, content });
    const { device, regions } = await makeClone({ source, destination, hydrateOnRead: "whole" });
    expect(device.tryRead(0, Buffer.alloc(3 * REGION))).toBe(true);
    await device.drain();
    expect(drawing({ regions })).toBe("###.............");
    expect(await destination.extents(0, 3 * REGION)).toEqual([
      { offset: 0, length: REGION, hole: false, zero: false },
      { offset: REGION, length: REGION, hole: true, zero: true },
      { offset: 2 * REGION, length: REGION, hole: false, zero: false },
    ]);
    expect(Buffer.compare(await bytesAt(destination, 0, 3 * REGION), content.subarray(0, 3 * REGION))).toBe(0);
  });

  test("leaves them unhydrated where the destination fails, and answers all the same", async () => {
    const destination = new FaultyDevice(destinationMemory(), { failWrite: () => true, errno: "ENOSPC" });
    const source = new MemoryDevice({ name: "source", size: SIZE, content: OLD });
    const { device, regions } = await makeClone({ source, destination, hydrateOnRead: "whole" });
    const buffer = Buffer.alloc(REGION);
    expect(device.tryRead(0, buffer)).toBe(true);
    expect(Buffer.compare(buffer, OLD.subarray(0, REGION))).toBe(0);
    await device.drain();
    expect(drawing({ regions })).toBe("................");
    expect(device.stats).toMatchObject({ writeBehindFailures: 1, writeBehindBytes: 0, hydratedOnReadBytes: 0 });
  });

  test("leaves regions that are being hydrated to read()", async () => {
    const source = new MemoryDevice({ name: "source", size: SIZE, content: OLD });
    const { device, regions } = await makeClone({ source, destination: destinationMemory(), hydrateOnRead: "whole" });
    const hydration = regions.begin({ start: 1, end: 2 });
    expect(device.tryRead(0, Buffer.alloc(2 * REGION))).toBe(false);
    expect(device.tryRead(2 * REGION, Buffer.alloc(REGION))).toBe(true);
    regions.fail(hydration);
    expect(device.tryRead(0, Buffer.alloc(2 * REGION))).toBe(true);
    expect(drawing({ regions })).toBe("###.............");
  });
});

import { describe, expect, test } from "vitest";
import { SharedLanes } from "../../../src/device/filters/shared-lanes.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { HeldDevice } from "../../support/held-device.ts";
import { noise } from "../../support/layout.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const SIZE = 65536;
const CONTENT = noise(SIZE, 1);

function setUp(total: number) {
  const faulty = new FaultyDevice(new MemoryDevice({ name: "source", size: SIZE, content: CONTENT }), {});
  const held = new HeldDevice(faulty);
  return { faulty, held, lanes: new SharedLanes(held, { total }) };
}

const offsets = (held: HeldDevice) => held.waiting.map(({ offset }) => offset);

describe("SharedLanes", () => {
  test("bound what each lane asks at once, and what all ask together", async () => {
    const { held, lanes } = setUp(3);
    const [first, second] = [lanes.lane(2), lanes.lane(8)];
    held.hold("read", "extents");
    const reads = [0, 1, 2].map((offset) => first.read(offset, Buffer.alloc(1)));
    await whenIdle();
    expect(offsets(held)).toEqual([0, 1]);
    const others = [10, 11].map((offset) => second.read(offset, Buffer.alloc(1)));
    const asking = second.extents(12, 1);
    await whenIdle();
    expect(offsets(held)).toEqual([0, 1, 10]);
    held.release("read");
    await Promise.all([...reads, ...others]);
    held.release("extents");
    expect(await asking).toHaveLength(1);
  });

  test("give a place that becomes free to the lane made first, and within a lane to who came first", async () => {
    const { held, lanes } = setUp(1);
    const [clients, background] = [lanes.lane(4), lanes.lane(4)];
    held.hold("read");
    const reads = [background.read(0, Buffer.alloc(1))];
    reads.push(background.read(1, Buffer.alloc(1)), background.read(2, Buffer.alloc(1)));
    reads.push(clients.read(10, Buffer.alloc(1)), clients.read(11, Buffer.alloc(1)));
    await whenIdle();
    held.release("read");
    await Promise.all(reads);
    expect(held.log.map((entry) => entry.split("+")[0])).toEqual(["read 0", "read 10", "read 11", "read 1", "read 2"]);
  });

  test("free a place when a question fails, and pass on its answer", async () => {
    const { faulty, lanes } = setUp(1);
    const lane = lanes.lane(1);
    faulty.faults = { failRead: [0] };
    const buffer = Buffer.alloc(100);
    const results = await Promise.allSettled([lane.read(0, Buffer.alloc(100)), lane.read(5, buffer)]);
    expect(results.map(({ status }) => status)).toEqual(["rejected", "fulfilled"]);
    expect(Buffer.compare(buffer, CONTENT.subarray(5, 105))).toBe(0);
  });

  test("hold up nothing that is served at once, nor a reflink that finds its way through them", () => {
    const memory = new MemoryDevice({ size: SIZE, content: CONTENT });
    const lane = new SharedLanes(memory, { total: 0 }).lane(0);
    expect(lane.tryRead?.(0, Buffer.alloc(10))).toBe(true);
    expect("mapRange" in lane).toBe(true);
  });
});

// Two disks in memory, and a log of what is asked of the destination. What is found equal must be durable before it is told.
import { expect, test } from "vitest";
import { ChangedError, DeviceError } from "../../../src/base/errors.ts";
import { Geometry } from "../../../src/base/geometry.ts";
import { equalRegions } from "../../../src/clone/compare-unknown.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { RecordingDevice } from "../../support/recording-device.ts";

const REGIONS = 8;
const geometry = new Geometry({ size: REGIONS * 4096, regionSize: 4096 });
const { signal } = new AbortController();

/** Disks that differ in the regions named. */
async function sidesWith(different: number[]) {
  const [source, destination] = [new MemoryDevice({ size: geometry.size }), new MemoryDevice({ size: geometry.size })];
  for (const region of different) await destination.write(region * 4096, Buffer.from("other"));
  return { geometry, source, destination: new RecordingDevice(destination), alignment: 4096 };
}

test("equalRegions() flushes the destination once, after it has read all of it", async () => {
  const sides = await sidesWith([2, 3]);
  const equal = await equalRegions(sides, [{ start: 1, end: 7 }], { signal });
  expect(equal).toEqual([
    { start: 1, end: 2 },
    { start: 4, end: 7 },
  ]);
  const { log } = sides.destination;
  expect(log.filter((entry) => entry === "flush")).toEqual(["flush"]);
  expect(log.at(-1)).toBe("flush");
});

test("equalRegions() vouches for nothing where the destination cannot be flushed", async () => {
  const sides = await sidesWith([2]);
  const destination = new FaultyDevice(sides.destination, { failFlush: [0] });
  await expect(equalRegions({ ...sides, destination }, [{ start: 0, end: 4 }], { signal })).rejects.toThrow(
    DeviceError,
  );
});

test("equalRegions() needs no flush where nothing is equal", async () => {
  const sides = await sidesWith([4]);
  expect(await equalRegions(sides, [{ start: 4, end: 5 }], { signal })).toEqual([]);
  expect(sides.destination.log).not.toContain("flush");
});

test.each([
  [
    "has changed",
    new ChangedError('Cannot read "http": another entity tag', { difference: "its entity tag is another" }),
  ],
  ["is another one", new DeviceError('Cannot read "disk.img": ESTALE', { errno: "ESTALE" })],
])("equalRegions() ends with the error of a source that %s", async (_, error) => {
  const sides = await sidesWith([2]);
  const source = new MemoryDevice({ size: geometry.size });
  source.read = async () => {
    throw error;
  };
  await expect(equalRegions({ ...sides, source }, [{ start: 0, end: 4 }], { signal })).rejects.toBe(error);
  expect(sides.destination.log).not.toContain("flush");
});

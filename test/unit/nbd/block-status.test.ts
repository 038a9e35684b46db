import { expect, test } from "vitest";
import type { Extent } from "../../../src/device/block-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import type { ServedDevice } from "../../../src/device/served-device.ts";
import { blockStatus } from "../../../src/nbd/block-status.ts";

const GIB = 2 ** 30;

/** A device of data and holes in turn, `runLength` bytes each, which counts the extents that it tells. */
function striped(runLength: number) {
  const told = { extents: 0, questions: 0 };
  const memory = new MemoryDevice({ size: 4096 });
  const extents = async (offset: number, length: number): Promise<Extent[]> => {
    told.questions++;
    const answer: Extent[] = [];
    for (let at = offset; at < offset + length; ) {
      const run = Math.floor(at / runLength);
      const next = Math.min(offset + length, (run + 1) * runLength);
      answer.push({ offset: at, length: next - at, hole: run % 2 === 1, zero: run % 2 === 1 });
      at = next;
    }
    told.extents += answer.length;
    return answer;
  };
  return { told, device: Object.assign(memory, { size: 4 * GIB, extents }) as unknown as ServedDevice };
}

const allocation = [{ id: 1, context: undefined }] as never;

test("blockStatus() for one run does not look for the thousands behind it", async () => {
  const { told, device } = striped(4096);
  const [status] = await blockStatus(device, allocation, { offset: 2048, length: 2 * GIB, one: true });
  expect(status?.runs).toEqual([{ length: 2048, flags: 0 }]);
  expect(told.extents).toBeLessThanOrEqual(65);
});

test("blockStatus() for one run tells all of a long one, in few questions", async () => {
  const { told, device } = striped(2 * GIB);
  const [status] = await blockStatus(device, allocation, { offset: 2 * GIB, length: GIB, one: true });
  expect(status?.runs).toEqual([{ length: GIB / 2, flags: 3 }]); // as much as one request is answered for
  expect(told.questions).toBeLessThanOrEqual(13);
});

test("blockStatus() tells the runs of any range in order, each whole, wherever the questions meet", async () => {
  const { device } = striped(100_000);
  const [status] = await blockStatus(device, allocation, { offset: 50_000, length: 3_000_000, one: false });
  const lengths = (status?.runs ?? []).map(({ length }) => length);
  expect(lengths).toEqual([50_000, ...Array.from({ length: 29 }, () => 100_000), 50_000]);
  expect((status?.runs ?? []).map(({ flags }) => flags)).toEqual(lengths.map((_, index) => (index % 2 === 0 ? 0 : 3)));
});

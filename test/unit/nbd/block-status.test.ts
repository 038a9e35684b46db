// What NBD_CMD_BLOCK_STATUS may answer: at least one run, none empty, no two neighbours alike, together no longer than asked.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Extent } from "../../../src/device/block-device.ts";
import { blockStatus, statusCost } from "../../../src/nbd/block-status.ts";
import { ServedMemory } from "../../support/served-devices.ts";

/** A device of these extents, from 0 on. */
function deviceOf(extents: Omit<Extent, "offset">[]) {
  let offset = 0;
  const all = extents.map((extent) => {
    offset += extent.length;
    return { ...extent, offset: offset - extent.length };
  });
  const asked: [number, number][] = [];
  const device = Object.assign(new ServedMemory(4096), {
    async extents(start: number, length: number): Promise<Extent[]> {
      asked.push([start, length]);
      return all.flatMap(({ offset: from, length: size, hole, zero }) => {
        const [first, end] = [Math.max(start, from), Math.min(start + length, from + size)];
        return first < end ? [{ offset: first, length: end - first, hole, zero }] : [];
      });
    },
  });
  return { device, all, asked };
}

const base = [{ id: 1, name: "base:allocation", context: undefined }];
const extent = fc.record({ length: fc.integer({ min: 1, max: 9999 }), hole: fc.boolean(), zero: fc.boolean() });

describe("blockStatus()", () => {
  test("tells of every byte what the device's extents tell, in as few runs as there can be", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(extent, { minLength: 1, maxLength: 20 }),
        fc.nat(),
        fc.nat(),
        fc.boolean(),
        async (extents, a, b, one) => {
          const { device, all } = deviceOf(extents);
          const size = extents.reduce((sum, { length }) => sum + length, 0);
          const offset = a % size;
          const length = 1 + (b % (size - offset));
          const [status] = await blockStatus(device, base, { offset, length, one });
          const runs = status?.runs ?? [];
          expect(runs.length).toBeGreaterThan(0);
          if (one) expect(runs.length).toBe(1);
          let at = offset;
          for (const [index, { length: size, flags }] of runs.entries()) {
            expect(size).toBeGreaterThan(0);
            expect(flags).not.toBe(runs[index - 1]?.flags);
            for (const byte of [at, at + size - 1]) {
              const found = all.find(({ offset, length }) => byte >= offset && byte < offset + length);
              expect(flags).toBe((found?.hole ? 1 : 0) + (found?.zero ? 2 : 0));
            }
            at += size;
          }
          expect(at).toBeLessThanOrEqual(offset + length);
          if (!one) expect(at).toBe(offset + length);
        },
      ),
    );
  });

  test("asks the device for no more than 512 MiB at once, and answers no more than 8192 runs", async () => {
    const { device, asked } = deviceOf([{ length: 2 ** 32, hole: false, zero: false }]);
    const request = { offset: 4096, length: 2 ** 31, one: false };
    expect(await blockStatus(device, base, request)).toEqual([{ id: 1, runs: [{ length: 2 ** 29, flags: 0 }] }]);
    expect(asked).toEqual([[4096, 2 ** 29]]);
    expect(statusCost(2 ** 31)).toBe(statusCost(2 ** 29));
    const many = deviceOf(
      Array.from({ length: 20_000 }, (_, index) => ({ length: 512, hole: index % 2 === 0, zero: false })),
    );
    const [status] = await blockStatus(many.device, base, { offset: 0, length: 20_000 * 512, one: false });
    expect(status?.runs.length).toBe(8192);
  });

  test("asks a context for no more runs than will be told", async () => {
    const asked: number[][] = [];
    const runs = (...args: [number, number, number]) => {
      asked.push(args);
      return [{ length: 512, flags: 7 }];
    };
    const contexts = [{ id: 2, name: "x-clone:hydrated", context: { name: "x-clone:hydrated", runs } }];
    const { device } = deviceOf([]);
    const request = { offset: 512, length: 2 ** 31 };
    expect(await blockStatus(device, contexts, { ...request, one: true })).toEqual([
      { id: 2, runs: [{ length: 512, flags: 7 }] },
    ]);
    await blockStatus(device, contexts, { ...request, one: false });
    expect(asked).toEqual([
      [512, 2 ** 29, 1],
      [512, 2 ** 29, 8192],
    ]);
  });
});

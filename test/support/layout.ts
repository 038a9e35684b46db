/** Contents of devices made of runs: data, zeros that were written, and holes. */
import fc from "fast-check";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { seededRandom } from "./power-loss-device.ts";

/** A run of bytes of one kind; `length` in bytes. */
export interface Run {
  kind: "data" | "zero" | "hole";
  length: number;
}

/** Random runs, of whole sectors and mostly of whole pages. */
export function arbitraryRuns(maxRuns = 12): fc.Arbitrary<Run[]> {
  return fc.array(
    fc.record({
      kind: fc.constantFrom<Run["kind"]>("data", "zero", "hole"),
      length: fc.oneof(
        { weight: 3, arbitrary: fc.integer({ min: 1, max: 40 }).map((pages) => pages * 4096) },
        { weight: 1, arbitrary: fc.integer({ min: 1, max: 30 }).map((sectors) => sectors * 512) },
      ),
    }),
    { minLength: 1, maxLength: maxRuns },
  );
}

/** Bytes none of which is zero, by seed. */
export function noise(length: number, seed: number): Buffer {
  const random = seededRandom(seed);
  return Buffer.from(Array.from({ length }, () => 1 + Math.floor(random() * 255)));
}

/** A device with the runs from byte 0 on, cut at its end; behind them a hole. */
export async function deviceOf(runs: readonly Run[], size: number, seed: number, name?: string): Promise<MemoryDevice> {
  const device = new MemoryDevice({ size, ...(name !== undefined && { name }) });
  const data = noise(4096, seed);
  let offset = 0;
  for (const { kind, length } of runs) {
    const end = Math.min(size, offset + length);
    for (; kind !== "hole" && offset < end; offset = Math.min(end, offset + data.length)) {
      const part = data.subarray(0, end - offset);
      await device.write(offset, kind === "data" ? part : Buffer.alloc(part.length));
    }
    offset = Math.max(offset, end);
  }
  return device;
}

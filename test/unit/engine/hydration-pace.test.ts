import { expect, test } from "vitest";
import { HydrationPace, type PaceParts } from "../../../src/engine/hydration-pace.ts";

/** The automatic threshold, in regions, where so many copies of such a length are to be in flight. */
function thresholdOf({ regionSize, preferredLength }: { regionSize: number; preferredLength: number }): number {
  const parts = { geometry: { regionSize }, copier: { preferredLength }, copiesInFlight: 16 } as PaceParts;
  return new HydrationPace(parts, { threshold: null, batchSize: null }).threshold;
}

// More regions than that would all be cut into the small pieces of a window that has not grown yet.
test("HydrationPace begins no more regions than the pieces in flight fill, and one", () => {
  expect(thresholdOf({ regionSize: 65_536, preferredLength: 16_384 })).toBe(5);
  expect(thresholdOf({ regionSize: 2 ** 20, preferredLength: 8192 })).toBe(2);
});

test("HydrationPace begins as many batches as there are copies in flight where pieces are whole regions", () => {
  expect(thresholdOf({ regionSize: 4096, preferredLength: 65_536 })).toBe(256);
  expect(thresholdOf({ regionSize: 65_536, preferredLength: 65_536 })).toBe(16);
});

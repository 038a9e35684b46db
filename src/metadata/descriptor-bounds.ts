/** What the settings of a hydration can be, wherever they come from: a descriptor, or a client of the control socket. */
import type { TunedSettings } from "./descriptor-json.ts";

/** The largest count, as dm-clone's: it reads its arguments as u32. */
const LARGEST_COUNT = 2 ** 32 - 1;

/** Whole numbers, both bounds included. A rate of 0 would never end; a threshold of 0 is a pause, as dm-clone's. */
export const TUNED_BOUNDS: Readonly<Record<keyof TunedSettings, { least: number; most: number }>> = {
  rate: { least: 1, most: Number.MAX_SAFE_INTEGER },
  minRate: { least: 0, most: Number.MAX_SAFE_INTEGER },
  threshold: { least: 0, most: LARGEST_COUNT },
  batchSize: { least: 1, most: LARGEST_COUNT },
};

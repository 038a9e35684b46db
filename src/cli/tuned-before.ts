/** Commands that hydrate go on as `clone tune` has set it, and say so. */
import type { Clone } from "../clone/clone.ts";
import type { TunedSettings } from "../metadata/descriptor.ts";
import type { CliContext } from "./command.ts";
import { formatRate } from "./live-rows.ts";

/** The request with what was tuned before, and no option names this time. */
export async function asTunedBefore<Request extends { [Name in keyof TunedSettings]?: number | null }>(
  clone: Clone,
  request: Request,
  options: {
    rate?: number | null | undefined;
    threshold?: number | null | undefined;
    "batch-size"?: number | null | undefined;
    "min-rate"?: number | null | undefined;
  },
  { terminal }: CliContext,
): Promise<Request> {
  const { tunedBefore } = await import("../clone/tuned.ts");
  const { rate, threshold, "batch-size": batchSize, "min-rate": minRate } = options;
  const { minRate: floor, ...rest } = tunedBefore(clone, { rate, threshold, batchSize, minRate });
  // There are clients to yield to only where there is a floor to ask for.
  const tuned: TunedSettings = "minRate" in request && floor !== undefined ? { ...rest, minRate: floor } : rest;
  const words = Object.entries(tuned).map(([name, value]) => WORDS[name as keyof TunedSettings](value));
  if (words.length > 0) terminal.note(`Hydrating as it was tuned before: ${words.join(", ")}`);
  return { ...request, ...tuned };
}

const WORDS: Record<keyof TunedSettings, (value: number) => string> = {
  rate: (value) => `rate ${formatRate(value)}`,
  minRate: (value) => `min rate ${formatRate(value)}`,
  threshold: (value) => `threshold ${value}`,
  batchSize: (value) => `batch size ${value}`,
};

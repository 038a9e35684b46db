/** The messages of dm-clone (`dmsetup message`), as its `clone_message` reads them. */
import { UsageError } from "../base/errors.ts";
import type { Tuning } from "../control/control-target.ts";

/** The largest argument: the kernel reads a u32. */
const LARGEST_ARGUMENT = 2 ** 32 - 1;

/**
 * What a message changes. Its first word may be in capitals or not; words after `enable_hydration` and `disable_hydration`
 * are ignored, as in the kernel. `auto` is ours.
 * @throws {UsageError} where the kernel says EINVAL
 */
export function parseDmMessage(words: readonly string[]): Tuning {
  const [name = ""] = words;
  switch (name.toLowerCase()) {
    case "enable_hydration":
      return { paused: false };
    case "disable_hydration":
      return { paused: true };
    case "hydration_threshold":
      return { threshold: argumentOf(words) };
    case "hydration_batch_size": {
      const batchSize = argumentOf(words);
      return { batchSize: batchSize === 0 ? 1 : batchSize }; // 0 and 1 are the same there
    }
    default:
      throw new UsageError(`Cannot understand the message "${words.join(" ")}": there is no such one`, {
        hint: "There are enable_hydration, disable_hydration, hydration_threshold N and hydration_batch_size N.",
      });
  }
}

/** A whole number as the kernel takes it, or null for `auto`. */
function argumentOf([name, value, ...more]: readonly string[]): number | null {
  if (value === undefined || more.length > 0) {
    throw new UsageError(`Cannot understand the message ${name}: it takes one number, and nothing else`);
  }
  if (value === "auto") return null;
  const number = /^\d+$/.test(value) ? Number(value) : Number.NaN;
  if (number <= LARGEST_ARGUMENT) return number;
  throw new UsageError(
    `Cannot understand the message ${name}: "${value}" is not a number from 0 to ${LARGEST_ARGUMENT}`,
  );
}

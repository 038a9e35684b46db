import { CloneError } from "../base/errors.ts";
import type { AttachedSource } from "./clone.ts";

/**
 * What comes of reading a source that has not changed by the end: else it may be of what it held before and of what it holds now.
 * A change explains an error better than the error does.
 * @throws {CloneError} where the source has changed since it was opened
 * @throws what `read` throws
 */
export async function ofUnchangedSource<T>(source: AttachedSource, read: () => Promise<T>): Promise<T> {
  const result = await read().catch(async (error: unknown) => {
    if (!(error instanceof CloneError)) throw error; // interrupted, above all: then nobody is to wait for another answer
    await refuseChanged(source);
    throw error;
  });
  await refuseChanged(source);
  return result;
}

async function refuseChanged(source: AttachedSource): Promise<void> {
  const change = await source.change();
  if (change === undefined) return;
  throw new CloneError(
    "failed",
    `Cannot compare with "${source.device.name}": it changed while it was read, ${change}`,
    {
      hint: "Compare when nobody writes to it, or with a snapshot of it.",
    },
  );
}

import { CloneError } from "../base/errors.ts";
import { statDescriptor } from "../device/file-identity.ts";
import type { OpenedDestination } from "./open-devices.ts";

/**
 * Part of a commit's guard: a destination file that was removed, replaced or cut off while it is open still takes every
 * write, and none of it would be found again.
 * @param exactSize bytes that it must have at least
 * @throws {CloneError} where that has happened
 */
export async function refuseLostDestination({ file }: OpenedDestination, exactSize: number): Promise<void> {
  if (file?.kind !== "file") return;
  const { nlink, size } = await statDescriptor(file.fd, { bigint: true });
  const refuse = (what: string): never => {
    throw new CloneError("failed", `Cannot go on with "${file.path}": somebody else has ${what} it`, {
      hint: "What was committed before is still recorded, though it may be gone.",
    });
  };
  if (nlink === 0n) refuse("removed or replaced");
  if (size < BigInt(exactSize)) refuse("shortened");
}

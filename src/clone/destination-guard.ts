import { CloneError } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";
import { statDescriptor } from "../device/file-identity.ts";

/**
 * Part of a commit's guard: a destination file that was removed, replaced or cut off while it is open still takes every
 * write, and none of it would be found again.
 * @param exactSize bytes that it must have at least
 * @throws {CloneError} where that has happened
 */
export async function refuseLostDestination(destination: FileDevice, exactSize: number): Promise<void> {
  if (destination.kind === "block") return;
  const { nlink, size } = await statDescriptor(destination.fd, { bigint: true });
  const refuse = (what: string): never => {
    throw new CloneError("failed", `Cannot go on with "${destination.path}": somebody else has ${what} it`, {
      hint: "What was committed before is still recorded, though it may be gone.",
    });
  };
  if (nlink === 0n) refuse("removed or replaced");
  if (size < BigInt(exactSize)) refuse("shortened");
}

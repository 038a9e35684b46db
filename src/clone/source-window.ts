/** How much is asked of a source at once: of one of this machine what its disks like, of one far away what the way to it holds. */
import type { Clock } from "../base/clock.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { TransferWindow } from "../engine/transfer-window.ts";
import type { AttachedSource } from "./clone.ts";

/**
 * The window of a source that costs a round trip, with the view of it that everything must be read through; undefined for
 * one of this machine, where threads are the bound.
 */
export function windowOf(
  source: AttachedSource | undefined,
  clock: Clock,
): { window: TransferWindow; view: BlockDevice } | undefined {
  if (source?.remote === undefined) return undefined;
  const { blockSize, mostAtOnce, requestsAtOnce = Infinity } = source.remote;
  const window = new TransferWindow({ clock, blockSize, mostAtOnce, requestsAtOnce });
  return { window, view: window.watch(source.view) };
}

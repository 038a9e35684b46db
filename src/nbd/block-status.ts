/** What NBD_CMD_BLOCK_STATUS answers: the runs of every context that a client selected. */
import type { Extent } from "../device/block-device.ts";
import type { ServedDevice } from "../device/served-device.ts";
import type { SelectedContext } from "./meta-contexts.ts";
import { AllocationFlag } from "./protocol.ts";
import type { Descriptor } from "./transmission-codec.ts";

/** Most bytes that one request is answered for: an answer may be short, and a device's map may be long. */
const STATUS_WINDOW = 512 * 2 ** 20;
/** Most runs of one context in a reply. (Clients take 2^20; this many are 64 KiB.) */
const MAX_RUNS = 8192;

/**
 * Bytes that a device is asked about first, then twice as much each time: a client that wants one run, as qemu always does,
 * should not have the thousands behind it looked for.
 */
const FIRST_QUESTION = 256 * 1024;

/** What the list of a device's extents may take for each 4096 bytes of the range, bytes: one, in the worst case. */
const BYTES_PER_EXTENT = 64;

/** Most bytes of memory that the answer to a request for `length` bytes takes while it is made. */
export function statusCost(length: number): number {
  return Math.ceil(Math.min(length, STATUS_WINDOW) / 4096) * BYTES_PER_EXTENT;
}

/** A context's id and its runs, at least one, from the request's offset on, together no longer than the request. */
export interface ContextStatus {
  id: number;
  runs: readonly Descriptor[];
}

/** Asks the device. `length` is more than 0; with `one` no context has more than one run. @throws {DeviceError} */
export async function blockStatus(
  device: ServedDevice,
  contexts: readonly SelectedContext[],
  { offset, length, one }: { offset: number; length: number; one: boolean },
): Promise<ContextStatus[]> {
  const window = Math.min(length, STATUS_WINDOW);
  const most = one ? 1 : MAX_RUNS;
  const statuses: ContextStatus[] = [];
  for (const { id, context } of contexts) {
    const runs =
      context?.runs(offset, window, most) ?? (await allocationRuns(device, { offset, length: window, most }));
    statuses.push({ id, runs });
  }
  return statuses;
}

/** Extents as `base:allocation` tells them, neighbours that are alike made one, until there are `most` whole ones. */
async function allocationRuns(
  device: ServedDevice,
  { offset, length, most }: { offset: number; length: number; most: number },
): Promise<Descriptor[]> {
  const runs: Descriptor[] = [];
  const end = offset + length;
  let question = FIRST_QUESTION;
  for (let position = offset; position < end; position += question / 2) {
    const extents = await device.extents(position, Math.min(question, end - position));
    for (const extent of extents) if (!append(runs, extent, most)) return runs;
    question *= 2;
  }
  return runs;
}

/** Adds an extent; false where there is no room for it. */
function append(runs: Descriptor[], { length, hole, zero }: Extent, most: number): boolean {
  const flags = (hole ? AllocationFlag.hole : 0) + (zero ? AllocationFlag.zero : 0);
  const last = runs.at(-1);
  if (last !== undefined && last.flags === flags) last.length += length;
  else if (runs.length === most) return false;
  else runs.push({ length, flags });
  return true;
}

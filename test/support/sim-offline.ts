/** Offline hydration in a simulated machine: the engine's own parts, put together as `clone/hydrate-clone` does. */
import { HintQueue } from "../../src/engine/hint-queue.ts";
import type { HydrationPace } from "../../src/engine/hydration-pace.ts";
import { type HydrationOutcome, Hydrator } from "../../src/engine/hydrator.ts";
import { PeriodicCommits } from "../../src/engine/periodic-commits.ts";
import { RegionCopier } from "../../src/engine/region-copier.ts";
import type { Throttle } from "../../src/engine/throttle.ts";
import {
  type MachineDevices,
  type MachineOptions,
  type MachineParts,
  type Mutation,
  openParts,
} from "./sim-machine.ts";

/** A clone that can be hydrated. */
export interface OfflineMachine extends MachineDevices, Pick<MachineParts, "commits" | "regions" | "notebook"> {
  pace: HydrationPace;
  throttle: Throttle;
  /** Hydrates until all is done, or `signal` aborts. */
  run(signal: AbortSignal): Promise<HydrationOutcome>;
}

/** Opens the clone that is on the devices; nothing runs yet. */
export async function openOffline(
  devices: MachineDevices,
  options: MachineOptions,
  mutation: Mutation = {},
): Promise<OfflineMachine> {
  const { clock } = devices;
  const parts = await openParts(devices, options, mutation);
  const { geometry, halt, throttle, extents, copying, regions, commits, order } = parts;
  const copier = new RegionCopier({ ...copying, throttle, pieceLength: options.pieceLength });
  const hydrator = new Hydrator(
    { geometry, regions, copier, extents, commits, clock, halt, copiesInFlight: 4, hints: new HintQueue(order) },
    { ...options.settings, limit: null },
  );
  return {
    ...devices,
    notebook: parts.notebook,
    commits,
    regions,
    throttle,
    pace: hydrator.pace,
    async run(signal) {
      const periodic = new PeriodicCommits({ commits, clock, onFailure: (error) => halt.abort(error) });
      periodic.start();
      return await hydrator.run(signal).finally(() => periodic.stop());
    },
  };
}

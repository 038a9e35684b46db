/** A clone as clients see it is a BlockDevice like any other, however much of it is hydrated and however it was. */
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import type { HydrateOnRead } from "../../src/engine/clone-device.ts";
import { destinationOf, makeClone, type TestCloneOptions } from "../support/clone-device.ts";
import { noise } from "../support/layout.ts";
import { blockDeviceContract } from "./block-device.contract.ts";

/** More than this is not filled with old data, which would take memory. */
const MOST_DIRT = 2 ** 21;

function declare(name: string, options: (size: number) => TestCloneOptions, linear = false): void {
  blockDeviceContract({
    name: `CloneDevice, ${name}`,
    open: async (size) => {
      const regionSize = size > MOST_DIRT ? 2 ** 20 : 4096;
      const dirt = noise(Math.min(size, MOST_DIRT), 1);
      const clone = await makeClone({
        size,
        regionSize,
        source: destinationOf(new MemoryDevice({ name: "source", size }), size),
        destination: destinationOf(new MemoryDevice({ name: "destination", size, content: dirt }), size),
        ...options(size),
      });
      if (linear) {
        await clone.destination.zero(0, size);
        clone.metadata.markHydrated({ start: 0, end: clone.geometry.regionCount });
        await clone.commits.commit();
        if (!clone.device.becomeLinear()) throw new Error("it is not linear");
      }
      return new FilterDevice(clone.device);
    },
  });
}

for (const hydrateOnRead of ["never", "whole", "always"] satisfies HydrateOnRead[]) {
  declare(`unhydrated, of zeros, hydrated on read: ${hydrateOnRead}`, () => ({ hydrateOnRead }));
}
declare("without passing discards down", () => ({ discardPassdown: false }));
declare("linear", () => ({}), true);

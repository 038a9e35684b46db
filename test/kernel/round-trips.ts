/** The kinds of states that clones are handed over in, and the round trips: who has it first, and who ends it. */
import { expect } from "vitest";
import type { SeededRandom } from "../support/random.ts";
import type { KernelGuest } from "./kernel-guest.ts";
import { KernelSession, type KernelView } from "./kernel-session.ts";
import { type OurView, type RelayedClone, type Shape, upToFeatures } from "./relayed-clone.ts";
import { type CloneRequest, disjointWrites, type Implementation, randomRequests } from "./requests.ts";
import { CommitsAlike } from "./same-commits.ts";

/** Small, and each different in a way that matters. Sectors. */
export const SHAPES = {
  plain: { sectors: 16384, regionSectors: 8 },
  "odd size": { sectors: 16391, regionSectors: 64 },
  "odd size, least regions": { sectors: 8195, regionSectors: 8 },
  "one short region": { sectors: 1000, regionSectors: 1024 },
  "one whole region": { sectors: 1024, regionSectors: 1024 },
  "one more than a word": { sectors: 65 * 8, regionSectors: 8 },
  "large regions": { sectors: 20000, regionSectors: 2048 },
} as const;

/** As little metadata as works: allocation goes round it with every other commit. */
export const LITTLE_METADATA: Shape = { sectors: 16384, regionSectors: 8, metadataBlocks: 11 };

const REGIONS_PER_BLOCK = 509 * 64;
const TERABYTE = 2 ** 31;
/** Too large to be read whole: what is in them is looked at where something is. */
export const LARGE_SHAPES: Record<string, Shape> = {
  // 253 array blocks: the btree has a root and two leaves.
  "btree of two levels": {
    sectors: (252 * REGIONS_PER_BLOCK + 100) * 8 + 3,
    regionSectors: 8,
    islands: [0, 2 ** 30 - 4096, 126 * REGIONS_PER_BLOCK * 4096 - 8192, 252 * REGIONS_PER_BLOCK * 4096 - 4096],
    metadataBlocks: 1024,
  },
  "regions of 1 GiB": {
    sectors: 3 * 2 ** 21 + 100,
    regionSectors: 2 ** 21,
    islands: [3 * 2 ** 30],
    metadataBlocks: 64,
  },
  "beyond 2 TiB": {
    sectors: 3 * TERABYTE + 1,
    regionSectors: 2 ** 15,
    islands: [0, 2 * 2 ** 40 - 4096, 2 * 2 ** 40 + 2 ** 24, 3 * 2 ** 40 - 512],
    metadataBlocks: 256,
  },
};

/** What has been done to a clone before it is handed over. */
export const STATES = [
  "fresh",
  "half hydrated",
  "discarded",
  "written",
  "mixed",
  "full",
  "killed",
  "restored",
  "repaired",
  "repaired without a superblock",
] as const;
export type State = (typeof STATES)[number];
/** States of the kernel's making: it can neither restore nor repair, and killed-guest.campaign.ts kills it. */
export type KernelState = Exclude<State, (typeof OURS_ALONE)[number]>;
const OURS_ALONE = ["killed", "restored", "repaired", "repaired without a superblock"] as const;

export function isKernelState(state: State): state is KernelState {
  return !OURS_ALONE.some((each) => each === state);
}

const WRITES: readonly CloneRequest["kind"][] = ["write", "write", "fua", "zero", "flush"];
const ALL: readonly CloneRequest["kind"][] = ["write", "fua", "discard", "zero", "flush"];

/** One hand-over after the other, and what was found; the figures of the campaign. */
export class Relay {
  readonly #guest: KernelGuest;
  readonly #clone: RelayedClone;
  readonly #random: SeededRandom;
  /** States that one has left and the other has looked at. */
  states = 0;

  constructor(guest: KernelGuest, clone: RelayedClone, random: SeededRandom) {
    this.#guest = guest;
    this.#clone = clone;
    this.#random = random;
  }

  /** A state of our making, which the kernel goes on with; then we do. `ending` says who hydrates the rest. */
  async fromOurs(state: State, ending: Implementation): Promise<void> {
    await this.#clone.create();
    await this.#makeOurs(state);
    const ours = await this.#clone.inspect();
    await this.#inKernel(ours, async (session) => {
      if (ending === "kernel") await session.hydrate();
      else await this.#goOn(session);
    });
    await this.#look();
    if (ending === "ours") {
      await this.#clone.hydrate();
      await this.#inKernel(await this.#clone.inspect(), async () => {});
    }
    await this.#clone.verify();
    await this.#clone.finalize();
  }

  /** A state of the kernel's making, which we go on with; then the kernel does. */
  async fromKernel(state: KernelState, ending: Implementation): Promise<void> {
    await this.#clone.makeForKernel();
    const session = await KernelSession.attach(this.#guest, this.#clone);
    await session.open();
    await this.#makeKernel(session, state);
    await session.close();
    await this.#takeFromKernel(session);
    const alike = await CommitsAlike.format(this.#clone);
    await alike.repeatThoseFound();
    await alike.compare();
    await this.#look();
    if (ending === "ours") await this.#clone.hydrate();
    else await this.#clone.request(this.#requests(ALL, 8));
    await this.#inKernel(await this.#clone.inspect(), async (opened) => {
      if (ending === "kernel") await opened.hydrate();
    });
    await this.#look();
    await this.#clone.verify();
    await this.#clone.finalize();
  }

  /** There and back again, so often that allocation goes round the metadata several times. */
  async backAndForth(legs: number): Promise<void> {
    await this.#clone.makeForKernel();
    const session = await KernelSession.attach(this.#guest, this.#clone);
    await session.open();
    await this.#goOn(session);
    await session.close();
    await this.#takeFromKernel(session);
    for (let leg = 0; leg < legs; leg++) {
      await this.#look();
      await this.#clone.request(this.#requests(ALL, 24));
      await this.#inKernel(await this.#clone.inspect(), async (opened) => {
        await this.#goOn(opened);
        await opened.request(this.#requests([...WRITES, "flush", "flush"], 40));
      });
    }
    await this.#look();
    await this.#clone.hydrate();
    await this.#inKernel(await this.#clone.inspect(), async () => {});
    await this.#clone.verify();
    await this.#clone.finalize();
  }

  /** The same commits in the same order, however often allocation goes round, and after the metadata was opened again. */
  async sameCommits(count: number): Promise<void> {
    const clone = this.#clone;
    const { regionCount, regionSize } = clone.expected.geometry;
    await clone.makeForKernel();
    const alike = await CommitsAlike.format(clone);
    const left = new Set(Array.from({ length: regionCount }, (_, region) => region));
    for (let opening = 0; opening < 3; opening++) {
      const regions = Array.from({ length: count }, () => {
        const region = this.#random.pick([...left]);
        left.delete(region);
        return region;
      });
      const session = await KernelSession.attach(this.#guest, clone);
      await session.open();
      // One region at a time: a commit by the clock between a write and its flush takes nothing from the flush's but all.
      await session.request(
        regions.flatMap((region): CloneRequest[] => [
          { kind: "write", offset: region * regionSize, length: regionSize, from: 0 },
          { kind: "flush" },
        ]),
      );
      await session.close();
      await this.#takeFromKernel(session);
      this.states += 1;
      await alike.repeat(regions.map((region) => [{ start: region, end: region + 1 }]));
      await alike.compare();
    }
    await this.#look();
    await clone.hydrate();
    await clone.finalize();
  }

  /** A clone too large for most of what the others do: all but the surroundings of what is in the source is discarded. */
  async large(first: Implementation, options: { endInKernel: boolean }): Promise<void> {
    const clone = this.#clone;
    const { size, regionSize } = clone.expected.geometry;
    const { islands = [] } = clone.shape;
    const writes = islands.flatMap((island): CloneRequest[] => [
      { kind: "write", offset: Math.min(island + 512, size - 512), length: 512, from: 0 },
      { kind: "discard", offset: Math.min(island + 2 ** 22, size - 512), length: 512 },
    ]);
    // One at a time, as long as the wire allows.
    const gaps = islands.flatMap((island, index): CloneRequest[] => {
      const start = Math.ceil((island + 2 ** 21) / regionSize) * regionSize;
      const end = Math.min((islands[index + 1] ?? size) - 2 ** 21, start + 2 ** 40);
      const most = 2 ** 31;
      const count = Math.max(0, Math.ceil((end - start) / most));
      return Array.from({ length: count }, (_, part) => {
        const offset = start + part * most;
        return { kind: "discard", offset, length: Math.floor(Math.min(most, end - offset) / 512) * 512 };
      });
    });
    const work = [...writes.slice(0, 2), ...gaps, ...writes.slice(2)];
    if (first === "ours") {
      await clone.create();
      await clone.request(work);
      await this.#inKernel(await clone.inspect(), async (session) => {
        await session.request(writes.slice(0, 1));
        if (options.endInKernel) await session.hydrate();
      });
    } else {
      await clone.makeForKernel();
      const session = await KernelSession.attach(this.#guest, clone);
      await session.open();
      await session.request(work);
      await session.close();
      await this.#takeFromKernel(session);
      await clone.request(writes);
    }
    await this.#look();
    await clone.hydrate();
    await this.#inKernel(await clone.inspect(), async () => {});
    await clone.finalize();
  }

  /** What we find in what somebody has left behind: the metadata is clean, and every byte is there. */
  async #look(): Promise<OurView> {
    this.states += 1;
    const view = await this.#clone.inspect();
    expect(this.#clone.expected.settle(await this.#clone.read())).toBeUndefined();
    return view;
  }

  /** The kernel opens what we have left: it says what we say, changes nothing by looking, and every byte is there. */
  async #inKernel(ours: OurView, goOn: (session: KernelSession) => Promise<void>): Promise<void> {
    this.states += 1;
    const before = await this.#clone.metadataHash();
    const session = await KernelSession.attach(this.#guest, this.#clone);
    agree(await session.view(ours.ranges), ours);
    expect(await this.#clone.metadataHash()).toBe(before);
    await session.open();
    expect(this.#clone.expected.settle(await session.read())).toBeUndefined();
    await goOn(session);
    await session.close();
    await this.#takeFromKernel(session);
  }

  /** After the kernel has closed it: it had nothing to say, and we read there what it reads there itself. */
  async #takeFromKernel(session: KernelSession): Promise<void> {
    const ours = await this.#clone.inspect();
    const view = await session.view(ours.ranges);
    await session.detach();
    expect(await this.#guest.kernelLog()).toEqual([]);
    agree(view, ours);
  }

  async #goOn(session: KernelSession): Promise<void> {
    const { regionCount } = this.#clone.expected.geometry;
    await session.request(this.#requests(ALL, 12));
    await session.hydrate(Math.ceil(regionCount / 4));
    await session.request(this.#requests(ALL, 12));
    const view = upToFeatures(await session.status());
    expect(view.split(" ")[7]).toBe("0");
  }

  async #makeOurs(state: State): Promise<void> {
    const clone = this.#clone;
    const { size, regionSize } = clone.expected.geometry;
    const half = Math.max(regionSize, Math.floor(size / 2 / regionSize) * regionSize);
    if (state === "half hydrated") await clone.hydrate(half);
    if (state === "discarded") await clone.request(this.#requests(["discard"], 12));
    if (state === "written") await clone.request(this.#requests(WRITES, 20));
    if (state === "full") await clone.hydrate();
    if (state === "mixed" || state === "restored" || state === "repaired") {
      await clone.request(this.#requests(ALL, 12));
      await clone.hydrate(Math.ceil(half / 2 / regionSize) * regionSize);
      await clone.request(this.#requests(ALL, 12));
    }
    if (state === "restored") await clone.dumpAndRestore();
    if (state === "repaired") await clone.damageAndRepair();
    if (state === "repaired without a superblock") {
      await clone.hydrate(half);
      const { ranges } = await clone.inspect();
      await clone.loseAndRepair();
      expect((await clone.inspect()).ranges).toEqual(ranges);
    }
    if (state === "killed") {
      const requests = disjointWrites(this.#random, clone.expected.geometry, 24);
      await clone.requestAndKill(requests, { acknowledged: this.#random.integer(2, requests.length - 4) });
    }
  }

  async #makeKernel(session: KernelSession, state: KernelState): Promise<void> {
    const { regionCount } = this.#clone.expected.geometry;
    if (state === "half hydrated") await session.hydrate(Math.ceil(regionCount / 2));
    if (state === "discarded") await session.request(this.#requests(["discard"], 12));
    if (state === "written") await session.request(this.#requests(WRITES, 20));
    if (state === "full") await session.hydrate();
    if (state === "mixed") await this.#goOn(session);
  }

  #requests(kinds: readonly CloneRequest["kind"][], count: number): CloneRequest[] {
    return randomRequests(this.#random, this.#clone.expected.geometry, { count, kinds });
  }
}

/** Holds what the kernel says of metadata against what this program says. */
export function agree(kernel: KernelView, ours: OurView): void {
  expect(kernel.ranges).toEqual(ours.ranges);
  expect(upToFeatures(kernel.status)).toBe(ours.status);
}

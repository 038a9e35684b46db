/** The kinds of states that clones are handed over in, and the round trips: who has it first, and who ends it. */
import { expect } from "vitest";
import type { SeededRandom } from "../support/random.ts";
import type { KernelGuest } from "./kernel-guest.ts";
import { KernelSession, type KernelView } from "./kernel-session.ts";
import { type OurView, type RelayedClone, upToFeatures } from "./relayed-clone.ts";
import { type CloneRequest, disjointWrites, type Implementation, randomRequests } from "./requests.ts";

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

/** What has been done to a clone before it is handed over. */
export const STATES = ["fresh", "half hydrated", "discarded", "written", "mixed", "full", "killed"] as const;
export type State = (typeof STATES)[number];

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
    await this.#clone.finalize();
  }

  /** A state of the kernel's making, which we go on with; then the kernel does. */
  async fromKernel(state: Exclude<State, "killed">, ending: Implementation): Promise<void> {
    await this.#clone.makeForKernel();
    const session = await KernelSession.attach(this.#guest, this.#clone);
    await session.open();
    await this.#makeKernel(session, state);
    await session.close();
    await this.#takeFromKernel(session);
    await this.#look();
    if (ending === "ours") await this.#clone.hydrate();
    else await this.#clone.request(this.#requests(ALL, 8));
    await this.#inKernel(await this.#clone.inspect(), async (opened) => {
      if (ending === "kernel") await opened.hydrate();
    });
    await this.#look();
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
    await this.#clone.finalize();
  }

  /** What we find in what somebody has left behind: the metadata is clean, and every byte is there. */
  async #look(): Promise<OurView> {
    this.states += 1;
    const view = await this.#clone.inspect();
    expect(this.#clone.expected.settle(await this.#clone.readAll())).toBeUndefined();
    return view;
  }

  /** The kernel opens what we have left: it says what we say, changes nothing by looking, and every byte is there. */
  async #inKernel(ours: OurView, goOn: (session: KernelSession) => Promise<void>): Promise<void> {
    this.states += 1;
    const before = await this.#clone.metadataHash();
    const session = await KernelSession.attach(this.#guest, this.#clone);
    agree(await session.view(), ours);
    expect(await this.#clone.metadataHash()).toBe(before);
    await session.open();
    expect(this.#clone.expected.settle(await session.readAll())).toBeUndefined();
    await goOn(session);
    await session.close();
    await this.#takeFromKernel(session);
  }

  /** After the kernel has closed it: it had nothing to say, and we read there what it reads there itself. */
  async #takeFromKernel(session: KernelSession): Promise<void> {
    const view = await session.view();
    await session.detach();
    expect(await this.#guest.kernelLog()).toEqual([]);
    agree(view, await this.#clone.inspect());
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
    if (state === "mixed") {
      await clone.request(this.#requests(ALL, 12));
      await clone.hydrate(Math.ceil(half / 2 / regionSize) * regionSize);
      await clone.request(this.#requests(ALL, 12));
    }
    if (state === "killed") {
      const requests = disjointWrites(this.#random, clone.expected.geometry, 24);
      await clone.requestAndKill(requests, { acknowledged: this.#random.integer(2, requests.length - 4) });
    }
  }

  async #makeKernel(session: KernelSession, state: Exclude<State, "killed">): Promise<void> {
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

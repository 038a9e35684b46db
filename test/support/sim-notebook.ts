/**
 * The descriptor of a simulated clone, which is written beside commits: page after page, each with the number of its turn. After a
 * crash it has the last one that was answered, or one begun since.
 */
import type { BlockDevice } from "../../src/device/block-device.ts";
import type { Descriptor, DescriptorPlace } from "../../src/metadata/descriptor.ts";
import { DescriptorStore } from "../../src/metadata/descriptor.ts";

/** One write of it. Moments. */
interface Turn {
  turn: number;
  begunAt: number;
  /** Infinity where it was not answered with success. */
  endedAt: number;
}

export class Notebook {
  readonly #store: DescriptorStore;
  readonly #moment: () => number;
  readonly #turns: Turn[];

  private constructor(store: DescriptorStore, moment: () => number, first: number) {
    this.#store = store;
    this.#moment = moment;
    this.#turns = [{ turn: first, begunAt: 0, endedAt: 0 }];
  }

  /** Turn 0 of a new clone. */
  static async format(device: BlockDevice, place: DescriptorPlace): Promise<void> {
    const store = await DescriptorStore.format(device, place);
    await store.write(page(place, 0));
  }

  /** That of a clone; undefined where it has none. */
  static async open(device: BlockDevice, place: DescriptorPlace, moment: () => number): Promise<Notebook | undefined> {
    const store = await DescriptorStore.open(device, place);
    const first = turnOf(store);
    return first === undefined ? undefined : new Notebook(store, moment, first);
  }

  /** The turn that is on a device. */
  static async turnOn(device: BlockDevice, place: DescriptorPlace): Promise<number | undefined> {
    return turnOf(await DescriptorStore.open(device, place));
  }

  /** Writes the next page. @throws {CloneError} */
  async write(): Promise<void> {
    const { turn } = this.#turns.at(-1) as Turn;
    const next: Turn = { turn: turn + 1, begunAt: this.#moment(), endedAt: Infinity };
    this.#turns.push(next);
    const present = this.#store.read() as Descriptor;
    await this.#store.write({ ...present, options: { turn: next.turn } });
    next.endedAt = this.#moment();
  }

  /** The first turn that a power cut may leave. */
  leastAt(cut: number): number {
    return Math.max(...this.#turns.filter(({ endedAt }) => endedAt <= cut).map(({ turn }) => turn));
  }

  /** What is wrong with the turn that a power cut has left, a sentence. */
  check(cut: number, found: number | undefined): string | undefined {
    const begun = this.#turns.filter(({ begunAt }) => begunAt <= cut);
    const least = this.leastAt(cut);
    const most = Math.max(...begun.map(({ turn }) => turn));
    if (found !== undefined && found >= least && found <= most) return undefined;
    return `the descriptor is of turn ${found}, and may be of ${least} to ${most}`;
  }
}

function turnOf(store: DescriptorStore): number | undefined {
  const turn = store.read()?.options.turn;
  return typeof turn === "number" ? turn : undefined;
}

function page({ geometry }: DescriptorPlace, turn: number): Descriptor {
  const device = { size: geometry.size, fingerprint: {} };
  return {
    uuid: "simulated",
    created: "2000-01-01T00:00:00Z",
    // So long that what changes is in another sector than the checksum: a write of it can be torn.
    source: { ...device, uri: "source".repeat(100), format: "raw" },
    destination: { ...device, uri: "destination" },
    exactSize: geometry.size,
    options: { turn },
    unreadable: { ranges: [], inexact: false },
    served: false,
    finalized: null,
  };
}

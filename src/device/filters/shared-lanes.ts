/**
 * A bound on the questions that a device is asked at once, shared by all who ask it: a device that hangs keeps a thread of
 * the pool for each, and what else the process has to do needs some too.
 *
 *     lane A (most 8) ──┐
 *     lane B (most 4) ──┼──► at most `total` reads and queries in flight ──► the device
 *     lane C (most 6) ──┘    a place that becomes free goes to the lane made first
 */
import type { BlockDevice, Extent } from "../block-device.ts";
import { FilterDevice } from "./filter-device.ts";

/** Views of one device whose reads and queries are bounded, each on its own and all together. */
export class SharedLanes {
  readonly #device: BlockDevice;
  readonly #total: number;
  readonly #lanes: Lane[] = [];
  #inFlight = 0;

  constructor(device: BlockDevice, { total }: { total: number }) {
    this.#device = device;
    this.#total = total;
  }

  /** A view that has at most `most` in flight. It passes on what is served at once, and what is not a question. */
  lane(most: number): BlockDevice {
    const lane: Lane = { most, inFlight: 0, waiting: [] };
    this.#lanes.push(lane);
    return new LaneDevice(this.#device, (question) => this.#pass(lane, question));
  }

  async #pass<T>(lane: Lane, question: () => Promise<T>): Promise<T> {
    if (this.#inFlight < this.#total && lane.inFlight < lane.most && lane.waiting.length === 0) this.#enter(lane);
    else await new Promise<void>((enter) => lane.waiting.push(enter));
    try {
      return await question();
    } finally {
      this.#inFlight--;
      lane.inFlight--;
      this.#admitNext();
    }
  }

  #enter(lane: Lane): void {
    this.#inFlight++;
    lane.inFlight++;
  }

  #admitNext(): void {
    for (const lane of this.#lanes) {
      while (this.#inFlight < this.#total && lane.inFlight < lane.most) {
        const enter = lane.waiting.shift();
        if (enter === undefined) break;
        this.#enter(lane); // here, before anybody else can come in
        enter();
      }
    }
  }
}

/** Those who ask through one view. */
interface Lane {
  readonly most: number;
  inFlight: number;
  /** First come, first served. */
  readonly waiting: (() => void)[];
}

class LaneDevice extends FilterDevice {
  readonly #pass: <T>(question: () => Promise<T>) => Promise<T>;

  constructor(inner: BlockDevice, pass: <T>(question: () => Promise<T>) => Promise<T>) {
    super(inner);
    this.#pass = pass;
  }

  override read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#pass(() => super.read(offset, buffer));
  }

  override extents(offset: number, length: number): Promise<Extent[]> {
    return this.#pass(() => super.extents(offset, length));
  }
}

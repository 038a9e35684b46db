import type { Clock } from "../../src/base/clock.ts";
import type { BlockDevice, Extent } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";

/** How far away a device is. */
export interface Link {
  /** Infinity for no bound. */
  bytesPerSecond: number;
  /** There and back, ms. May be changed. */
  roundTripMs: number;
  /** How much longer a request takes by chance at the most, ms, whatever else is under way. */
  jitterMs?: number;
}

/** A device at the other end of a link: replies queue there, and come one after the other at the link's speed. */
export class LinkDevice extends FilterDevice {
  readonly link: Link;
  /** For how long replies were on the link, ms. */
  busyMs = 0;
  /** Read so far, bytes. */
  bytes = 0;
  readonly #clock: Clock;
  readonly #random: () => number;
  #freeAt = 0;

  constructor(inner: BlockDevice, clock: Clock, link: Link, random: () => number = () => 0) {
    super(inner);
    this.#clock = clock;
    this.link = link;
    this.#random = random;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#pass(buffer.length);
    await super.read(offset, buffer);
  }

  override async extents(offset: number, length: number): Promise<Extent[]> {
    await this.#pass(0);
    return await super.extents(offset, length);
  }

  override tryRead(): boolean {
    return false;
  }

  override mapRange(): undefined {
    return undefined;
  }

  async #pass(bytes: number): Promise<void> {
    const { bytesPerSecond, roundTripMs, jitterMs = 0 } = this.link;
    await this.#clock.sleep(roundTripMs / 2 + this.#random() * jitterMs);
    const now = this.#clock.now();
    const ms = (bytes * 1000) / bytesPerSecond;
    this.#freeAt = Math.max(now, this.#freeAt) + ms;
    this.busyMs += ms;
    this.bytes += bytes;
    await this.#clock.sleep(this.#freeAt - now + roundTripMs / 2);
  }
}

import type { Clock } from "../../src/base/clock.ts";
import type { BlockDevice, Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";

/** A device that takes `latencyMs` for every request, and counts how many are in flight at once. */
export class SlowDevice extends FilterDevice {
  /** The most requests there ever were in flight; flushes and queries not counted. */
  mostInFlight = 0;
  #inFlight = 0;
  readonly #clock: Clock;
  readonly #latencyMs: number;

  constructor(inner: BlockDevice, clock: Clock, latencyMs: number) {
    super(inner);
    this.#clock = clock;
    this.#latencyMs = latencyMs;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#counted(() => super.read(offset, buffer));
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    await this.#counted(() => super.write(offset, data, options));
  }

  override tryRead(): boolean {
    return false;
  }

  override tryWrite(): boolean {
    return false;
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    await this.#counted(() => super.zero(offset, length, options));
  }

  override async flush(): Promise<void> {
    await this.#clock.sleep(this.#latencyMs);
    await super.flush();
  }

  override async extents(offset: number, length: number): Promise<Extent[]> {
    await this.#clock.sleep(this.#latencyMs);
    return await super.extents(offset, length);
  }

  async #counted(operation: () => Promise<void>): Promise<void> {
    this.#inFlight++;
    this.mostInFlight = Math.max(this.mostInFlight, this.#inFlight);
    try {
      await this.#clock.sleep(this.#latencyMs);
      await operation();
    } finally {
      this.#inFlight--;
    }
  }
}

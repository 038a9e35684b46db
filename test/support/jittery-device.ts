import type { Clock } from "../../src/base/clock.ts";
import type { BlockDevice, Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { ioError } from "../../src/device/io-error.ts";

/** How a device behaves badly. Chances from 0 to 1. */
export interface Jitter {
  /** The longest that half of an operation takes, ms. */
  latencyMs: number;
  /** That an operation fails. */
  failRead?: number;
  failWrite?: number;
  failFlush?: number;
  /** That a read takes an hour. */
  hangRead?: number;
  /** That a request that could be served at once is. */
  immediate?: number;
}

const HOUR_MS = 3_600_000;

/**
 * A device that takes its time by chance, so that requests overlap in any way and end in any order: long ones are done in
 * two halves at different moments. What fails may have been done in part.
 */
export class JitteryDevice extends FilterDevice {
  /** May be changed at any time. */
  jitter: Jitter;
  readonly #clock: Clock;
  readonly #random: () => number;

  constructor(inner: BlockDevice, clock: Clock, random: () => number, jitter: Jitter) {
    super(inner);
    this.#clock = clock;
    this.#random = random;
    this.jitter = jitter;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    if (this.#random() < (this.jitter.hangRead ?? 0)) await this.#clock.sleep(HOUR_MS);
    // As a disk does: what is read is of some moment in between, and is seen at the end. Not a byte of the buffer before.
    await this.#inHalves(offset, buffer.length, "read", this.jitter.failRead, (at, length) =>
      super.read(at, buffer.subarray(at - offset, at - offset + length)),
    );
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    await this.#inHalves(offset, data.length, "write", this.jitter.failWrite, (at, length) =>
      super.write(at, data.subarray(at - offset, at - offset + length), options),
    );
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    await this.#inHalves(offset, length, "zero", this.jitter.failWrite, (at, part) => super.zero(at, part, options));
  }

  override async discard(offset: number, length: number): Promise<void> {
    await this.#inHalves(offset, length, "discard", this.jitter.failWrite, (at, part) => super.discard(at, part));
  }

  override async flush(): Promise<void> {
    await this.#pause();
    if (this.#random() < (this.jitter.failFlush ?? 0)) throw ioError({ verb: "flush", name: this.name, errno: "EIO" });
    await super.flush();
    await this.#pause();
  }

  override async extents(offset: number, length: number): Promise<Extent[]> {
    await this.#pause();
    const extents = await super.extents(offset, length);
    await this.#pause();
    return extents;
  }

  override tryRead(offset: number, buffer: Uint8Array): boolean {
    return this.#random() < (this.jitter.immediate ?? 0) && super.tryRead(offset, buffer);
  }

  override tryWrite(offset: number, data: Uint8Array): boolean {
    return this.#random() < (this.jitter.immediate ?? 0) && super.tryWrite(offset, data);
  }

  override mapRange(): undefined {
    return undefined;
  }

  override async reflinkFrom(): Promise<boolean> {
    return false;
  }

  async #inHalves(
    offset: number,
    length: number,
    verb: string,
    chance: number | undefined,
    part: (offset: number, length: number) => Promise<void>,
  ): Promise<void> {
    const first = Math.floor((this.#random() * (length + 512)) / 512) * 512;
    const fails = this.#random() < (chance ?? 0);
    await this.#pause();
    if (first > 0) await part(offset, Math.min(first, length));
    await this.#pause();
    if (fails) throw ioError({ verb, name: this.name, offset, length, errno: verb === "read" ? "EIO" : "ENOSPC" });
    if (first < length) await part(offset + first, length - first);
    if (this.#random() < 0.5) await this.#pause();
  }

  async #pause(): Promise<void> {
    await this.#clock.sleep(Math.floor(this.#random() * this.jitter.latencyMs));
  }
}

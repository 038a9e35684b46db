/**
 * A device with a volatile write cache, and the power switch of the machine it is in.
 *
 * Writes are seen at once, but survive the loss of power only as far as a flush that returned covered them. Of everything
 * else each 512-byte sector, on its own, holds what was flushed or any of the contents written since, by seed: writes
 * reach the medium in any order, torn, or never.
 */
import type { BlockDevice, Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";

const SECTOR = 512;

/** What is thrown by every operation from the cut on. */
export class PowerLost extends Error {}

/** The power of one machine. Reads are free; each write or flush takes one operation. */
export class Power {
  /** Operations until it fails. */
  left = Number.POSITIVE_INFINITY;
  /** Operations there were. */
  used = 0;

  spend(): void {
    if (this.left <= 0) throw new PowerLost("power lost");
    this.left--;
    this.used++;
  }
}

/** A device that loses what is in its cache when the power fails. */
export class PowerLossDevice implements BlockDevice {
  readonly name: string;
  readonly size: number;
  readonly readOnly = false;
  readonly blockSize = SECTOR;
  readonly #power: Power;
  readonly #seen: Buffer;
  readonly #durable: Buffer;
  /** Contents that each sector was given since the last flush. */
  readonly #cached = new Map<number, Buffer[]>();

  constructor(content: Uint8Array, { name, power }: { name: string; power: Power }) {
    this.name = name;
    this.size = content.length;
    this.#power = power;
    this.#seen = Buffer.from(content);
    this.#durable = Buffer.from(content);
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    if (this.#power.left <= 0) throw new PowerLost("power lost");
    buffer.set(this.#seen.subarray(offset, offset + buffer.length));
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#power.spend();
    this.#seen.set(data, offset);
    const end = offset + data.length;
    for (let sector = Math.floor(offset / SECTOR); sector * SECTOR < end; sector++) {
      const versions = this.#cached.get(sector) ?? [];
      versions.push(Buffer.from(this.#seen.subarray(sector * SECTOR, (sector + 1) * SECTOR)));
      this.#cached.set(sector, versions);
    }
  }

  async flush(): Promise<void> {
    this.#power.spend();
    this.#seen.copy(this.#durable);
    this.#cached.clear();
  }

  async zero(offset: number, length: number, _options?: ZeroOptions): Promise<void> {
    await this.write(offset, new Uint8Array(length));
  }

  async discard(): Promise<void> {}

  async extents(offset: number, length: number): Promise<Extent[]> {
    return [{ offset, length, hole: false, zero: false }];
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** What has been flushed. A copy. */
  get durable(): Buffer {
    return Buffer.from(this.#durable);
  }

  /** Loses what is in the cache and goes on: of it the medium holds what `afterPowerLoss()` says. */
  loseCache(random: () => number): void {
    for (const [sector, versions] of this.#cached) {
      const pick = Math.floor(random() * (versions.length + 1));
      if (pick > 0) this.#durable.set(versions[pick - 1] as Buffer, sector * SECTOR);
    }
    this.#durable.copy(this.#seen);
    this.#cached.clear();
  }

  /** What the medium holds after the power has failed; `random` yields numbers from 0 to 1. */
  afterPowerLoss(random: () => number): MemoryDevice {
    const content = Buffer.from(this.#durable);
    for (const [sector, versions] of this.#cached) {
      const pick = Math.floor(random() * (versions.length + 1));
      if (pick > 0) content.set(versions[pick - 1] as Buffer, sector * SECTOR);
    }
    return new MemoryDevice({ name: this.name, size: this.size, content });
  }
}

/** A small repeatable generator of numbers from 0 to 1 (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

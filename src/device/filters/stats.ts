import type { BlockDevice, ZeroOptions } from "../block-device.ts";
import { FilterDevice } from "./filter-device.ts";

/** How many operations of a kind succeeded, and on how many bytes. */
export interface OperationCount {
  operations: number;
  bytes: number;
}

/** What went through a device. Flushes have no bytes. */
export interface DeviceStats {
  read: OperationCount;
  write: OperationCount;
  zero: OperationCount;
  discard: OperationCount;
  reflink: OperationCount;
  flush: OperationCount;
}

/** Counts what succeeds. A source below it is still found by `reflinkFrom`, and then not read. */
export class StatsDevice extends FilterDevice {
  /** The counts so far; live, not a copy. */
  readonly stats: DeviceStats = {
    read: { operations: 0, bytes: 0 },
    write: { operations: 0, bytes: 0 },
    zero: { operations: 0, bytes: 0 },
    discard: { operations: 0, bytes: 0 },
    reflink: { operations: 0, bytes: 0 },
    flush: { operations: 0, bytes: 0 },
  };

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    await super.read(offset, buffer);
    this.#count("read", buffer.length);
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    await super.write(offset, data, options);
    this.#count("write", data.length);
  }

  override tryRead(offset: number, buffer: Uint8Array): boolean {
    const done = super.tryRead(offset, buffer);
    if (done) this.#count("read", buffer.length);
    return done;
  }

  override tryWrite(offset: number, data: Uint8Array): boolean {
    const done = super.tryWrite(offset, data);
    if (done) this.#count("write", data.length);
    return done;
  }

  override async flush(): Promise<void> {
    await super.flush();
    this.#count("flush", 0);
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    await super.zero(offset, length, options);
    this.#count("zero", length);
  }

  override async discard(offset: number, length: number): Promise<void> {
    await super.discard(offset, length);
    this.#count("discard", length);
  }

  override async reflinkFrom(source: BlockDevice, from: number, offset: number, length: number): Promise<boolean> {
    const shared = await super.reflinkFrom(source, from, offset, length);
    if (shared) this.#count("reflink", length);
    return shared;
  }

  #count(operation: keyof DeviceStats, bytes: number): void {
    this.stats[operation].operations += 1;
    this.stats[operation].bytes += bytes;
  }
}

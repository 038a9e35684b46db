import type { BlockDevice } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";

/** A source that counts how often each of its bytes was asked for, and serves nothing at once, as one far away. */
export class CountingSource extends FilterDevice {
  /** Bytes asked for, in all. */
  bytes = 0;
  requests = 0;
  readonly #counts: Uint8Array;

  constructor(inner: BlockDevice) {
    super(inner);
    this.#counts = new Uint8Array(inner.size);
  }

  /** The most often that any byte was asked for. */
  get most(): number {
    return this.#counts.reduce((most, count) => Math.max(most, count), 0);
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.bytes += buffer.length;
    this.requests++;
    for (let at = offset; at < offset + buffer.length; at++) this.#counts[at] = (this.#counts[at] ?? 0) + 1;
    await super.read(offset, buffer);
  }

  override tryRead(): boolean {
    return false;
  }

  override mapRange(): undefined {
    return undefined;
  }
}

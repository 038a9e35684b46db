import type { BlockDevice, ZeroOptions } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";

/** Notes changes, as they begin, and flushes in a log that several devices may share: `disk write 0+4096`, `disk flush`; bytes. */
export class LoggingDevice extends FilterDevice {
  readonly #log: string[];
  readonly #label: string;

  constructor(inner: BlockDevice, label: string, log: string[]) {
    super(inner);
    this.#label = label;
    this.#log = log;
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    this.#log.push(`${this.#label} write ${offset}+${data.length}`);
    await super.write(offset, data, options);
  }

  /** Every write shall be noted. */
  override tryWrite(): boolean {
    return false;
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    this.#log.push(`${this.#label} zero ${offset}+${length}`);
    await super.zero(offset, length, options);
  }

  override async reflinkFrom(source: BlockDevice, from: number, offset: number, length: number): Promise<boolean> {
    const shared = await super.reflinkFrom(source, from, offset, length);
    if (shared) this.#log.push(`${this.#label} reflink ${offset}+${length}`);
    return shared;
  }

  override async flush(): Promise<void> {
    this.#log.push(`${this.#label} flush`);
    await super.flush();
  }
}

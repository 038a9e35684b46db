import type { BlockDevice, ZeroOptions } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { ioError } from "../../src/device/io-error.ts";

/** One operation, as a fault's predicate sees it. `index` counts operations of its kind from 0; bytes. */
export interface Operation {
  index: number;
  offset: number;
  length: number;
}

/** Which operations fail: the n-th of its kind (from 0), or those that a predicate names. */
export type Fault = number[] | ((operation: Operation) => boolean);

/** What fails, and how. Zeroing, discarding and reflinking count as writes. */
export interface Faults {
  failRead?: Fault;
  failWrite?: Fault;
  failFlush?: Fault;
  /** Default `EIO`. */
  errno?: string;
}

/** A device whose chosen operations fail before they reach the one beneath; it forwards everything else. */
export class FaultyDevice extends FilterDevice {
  /** May be changed at any time. */
  faults: Faults;
  readonly #count = { read: 0, write: 0, flush: 0 };

  constructor(inner: BlockDevice, faults: Faults) {
    super(inner);
    this.faults = faults;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.#fail("read", "read", this.faults.failRead, offset, buffer.length);
    await super.read(offset, buffer);
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    this.#fail("write", "write", this.faults.failWrite, offset, data.length);
    await super.write(offset, data, options);
  }

  /** Every request shall be able to fail. */
  override tryRead(): boolean {
    return false;
  }

  override tryWrite(): boolean {
    return false;
  }

  override async flush(): Promise<void> {
    this.#fail("flush", "flush", this.faults.failFlush, 0, 0);
    await super.flush();
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    this.#fail("write", "zero", this.faults.failWrite, offset, length);
    await super.zero(offset, length, options);
  }

  override async discard(offset: number, length: number): Promise<void> {
    this.#fail("write", "discard", this.faults.failWrite, offset, length);
    await super.discard(offset, length);
  }

  override async reflinkFrom(source: BlockDevice, from: number, offset: number, length: number): Promise<boolean> {
    this.#fail("write", "reflink", this.faults.failWrite, offset, length);
    return await super.reflinkFrom(source, from, offset, length);
  }

  /** A reflink would go round the faults. */
  override mapRange(): undefined {
    return undefined;
  }

  #fail(
    kind: "read" | "write" | "flush",
    verb: string,
    fault: Fault | undefined,
    offset: number,
    length: number,
  ): void {
    const index = this.#count[kind];
    this.#count[kind] += 1;
    if (fault === undefined) return;
    const fails = Array.isArray(fault) ? fault.includes(index) : fault({ index, offset, length });
    if (!fails) return;
    const errno = this.faults.errno ?? "EIO";
    throw ioError(
      kind === "flush" ? { verb, name: this.name, errno } : { verb, name: this.name, offset, length, errno },
    );
  }
}

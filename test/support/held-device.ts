import type { Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";

/** What can be held. */
export type HeldOperation = "read" | "write" | "flush" | "zero" | "discard" | "extents";

/** One operation that waits to be let go; bytes. */
interface Held {
  operation: HeldOperation;
  offset: number;
  length: number;
  letGo: () => void;
}

/** A device whose operations wait, before they reach the one beneath, for as long as a test holds their kind. */
export class HeldDevice extends FilterDevice {
  /** What waits now, in the order it came. */
  readonly waiting: Held[] = [];
  /** What has been let through, as `write 0+4096`, flushes as `flush`; not questions. */
  readonly log: string[] = [];
  readonly #holds = new Set<HeldOperation>();

  /** From now on operations of these kinds wait. */
  hold(...operations: HeldOperation[]): void {
    for (const operation of operations) this.#holds.add(operation);
  }

  /** Lets go of those of one kind that wait, and holds no more of it. */
  release(operation: HeldOperation): void {
    this.#holds.delete(operation);
    for (const held of this.waiting.splice(0)) {
      if (held.operation === operation) held.letGo();
      else this.waiting.push(held);
    }
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#pass("read", offset, buffer.length);
    await super.read(offset, buffer);
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    await this.#pass("write", offset, data.length);
    await super.write(offset, data, options);
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    await this.#pass("zero", offset, length);
    await super.zero(offset, length, options);
  }

  override async discard(offset: number, length: number): Promise<void> {
    await this.#pass("discard", offset, length);
    await super.discard(offset, length);
  }

  /** Nothing goes past the gate. */
  override tryRead(): boolean {
    return false;
  }

  override tryWrite(): boolean {
    return false;
  }

  override async flush(): Promise<void> {
    await this.#pass("flush", 0, 0);
    await super.flush();
  }

  override async extents(offset: number, length: number): Promise<Extent[]> {
    await this.#pass("extents", offset, length);
    return await super.extents(offset, length);
  }

  /** What is copied must go through here. */
  override mapRange(): undefined {
    return undefined;
  }

  override async reflinkFrom(): Promise<boolean> {
    return false;
  }

  async #pass(operation: HeldOperation, offset: number, length: number): Promise<void> {
    if (this.#holds.has(operation)) {
      await new Promise<void>((letGo) => this.waiting.push({ operation, offset, length, letGo }));
    }
    if (operation === "flush") this.log.push("flush");
    else if (operation !== "extents") this.log.push(`${operation} ${offset}+${length}`);
  }
}

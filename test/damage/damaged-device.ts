/** A device of which few blocks differ from bytes that many share: damaged images are made and thrown away by the thousand. */

import type { BlockDevice, Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { ioError } from "../../src/device/io-error.ts";
import { checkRange, checkWritable } from "../../src/device/range-check.ts";

const BLOCK = 4096;

/** Blocks over shared bytes, some of them unreadable. What it does is counted: work must be bounded. */
export class DamagedDevice implements BlockDevice {
  readonly name = "damaged.clone";
  readonly blockSize = 512;
  readonly readOnly: boolean;
  readonly size: number;
  readonly #shared: Buffer;
  /** Blocks that differ; the last may be short. */
  readonly blocks: Map<number, Buffer>;
  /** As disks do: what is written to such a block goes to a sound place. */
  readonly #unreadable: Set<number>;
  bytesRead = 0;
  bytesWritten = 0;

  constructor(
    shared: Buffer,
    blocks: ReadonlyMap<number, Buffer>,
    {
      size = shared.length,
      unreadable = new Set<number>(),
      readOnly = true,
    }: { size?: number; unreadable?: ReadonlySet<number>; readOnly?: boolean } = {},
  ) {
    this.#shared = shared;
    this.blocks = new Map(blocks);
    this.size = size;
    this.#unreadable = new Set(unreadable);
    this.readOnly = readOnly;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    this.bytesRead += buffer.length;
    this.#copy(offset, buffer);
    for (const block of this.#unreadable) {
      if (block * BLOCK >= offset + buffer.length || (block + 1) * BLOCK <= offset) continue;
      buffer.fill(0x55); // undefined where it fails
      throw ioError({ verb: "read", name: this.name, offset, length: buffer.length, errno: "EIO" });
    }
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    checkWritable(this);
    checkRange(this, offset, data.length);
    this.bytesWritten += data.length;
    for (let at = 0; at < data.length; ) {
      const block = Math.floor((offset + at) / BLOCK);
      const within = (offset + at) % BLOCK;
      const length = Math.min(BLOCK - within, data.length - at);
      const bytes = this.block(block);
      bytes.set(data.subarray(at, at + length), within);
      this.blocks.set(block, bytes);
      if (length === BLOCK) this.#unreadable.delete(block);
      at += length;
    }
  }

  /** A copy of a block, unreadable or not; short where the device ends in it. */
  block(number: number): Buffer {
    const bytes = Buffer.alloc(Math.max(0, Math.min(BLOCK, this.size - number * BLOCK)));
    this.#copy(number * BLOCK, bytes);
    return bytes;
  }

  async flush(): Promise<void> {}

  async zero(offset: number, length: number, _options?: ZeroOptions): Promise<void> {
    await this.write(offset, new Uint8Array(length));
  }

  async discard(): Promise<void> {}

  async extents(offset: number, length: number): Promise<Extent[]> {
    return [{ offset, length, hole: false, zero: false }];
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  #copy(offset: number, buffer: Uint8Array): void {
    const end = offset + buffer.length;
    buffer.set(this.#shared.subarray(offset, end));
    buffer.fill(0, Math.max(0, Math.min(this.#shared.length - offset, buffer.length)));
    for (const [number, bytes] of this.blocks) {
      const at = number * BLOCK;
      if (at >= end || at + bytes.length <= offset) continue;
      const from = Math.max(0, offset - at);
      buffer.set(bytes.subarray(from, Math.min(bytes.length, end - at)), Math.max(0, at - offset));
    }
  }
}

/**
 * Reading and recognising metadata blocks for the checker. Deliberately a second reading of the format, sharing no
 * code with what writes it: a mistake made in both would have to be made twice.
 *
 * Every live block carries `crc32c(bytes 4 … 4095) ^ 0xffffffff ^ K` in its first word, K telling its type, and its own
 * block number. A block can therefore be recognised from its bytes alone, and one at the wrong place gives itself away.
 */
import { crc32c } from "@node-rs/crc32";
import { DeviceError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";

/** Bytes of a metadata block. */
export const BLOCK_SIZE = 4096;
/** What a space map can manage: 255 bitmap blocks of 16320 entries (format section 4.1). */
export const MAX_BLOCK_COUNT = 255 * 16320;

/** The types of block, told apart by their checksum. Both trees are made of btree nodes. */
export type BlockType = "superblock" | "btree node" | "array block" | "index block" | "bitmap block";

const TYPE_BY_SALT: ReadonlyMap<number, BlockType> = new Map([
  [257649492, "superblock"],
  [121107, "btree node"],
  [595846735, "array block"],
  [160478, "index block"],
  [240779, "bitmap block"],
]);

/** A block's bytes and a view of them. Valid only until the next block is visited. */
export interface Block {
  number: number;
  bytes: Uint8Array;
  view: DataView;
}

/** What a block's own bytes say it is. */
export interface BlockIdentity {
  /** Null where the checksum fits no type: damaged, or no metadata block at all. */
  type: BlockType | null;
  /** The block number it carries; meaningless without a type. */
  blockNumber: number;
}

/** An unsigned 64-bit field, or Infinity where it is beyond 2^53 - 1 and so certainly no valid value. */
export function readUint64(view: DataView, offset: number): number {
  const high = view.getUint32(offset + 4, true);
  return high >= 2 ** 21 ? Number.POSITIVE_INFINITY : high * 2 ** 32 + view.getUint32(offset, true);
}

/** Whether every byte from `start` up to `end` is zero. */
export function isZero(bytes: Uint8Array, start = 0, end = bytes.length): boolean {
  for (let i = start; i < end; i++) if (bytes[i] !== 0) return false;
  return true;
}

/** Recognises a block from its bytes alone. */
export function identifyBlock(bytes: Uint8Array, view: DataView): BlockIdentity {
  const salt = (view.getUint32(0, true) ^ crc32c(bytes.subarray(4)) ^ 0xffffffff) >>> 0;
  const type = TYPE_BY_SALT.get(salt) ?? null;
  return { type, blockNumber: readUint64(view, type === "array block" ? 16 : 8) };
}

/** Why the block is not a sound `expected` at its place, or null where it is. */
export function explainBlock({ number, bytes, view }: Block, expected: BlockType): string | null {
  const { type, blockNumber } = identifyBlock(bytes, view);
  if (type === expected) {
    if (blockNumber === number) return null;
    return `it carries the number of block ${blockNumber}: a write went to the wrong place`;
  }
  if (type !== null) {
    const own = blockNumber === number ? "" : `, numbered ${blockNumber},`;
    return `a valid ${type}${own} stands where the ${expected} is expected`;
  }
  if (isZero(bytes)) return "it is all zero: never written, or lost";
  return "its checksum is wrong: the block is damaged";
}

const READ_BLOCKS = 256;
/** Unneeded blocks read along rather than starting another read. */
const GAP_BLOCKS = 16;

interface Run {
  firstIndex: number;
  endIndex: number;
  start: number;
  end: number;
}

/** Reads scattered blocks in large sequential pieces, the next one under way while one is being looked at. */
export class BlockReader {
  readonly #device: BlockDevice;
  readonly #signal: AbortSignal | undefined;
  /** Whole blocks that the device holds. */
  readonly blocksOnDevice: number;

  constructor(device: BlockDevice, signal: AbortSignal | undefined) {
    this.#device = device;
    this.#signal = signal;
    this.blocksOnDevice = Math.floor(device.size / BLOCK_SIZE);
  }

  /** One block, or why it cannot be read. The caller owns the buffer. */
  async read(number: number): Promise<Block | string> {
    this.#signal?.throwIfAborted();
    if (number >= this.blocksOnDevice) return "it lies beyond the end of the device";
    const bytes = new Uint8Array(BLOCK_SIZE);
    const error = await this.#load(number, bytes);
    return error === null ? { number, bytes, view: new DataView(bytes.buffer) } : `it cannot be read: ${error.message}`;
  }

  /** The first `length` bytes or as many whole blocks as can be read, for a look at what this is. */
  async readStart(length: number): Promise<Uint8Array> {
    const blocks = Array.from({ length: Math.min(Math.ceil(length / BLOCK_SIZE), this.blocksOnDevice) }, (_, i) => i);
    const bytes = new Uint8Array(blocks.length * BLOCK_SIZE);
    let readable = 0;
    await this.each(blocks, (block, index) => {
      if (typeof block === "string" || index !== readable) return;
      bytes.set(block.bytes, index * BLOCK_SIZE);
      readable++;
    });
    return bytes.subarray(0, readable * BLOCK_SIZE);
  }

  /**
   * Calls `visit` for each of `blocks`, given ascending, with the block or the reason why it cannot be read, and its
   * index in `blocks`. The block's bytes are valid during the call only.
   */
  async each(blocks: ArrayLike<number>, visit: (block: Block | string, index: number) => void): Promise<void> {
    const runs = this.#runs(blocks);
    // No larger than what is read: most metadata is small, and campaigns check a million times.
    const buffers = [new Uint8Array(0), new Uint8Array(0)];
    let turn = 0;
    const start = (run: Run) => {
      const length = (run.end - run.start) * BLOCK_SIZE;
      const which = turn++ % 2;
      const kept = buffers[which];
      const buffer = kept !== undefined && kept.length >= length ? kept : new Uint8Array(length);
      buffers[which] = buffer;
      const piece = buffer.subarray(0, length);
      return { run, piece, error: this.#load(run.start, piece) };
    };
    let next = runs.next();
    let ahead = next.done ? null : start(next.value);
    while (ahead !== null) {
      const { run, piece } = ahead;
      const error = await ahead.error;
      next = runs.next();
      ahead = next.done || this.#signal?.aborted ? null : start(next.value);
      try {
        if (error === null) this.#visitPiece(blocks, run, piece, visit);
        else await this.#visitSingly(blocks, run, visit);
      } catch (thrown) {
        await ahead?.error; // its buffer must not be written to after this returns
        throw thrown;
      }
      this.#signal?.throwIfAborted();
    }
    for (let index = this.#readable(blocks); index < blocks.length; index++) {
      visit("it lies beyond the end of the device", index);
    }
  }

  #visitPiece(
    blocks: ArrayLike<number>,
    run: Run,
    piece: Uint8Array,
    visit: (block: Block | string, index: number) => void,
  ): void {
    for (let index = run.firstIndex; index < run.endIndex; index++) {
      const number = blocks[index] as number;
      const offset = (number - run.start) * BLOCK_SIZE;
      const bytes = piece.subarray(offset, offset + BLOCK_SIZE);
      visit({ number, bytes, view: new DataView(bytes.buffer, bytes.byteOffset, BLOCK_SIZE) }, index);
    }
  }

  /** After a large read failed: finds out which of its blocks are to blame. */
  async #visitSingly(
    blocks: ArrayLike<number>,
    run: Run,
    visit: (block: Block | string, index: number) => void,
  ): Promise<void> {
    for (let index = run.firstIndex; index < run.endIndex; index++) {
      visit(await this.read(blocks[index] as number), index);
    }
  }

  /** How many of the ascending `blocks` lie on the device. */
  #readable(blocks: ArrayLike<number>): number {
    let low = 0;
    let high = blocks.length;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((blocks[middle] as number) < this.blocksOnDevice) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  *#runs(blocks: ArrayLike<number>): Generator<Run> {
    const readable = this.#readable(blocks);
    for (let index = 0; index < readable; ) {
      const start = blocks[index] as number;
      const run = { firstIndex: index, endIndex: index + 1, start, end: start + 1 };
      for (index++; index < readable; index++) {
        const block = blocks[index] as number;
        if (block > run.end + GAP_BLOCKS || block >= start + READ_BLOCKS) break;
        run.endIndex = index + 1;
        run.end = block + 1;
      }
      yield run;
    }
  }

  /** Fills `buffer` from block `number` on; a device's error comes back as a value, to become a finding. */
  async #load(number: number, buffer: Uint8Array): Promise<DeviceError | null> {
    try {
      await this.#device.read(number * BLOCK_SIZE, buffer);
      return null;
    } catch (error) {
      if (error instanceof DeviceError) return error;
      throw error;
    }
  }
}

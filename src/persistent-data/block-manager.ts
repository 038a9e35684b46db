/**
 * Metadata blocks over a device: verified reads and collected writes.
 *
 * Writes are collected in a buffer of bounded size, sorted by block number, and neighbours written as one. A buffer that
 * is full is written out at once: every block of a running transaction is one that the committed state does not use
 * (`space-map.ts`), so it does no harm on disk. The superblock is the exception and never passes through the buffer:
 * it is written by `writeSuperblock` alone, which refuses while anything it could point to is not flushed.
 */
import assert from "node:assert";
import { DeviceError, MetadataError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { BLOCK_SIZE, type BlockType, sealBlock, verifyBlock } from "./checksum.ts";

/** Largest single read or write, blocks. */
const RUN_BLOCKS = 256;
/** Unwanted blocks that are read along rather than splitting a read in two. */
const READ_GAP_BLOCKS = 8;
/** Reads or writes in flight at a time. */
const REQUESTS_IN_FLIGHT = 4;

/** Blocks `start` … `start + count - 1`. */
interface Run {
  start: number;
  count: number;
}

/** Reads and writes metadata blocks of one device, which stays the caller's. */
export class BlockManager {
  readonly device: BlockDevice;
  /** Blocks 0 … blockCount - 1 may be read and written. */
  readonly blockCount: number;
  readonly #capacity: number;
  // Resident only as far as it is used: the kernel gives untouched pages of a fresh buffer no memory.
  #arena: Uint8Array | undefined;
  /** Slot in the arena of each block that waits to be written. */
  readonly #slots = new Map<number, number>();
  /** Buffers for large reads, kept for the next: collecting them as garbage would take far more memory than they do. */
  readonly #readBuffers: Uint8Array[] = [];
  #unflushed = false;

  /** `bufferBytes` bounds what waits to be written (default 8 MiB). */
  constructor(
    device: BlockDevice,
    { blockCount, bufferBytes = 2 ** 23 }: { blockCount: number; bufferBytes?: number },
  ) {
    assert(blockCount * BLOCK_SIZE <= device.size, `${blockCount} blocks do not fit ${device.size} bytes`);
    assert(bufferBytes >= BLOCK_SIZE);
    this.device = device;
    this.blockCount = blockCount;
    this.#capacity = Math.floor(bufferBytes / BLOCK_SIZE);
  }

  /** A fresh copy of a block, verified. @throws {MetadataError | DeviceError} */
  async read(block: number, type: BlockType): Promise<Uint8Array> {
    this.#checkRange(block);
    const bytes = new Uint8Array(BLOCK_SIZE);
    const slot = this.#slots.get(block);
    if (slot === undefined) await this.device.read(block * BLOCK_SIZE, bytes);
    else bytes.set(this.#slot(slot));
    verifyBlock(bytes, type, block, this.device.name);
    return bytes;
  }

  /**
   * Reads many blocks with few, large requests. `visit` gets the position in `blocks` and the verified bytes, in any
   * order; the bytes are valid only during the call and 8-byte aligned.
   *
   * @throws {MetadataError | DeviceError} and whatever `visit` throws; `signal` stops between requests.
   */
  async readMany(
    blocks: Uint32Array,
    type: BlockType,
    visit: (position: number, bytes: Uint8Array, block: number) => void,
    signal?: AbortSignal,
  ): Promise<void> {
    for (const block of blocks) this.#checkRange(block);
    const order = sortedPositions(blocks);
    const groups = groupReads(blocks, order);
    const largest = groups.reduce((most, { from, to }) => {
      const span = (blocks[order[to - 1] as number] as number) + 1 - (blocks[order[from] as number] as number);
      return Math.max(most, span * BLOCK_SIZE);
    }, 0);
    let next = 0;

    const worker = async (): Promise<void> => {
      const kept = this.#readBuffers.pop();
      const buffer = kept !== undefined && kept.length >= largest ? kept : new Uint8Array(largest);
      for (let group = groups[next++]; group !== undefined; group = groups[next++]) {
        signal?.throwIfAborted();
        const start = blocks[order[group.from] as number] as number;
        const last = blocks[order[group.to - 1] as number] as number;
        const wanted = order.subarray(group.from, group.to).map((position) => blocks[position] as number);
        await this.#readRun(wanted, buffer.subarray(0, (last + 1 - start) * BLOCK_SIZE));
        for (let i = group.from; i < group.to; i++) {
          const position = order[i] as number;
          const block = blocks[position] as number;
          const slot = this.#slots.get(block);
          const at = (block - start) * BLOCK_SIZE;
          const bytes = slot === undefined ? buffer.subarray(at, at + BLOCK_SIZE) : this.#slot(slot);
          verifyBlock(bytes, type, block, this.device.name);
          visit(position, bytes, block);
        }
      }
      this.#readBuffers.push(buffer);
    };
    await inParallel(Math.min(REQUESTS_IN_FLIGHT, groups.length), worker);
  }

  /** Seals a copy of `bytes` as `block` and takes it in for writing; may write out earlier ones. @throws {DeviceError} */
  async write(block: number, type: Exclude<BlockType, "superblock">, bytes: Uint8Array): Promise<void> {
    assert(block > 0 && block < this.blockCount, `block ${block} outside 1 … ${this.blockCount - 1}`);
    if (this.#slots.size === this.#capacity && !this.#slots.has(block)) await this.#writeOut();
    const slot = this.#slots.get(block) ?? this.#slots.size;
    this.#slots.set(block, slot);
    const place = this.#slot(slot);
    place.set(bytes);
    sealBlock(place, type, block);
    this.#unflushed = true;
  }

  /** Writes everything taken in and makes it durable. @throws {DeviceError} */
  async flush(): Promise<void> {
    await this.#writeOut();
    await this.device.flush();
    this.#unflushed = false;
  }

  /**
   * Replaces block 0 and makes it durable: the commit point.
   *
   * @throws {DeviceError} after which either state may be found on disk
   */
  async writeSuperblock(bytes: Uint8Array): Promise<void> {
    assert(!this.#unflushed, "superblock written before what it points to");
    const sealed = Uint8Array.from(bytes);
    sealBlock(sealed, "superblock", 0);
    await this.device.write(0, sealed);
    await this.device.flush();
  }

  /** Fills `buffer` from the first of `wanted`, ascending. Blocks between them that cannot be read are nobody's concern. */
  async #readRun(wanted: Uint32Array, buffer: Uint8Array): Promise<void> {
    const start = wanted[0] as number;
    try {
      await this.device.read(start * BLOCK_SIZE, buffer);
    } catch (error) {
      if (!(error instanceof DeviceError) || wanted.length * BLOCK_SIZE === buffer.length) throw error;
      for (const block of wanted) {
        const at = (block - start) * BLOCK_SIZE;
        await this.device.read(block * BLOCK_SIZE, buffer.subarray(at, at + BLOCK_SIZE));
      }
    }
  }

  #checkRange(block: number): void {
    if (block >= this.blockCount) {
      throw new MetadataError(`Block ${block} of "${this.device.name}" is beyond its ${this.blockCount} blocks`, {
        block,
      });
    }
  }

  #slot(slot: number): Uint8Array {
    this.#arena ??= new Uint8Array(this.#capacity * BLOCK_SIZE);
    return this.#arena.subarray(slot * BLOCK_SIZE, (slot + 1) * BLOCK_SIZE);
  }

  async #writeOut(): Promise<void> {
    const runs = groupWrites(Uint32Array.from(this.#slots.keys()).sort());
    let next = 0;
    await inParallel(Math.min(REQUESTS_IN_FLIGHT, runs.length), async () => {
      for (let run = runs[next++]; run !== undefined; run = runs[next++]) {
        await this.device.write(run.start * BLOCK_SIZE, this.#bytesOf(run));
      }
    });
    this.#slots.clear();
  }

  /** The bytes of a run, straight from the arena where they lie in order there. */
  #bytesOf({ start, count }: Run): Uint8Array {
    const slots = Array.from({ length: count }, (_, i) => this.#slots.get(start + i) as number);
    const first = slots[0] as number;
    if (slots.every((slot, i) => slot === first + i)) {
      return (this.#arena as Uint8Array).subarray(first * BLOCK_SIZE, (first + count) * BLOCK_SIZE);
    }
    const bytes = new Uint8Array(count * BLOCK_SIZE);
    slots.forEach((slot, i) => {
      bytes.set(this.#slot(slot), i * BLOCK_SIZE);
    });
    return bytes;
  }
}

/** Positions in `blocks`, ordered by block number. */
function sortedPositions(blocks: Uint32Array): Uint32Array {
  // Both in one double (32 + 20 bits): a typed array sorts numbers natively, many times faster than with a callback.
  assert(blocks.length < 2 ** 20);
  const keys = Float64Array.from(blocks, (block, position) => block * 2 ** 20 + position).sort();
  return Uint32Array.from(keys, (key) => key % 2 ** 20);
}

/** Cuts sorted positions into reads of at most RUN_BLOCKS, as half-open ranges of `order`. */
function groupReads(blocks: Uint32Array, order: Uint32Array): { from: number; to: number }[] {
  const groups: { from: number; to: number }[] = [];
  let from = 0;
  for (let i = 1; i <= order.length; i++) {
    const start = blocks[order[from] as number] as number;
    const previous = blocks[order[i - 1] as number] as number;
    const block = i < order.length ? (blocks[order[i] as number] as number) : Number.POSITIVE_INFINITY;
    if (block - previous > READ_GAP_BLOCKS || block - start >= RUN_BLOCKS) {
      groups.push({ from, to: i });
      from = i;
    }
  }
  return order.length === 0 ? [] : groups;
}

/** Cuts sorted block numbers into runs without gaps of at most RUN_BLOCKS. */
function groupWrites(blocks: Uint32Array): Run[] {
  const runs: Run[] = [];
  for (const block of blocks) {
    const run = runs.at(-1);
    if (run !== undefined && run.start + run.count === block && run.count < RUN_BLOCKS) run.count++;
    else runs.push({ start: block, count: 1 });
  }
  return runs;
}

/** Runs `count` workers; waits for all of them, also when one throws, so that none is left using the device. */
async function inParallel(count: number, worker: () => Promise<void>): Promise<void> {
  const results = await Promise.allSettled(Array.from({ length: count }, worker));
  for (const result of results) if (result.status === "rejected") throw result.reason;
}

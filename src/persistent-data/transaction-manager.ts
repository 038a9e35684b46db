/**
 * Shadowing: nothing the last commit reaches is ever modified.
 *
 * The first touch of a block in a transaction copies it to a newly allocated one and frees the old; later touches change
 * the copy in place. Whoever points to the block has to be told the new number, and is thereby shadowed itself, up to the
 * superblock. (Kernel: `dm_tm_shadow_block`.)
 *
 *     shadow … shadow   →  preCommit: space map, all blocks written and flushed  →  commit: superblock written and flushed
 *
 * Whether a block is new in this transaction is asked of the space map, so nothing is kept per block. Btree nodes under
 * change stay here until the commit (some hundred at 2^31 regions). Array blocks are far more, but each is changed once
 * and for all, so they go straight to the block manager's bounded buffer: see `relocate`.
 */
import assert from "node:assert";
import type { BlockManager } from "./block-manager.ts";
import { BLOCK_SIZE, type BlockType } from "./checksum.ts";
import type { SpaceMap } from "./space-map.ts";

/** Where verified blocks come from; what reading needs of a transaction or a block manager. */
export interface BlockSource {
  /** The device's name, for messages. */
  readonly name: string;
  /** Blocks from here on do not exist. */
  readonly blockCount: number;
  /** A verified block. The bytes are the source's: read them, do not change them. */
  read(block: number, type: BlockType): Promise<Uint8Array>;
}

/** A block that may be changed in place until the commit. */
export interface OpenBlock {
  block: number;
  bytes: Uint8Array;
}

/** Nodes of earlier transactions kept for reading (4 MiB); the largest tree of a healthy image has about 270. */
const CACHED_NODES = 1024;

/** One transaction after another over one device. */
export class TransactionManager implements BlockSource {
  readonly blocks: BlockManager;
  readonly spaceMap: SpaceMap;
  /** Nodes of this transaction. */
  readonly #open = new Map<number, Uint8Array>();
  /** Unchanged nodes, oldest first. */
  readonly #clean = new Map<number, Uint8Array>();

  constructor(blocks: BlockManager, spaceMap: SpaceMap) {
    this.blocks = blocks;
    this.spaceMap = spaceMap;
  }

  get name(): string {
    return this.blocks.device.name;
  }

  get blockCount(): number {
    return this.blocks.blockCount;
  }

  async read(block: number, type: BlockType): Promise<Uint8Array> {
    const known = this.#open.get(block) ?? this.#clean.get(block);
    if (known !== undefined) return known;
    const bytes = await this.blocks.read(block, type);
    if (type === "node") this.#keep(block, bytes);
    return bytes;
  }

  /** A new zeroed btree node. */
  newNode(): OpenBlock {
    const opened = { block: this.spaceMap.allocate(), bytes: new Uint8Array(BLOCK_SIZE) };
    this.#open.set(opened.block, opened.bytes);
    return opened;
  }

  /** The node in a form that may be changed: itself if it is new in this transaction, a copy elsewhere if not. */
  async shadowNode(block: number): Promise<OpenBlock> {
    const open = this.#open.get(block);
    if (open !== undefined) return { block, bytes: open };
    const original = await this.read(block, "node");
    const shadow = { block: this.relocate(block), bytes: Uint8Array.from(original) };
    this.#clean.delete(block);
    this.#open.set(shadow.block, shadow.bytes);
    return shadow;
  }

  /**
   * Allocates the place of a block's shadow and frees the original, without touching contents: for a block whose new
   * content the caller writes through `blocks.write`, once in the transaction.
   */
  relocate(block: number): number {
    assert(this.spaceMap.isCommitted(block), `block ${block} is relocated twice in one transaction`);
    const shadow = this.spaceMap.allocate();
    this.spaceMap.free(block);
    return shadow;
  }

  /** Writes everything but the superblock and makes it durable (`dm_tm_pre_commit` and the flush that follows). */
  async preCommit(): Promise<void> {
    const spaceMapBlocks = this.spaceMap.finish();
    for (const [block, bytes] of this.#open) await this.blocks.write(block, "node", bytes);
    for (const { block, type, bytes } of spaceMapBlocks) await this.blocks.write(block, type, bytes);
    await this.blocks.flush();
  }

  /** Writes the superblock, which makes the transaction the committed state (`dm_tm_commit`). */
  async commit(superblock: Uint8Array): Promise<void> {
    await this.blocks.writeSuperblock(superblock);
    this.spaceMap.markCommitted();
    for (const [block, bytes] of this.#open) this.#keep(block, bytes);
    this.#open.clear();
  }

  #keep(block: number, bytes: Uint8Array): void {
    this.#clean.set(block, bytes);
    if (this.#clean.size <= CACHED_NODES) return;
    for (const oldest of this.#clean.keys()) {
      this.#clean.delete(oldest);
      return;
    }
  }
}

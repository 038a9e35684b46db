/**
 * The metadata of one clone: how it is divided, and which regions are hydrated, on disk and in memory.
 *
 *     in memory   RegionBitmap: everything hydrated           DirtyRegions: what no commit has taken yet
 *     on disk     superblock ─► btree ─► array blocks, as of the last commit, which stay whole until the next one is done
 *
 * A commit has two phases, because a bit may become durable only after its region's data:
 *
 *     1. preCommit()          freezes the set of dirty regions; what is hydrated from here on waits for the next commit
 *     2. destination.flush()  by the caller: everything frozen in step 1 becomes durable
 *     3. commit()             a. frozen bits ORed into shadows of the array blocks; btree, space map, index shadowed
 *                             b. all of them written, then flushed
 *                             c. superblock written, then flushed: the commit point
 *
 * Before c. the old superblock points to the old tree, of which nothing was overwritten; so a crash leaves the old state or
 * the new. A failure at any point is final: which state is on disk is unknown until `abort()` has read it again, and
 * nothing more is written by this object. (Kernel: `dm-clone-metadata.c`.)
 *
 * Where step 2 tells that the destination has lost what was written to it, `rollback()` takes back every bit that is not on
 * disk, and it starts again with step 1.
 */
import assert from "node:assert";
import { MetadataError } from "../base/errors.ts";
import type { Geometry, Region, RegionRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { WORDS_PER_ARRAY_BLOCK, wordsInArrayBlock } from "../persistent-data/array.ts";
import type { BitsetLayout } from "../persistent-data/bitset.ts";
import {
  BITS_PER_ARRAY_BLOCK,
  readBitsetLayout,
  readBitsetWords,
  setBits,
  wordCountOf,
} from "../persistent-data/bitset.ts";
import { BlockManager } from "../persistent-data/block-manager.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";
import { SpaceMap } from "../persistent-data/space-map.ts";
import { type BlockSource, TransactionManager } from "../persistent-data/transaction-manager.ts";
import { BitsDigest } from "./descriptor-digest.ts";
import { DirtyRegions } from "./dirty-regions.ts";
import { formatBlocks } from "./format-image.ts";
import { metadataByteLength, minimumBlockCount } from "./metadata-size.ts";
import { RegionBitmap } from "./region-bitmap.ts";
import { encodeSuperblock, readSuperblock, type Superblock } from "./superblock.ts";

/** How often a read-only open starts again because a commit came in between. */
const LOAD_ATTEMPTS = 10;

/**
 * - `open`: nothing frozen
 * - `frozen`: between `preCommit` and `commit`; `#frozen` may not be empty
 * - `committing`: `commit` runs
 * - `failed`: a commit failed; what is on disk is unknown until `abort`
 * - `aborted`: read again after a failure; nothing is written any more
 */
type State = "open" | "frozen" | "committing" | "failed" | "aborted";

/** What `load` found on disk. */
interface Loaded {
  superblock: Superblock;
  /** Undefined where the metadata was opened read-only. */
  transaction: TransactionManager | undefined;
  hydratedCount: number;
  warnings: string[];
}

/** The metadata of a clone. The device stays the caller's, who closes it after this. */
export class CloneMetadata implements AsyncDisposable {
  readonly readOnly: boolean;
  readonly #device: BlockDevice;
  #hydrated: RegionBitmap;
  readonly #dirty = new DirtyRegions();
  #superblock: Superblock;
  #transaction: TransactionManager | undefined;
  #frozen: RegionRange[] = [];
  #state: State = "open";
  #hydratedCount: number;
  #committedCount: number;
  #warnings: string[];

  private constructor(device: BlockDevice, readOnly: boolean, hydrated: RegionBitmap, loaded: Loaded) {
    this.#device = device;
    this.readOnly = readOnly;
    this.#hydrated = hydrated;
    this.#superblock = loaded.superblock;
    this.#transaction = loaded.transaction;
    this.#hydratedCount = loaded.hydratedCount;
    this.#committedCount = loaded.hydratedCount;
    this.#warnings = loaded.warnings;
  }

  /**
   * Formats the first `blockCount` blocks of a device for a clone of which nothing is hydrated, byte for byte as the kernel
   * does (`__format_metadata`). A superblock that is there already is destroyed first, so that a crash on the way leaves no
   * old one pointing to new blocks.
   *
   * @throws {UsageError} where the blocks are fewer than commits need, or more than the device or the format has
   * @throws {DeviceError}
   */
  static async create(
    device: BlockDevice,
    { geometry, blockCount }: { geometry: Geometry; blockCount: number },
  ): Promise<void> {
    await formatBlocks(device, { geometry, blockCount, bits: null });
  }

  /**
   * Opens the metadata on a device. Opened read-only it may be in use by another process, whose commits are then noticed
   * and the load started again.
   *
   * @throws {MetadataError} where it is damaged, truncated, not formatted, or something else
   * @throws {DeviceError}
   */
  static async open(
    device: BlockDevice,
    { readOnly = false, signal }: { readOnly?: boolean; signal?: AbortSignal | undefined } = {},
  ): Promise<CloneMetadata> {
    if (!readOnly && device.readOnly)
      throw new TypeError(`"${device.name}" is read-only, its metadata opened for writing`);
    for (let attempt = 1; ; attempt++) {
      const { superblock, bytes } = await readSuperblock(device);
      try {
        const hydrated = new RegionBitmap(superblock.geometry.regionCount);
        const loaded = await load(device, superblock, hydrated, { readOnly, signal });
        if (!readOnly || !(await hasChanged(device, bytes)))
          return new CloneMetadata(device, readOnly, hydrated, loaded);
      } catch (error) {
        // Blocks that a commit reuses while they are read look damaged.
        if (!readOnly || !(error instanceof MetadataError) || !(await hasChanged(device, bytes))) throw error;
      }
      if (attempt === LOAD_ATTEMPTS) {
        throw new MetadataError(`The metadata of "${device.name}" changed ${attempt} times while it was read`, {
          block: 0,
        });
      }
    }
  }

  get geometry(): Geometry {
    return this.#superblock.geometry;
  }

  get regionCount(): number {
    return this.geometry.regionCount;
  }

  /** Regions hydrated, committed or not. */
  get hydratedCount(): number {
    return this.#hydratedCount;
  }

  /** Regions whose bit is on disk. */
  get committedCount(): number {
    return this.#committedCount;
  }

  /** Metadata blocks in use as of the last commit. */
  get usedBlocks(): number {
    return this.#superblock.spaceMap.allocatedCount;
  }

  /** Metadata blocks there are (`nr_blocks`). */
  get totalBlocks(): number {
    return this.#superblock.spaceMap.blockCount;
  }

  /** Bytes of the device that are metadata; what lies behind is not touched by it, nor by the kernel. */
  get byteLength(): number {
    return metadataByteLength(this.totalBlocks);
  }

  /** What was found odd but bearable on opening, one sentence each. */
  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /** Whether there is anything that the last finished commit does not hold. */
  get changed(): boolean {
    return !this.#dirty.isEmpty || this.#frozen.length > 0;
  }

  /** Whether a commit failed: nothing is written any more, and before `abort` nothing is known of the disk. */
  get failed(): boolean {
    return this.#state === "failed" || this.#state === "aborted";
  }

  isHydrated(region: Region): boolean {
    return this.#hydrated.has(region);
  }

  /** The first region from `from` on, below `end`, that is not hydrated, or `end`. */
  nextUnhydrated(from: Region, end: Region = this.regionCount): Region {
    return this.#hydrated.nextUnset(from, end);
  }

  /** The first region from `from` on, below `end`, that is hydrated, or `end`. */
  nextHydrated(from: Region, end: Region = this.regionCount): Region {
    return this.#hydrated.nextSet(from, end);
  }

  /** The digest of which regions are hydrated (`descriptor-digest.ts`). Takes a pass over all bits. */
  hydratedDigest(): string {
    const digest = new BitsDigest();
    const words = new Uint8Array(WORDS_PER_ARRAY_BLOCK * 8);
    for (let first = 0, key = 0; first < this.regionCount; first += BITS_PER_ARRAY_BLOCK, key++) {
      const piece = words.subarray(0, wordsInArrayBlock(key, wordCountOf(this.regionCount)) * 8);
      this.#hydrated.store(first, piece);
      digest.add(key, piece);
    }
    return digest.toString();
  }

  /** The runs of hydrated regions, ascending, as of the moment each is asked for. */
  hydratedRanges(): Iterable<RegionRange> {
    return this.#hydrated.ranges();
  }

  /**
   * Notes that the regions' data is on the destination, though not yet durably. Regions that are hydrated already stay as
   * they are. May be called at any time, also during a commit, which then does not include them.
   */
  markHydrated({ start, end }: RegionRange): void {
    this.#assertWritable();
    if (!(start >= 0 && start <= end && end <= this.regionCount)) {
      throw new RangeError(`regions ${start} … ${end} are not within 0 … ${this.regionCount}`);
    }
    for (let from = this.#hydrated.nextUnset(start, end); from < end; ) {
      const range = { start: from, end: this.#hydrated.nextSet(from, end) };
      this.#hydrated.setRange(range);
      this.#dirty.add(range);
      this.#hydratedCount += range.end - range.start;
      from = this.#hydrated.nextUnset(range.end, end);
    }
  }

  /**
   * Freezes the set of regions that the next `commit` makes durable. Between the two the caller must flush the destination:
   * no bit may be durable before its region's data.
   */
  preCommit(): void {
    this.#assertWritable();
    assert(this.#state === "open", `preCommit while the previous commit is ${this.#state}`);
    this.#frozen = this.#dirty.freeze();
    this.#state = "frozen";
  }

  /**
   * Makes the frozen regions durable; writes nothing at all where there are none.
   *
   * @throws {DeviceError | MetadataError | CloneError} and is `failed` from then on: only `abort` and disposal are left
   */
  async commit(): Promise<void> {
    assert(this.#state === "frozen", `commit without preCommit (${this.#state})`);
    this.#state = "committing";
    try {
      if (this.#frozen.length > 0) await this.#writeFrozen();
    } catch (error) {
      this.#state = "failed";
      throw error;
    }
    for (const { start, end } of this.#frozen) this.#committedCount += end - start;
    this.#frozen = [];
    this.#state = "open";
  }

  /**
   * Takes back every bit that no commit has made durable, and ends a freeze: what they vouch for was lost with the
   * destination's cache. During `commit` the frozen ones stay, whose data was flushed before. Returns how many they were.
   */
  rollback(): number {
    assert(!this.readOnly, "rollback of metadata that was opened read-only");
    const taken = [this.#dirty.freeze()];
    if (this.#state !== "committing") {
      taken.push(this.#frozen);
      this.#frozen = [];
    }
    if (this.#state === "frozen") this.#state = "open";
    let count = 0;
    for (const ranges of taken) {
      for (const range of ranges) {
        this.#hydrated.clearRange(range);
        count += range.end - range.start;
      }
    }
    this.#hydratedCount -= count;
    assert(this.#hydratedCount >= this.#committedCount, "more bits were taken back than were not durable");
    return count;
  }

  /**
   * Throws away everything that is not on disk and reads the metadata again. After a failed commit the result can only be
   * read: a device that lost a write once is not to be trusted with another.
   *
   * @throws {MetadataError | DeviceError} and is `failed` then
   */
  async abort(): Promise<void> {
    assert(this.#state !== "committing", "abort during a commit");
    const after = this.failed ? "aborted" : "open";
    this.#state = "failed";
    this.#dirty.freeze();
    this.#frozen = [];
    // The same memory again: a second bitmap could be 256 MiB.
    this.#hydrated.clear();
    this.#hydratedCount = 0;
    this.#committedCount = 0;
    const { superblock } = await readSuperblock(this.#device);
    const { size, regionSize } = superblock.geometry;
    if (size !== this.geometry.size || regionSize !== this.geometry.regionSize) {
      throw new MetadataError(`The metadata of "${this.#device.name}" was replaced by that of another clone`, {
        block: 0,
      });
    }
    const loaded = await load(this.#device, superblock, this.#hydrated, { readOnly: this.readOnly });
    this.#superblock = superblock;
    this.#transaction = loaded.transaction;
    this.#hydratedCount = loaded.hydratedCount;
    this.#committedCount = loaded.hydratedCount;
    this.#warnings = loaded.warnings;
    this.#state = after;
  }

  /** Lets go; what no commit has made durable is lost. A running commit must have settled. */
  async [Symbol.asyncDispose](): Promise<void> {
    assert(this.#state !== "committing", "closed during a commit");
    this.#transaction = undefined;
    this.#hydrated = new RegionBitmap(0); // whoever still has this object need not keep 256 MiB for it
  }

  async #writeFrozen(): Promise<void> {
    const transaction = this.#transaction;
    assert(transaction !== undefined, "commit of metadata that is closed");
    const { geometry } = this;
    const bitsetRoot = await setBits(transaction, this.#superblock.bitsetRoot, geometry.regionCount, this.#frozen);
    await transaction.preCommit();
    const superblock = { geometry, bitsetRoot, spaceMap: transaction.spaceMap.root };
    await transaction.commit(encodeSuperblock(superblock));
    this.#superblock = superblock;
  }

  #assertWritable(): void {
    if (this.readOnly) throw new TypeError(`the metadata of "${this.#device.name}" was opened read-only`);
    assert(!this.failed, "a commit failed: the metadata takes no more changes");
  }
}

/** Reads everything a superblock points to; `hydrated` must be clear. */
async function load(
  device: BlockDevice,
  superblock: Superblock,
  hydrated: RegionBitmap,
  { readOnly, signal }: { readOnly: boolean; signal?: AbortSignal | undefined },
): Promise<Loaded> {
  const { regionCount } = superblock.geometry;
  const { blockCount, allocatedCount } = superblock.spaceMap;
  const blocks = new BlockManager(device, { blockCount });
  const source: BlockSource = { name: device.name, blockCount, read: (block, type) => blocks.read(block, type) };

  const layout = await readBitsetLayout(source, superblock.bitsetRoot, regionCount);
  let hydratedCount = 0;
  const addWords = (firstRegion: Region, words: Uint8Array): void => {
    hydratedCount += hydrated.load(firstRegion, words);
  };
  await readBitsetWords(blocks, layout, regionCount, addWords, signal);

  const warnings: string[] = [];
  const minimum = minimumBlockCount(regionCount, layout.nodes.length);
  if (blockCount < minimum) {
    warnings.push(
      `The metadata has ${blockCount} blocks, fewer than the ${minimum} it needs: a commit may find no space`,
    );
  }
  if (readOnly) {
    if (allocatedCount > blockCount) {
      warnings.push(`The superblock says ${allocatedCount} of ${blockCount} metadata blocks are in use`);
    }
    return { superblock, transaction: undefined, hydratedCount, warnings };
  }
  const spaceMap = await SpaceMap.load(source, superblock.spaceMap);
  warnings.push(...spaceMap.warnings, ...checkCounts(spaceMap, superblock, layout, device.name));
  // Nothing in it is needed as long as no count is above 2, and the kernel never looks; but damage is not carried along.
  await blocks.read(superblock.spaceMap.refCountRoot, "node");
  const corrected = { ...superblock, spaceMap: spaceMap.root };
  return { superblock: corrected, transaction: new TransactionManager(blocks, spaceMap), hydratedCount, warnings };
}

/**
 * Checks that the space map protects every block in use before anything is allocated from it: a live block that it calls
 * free would be overwritten by the next commit. Blocks in use that nothing points to are merely lost, and left alone; a
 * count above 1 is only wrong, and goes with the block when that is freed. Returns what was found so, sentences.
 */
function checkCounts(spaceMap: SpaceMap, superblock: Superblock, layout: BitsetLayout, name: string): string[] {
  const seen = new Uint8Array(spaceMap.blockCount);
  let overcounted = 0;
  const check = (block: number): void => {
    const count = spaceMap.count(block);
    if (count === 0 || seen[block] === 1) {
      throw new MetadataError(
        count === 0
          ? `Block ${block} of "${name}" is in use, but the space map calls it free`
          : `Block ${block} of "${name}" is used twice`,
        { block, hint: "`clone repair` makes its counts anew; nothing is to be written to it before." },
      );
    }
    seen[block] = 1;
    if (count > 1) overcounted++;
  };
  for (const block of [0, superblock.spaceMap.refCountRoot, ...spaceMap.ownBlocks(), ...layout.nodes]) check(block);
  for (const block of layout.arrayBlocks) check(block);
  return overcounted === 0 ? [] : [`The space map counts ${overcounted} blocks more than once that are used once`];
}

async function hasChanged(device: BlockDevice, before: Uint8Array): Promise<boolean> {
  const now = new Uint8Array(BLOCK_SIZE);
  await device.read(0, now);
  return Buffer.compare(before, now) !== 0;
}

/**
 * The bits that the metadata proves: those in array blocks that are sound, stand at their own place, hold exactly the
 * words that their key asks for, and are reached from the superblock through sound nodes. What cannot be reached so is
 * lost, key by key; a block that two keys name is lost under both, since it does not say whose it is.
 */
import type { Geometry } from "../base/geometry.ts";
import { type Block, type BlockReader, readUint64 } from "./check-blocks.ts";
import type { BlockReferences } from "./check-references.ts";
import { FindingList } from "./check-report.ts";
import { TreeChecker } from "./check-tree.ts";
import { RegionBitmap } from "./region-bitmap.ts";
import { arrayBlockCount, bitsOf, REGIONS_PER_BLOCK, regionsUnder, wordsIn, wordsUnder } from "./repair-array.ts";

/** In place of a block number: the tree has no such key that can be reached; a sound leaf names a block that is of no use. */
const UNREACHED = -1;
const USELESS = -2;
/** Above any key: 2^31 regions take 65923 array blocks. */
const KEY_LIMIT = 2 ** 17;

/** What could be read of a bitset, and what could not. */
export class ProvenBits {
  readonly geometry: Geometry;
  /** The bits proved so far; those of lost keys are clear. */
  readonly hydrated: RegionBitmap;
  /** Array block of each key; negative where it is lost. */
  readonly #blocks: Int32Array;
  /** The block that a sound leaf names under each key, of use or not; negative where none does. */
  readonly #named: Int32Array;
  /** The sound leaf that has each key; negative where none has. */
  readonly #leaves: Int32Array;
  /** Sound leaves that name a block that is not there, or is in use elsewhere. */
  readonly #astray = new Set<number>();

  constructor(geometry: Geometry) {
    this.geometry = geometry;
    this.hydrated = new RegionBitmap(geometry.regionCount);
    this.#blocks = new Int32Array(arrayBlockCount(geometry)).fill(UNREACHED);
    this.#named = Int32Array.from(this.#blocks);
    this.#leaves = Int32Array.from(this.#blocks);
  }

  /** Walks the tree at `root` and reads all it leads to. @throws the signal's reason */
  async read(reader: BlockReader, references: BlockReferences, root: number): Promise<void> {
    await this.#walk(reader, references, root);
    await this.eachBlock(reader, (key, block) => {
      if (block === null) this.#blocks[key] = USELESS;
      else this.prove(key, bitsOf(block, wordsUnder(key, this.geometry)));
    });
  }

  /** Calls `visit` with each key that is not lost and its block; null where that is not sound. */
  async eachBlock(reader: BlockReader, visit: (key: number, block: Block | null) => void): Promise<void> {
    const places: number[] = [];
    this.#blocks.forEach((block, key) => {
      if (block >= 0) places.push(block * KEY_LIMIT + key);
    });
    const sorted = Float64Array.from(places).sort(); // by block, the key riding along
    await reader.each(
      sorted.map((place) => Math.floor(place / KEY_LIMIT)),
      (block, i) => {
        const key = (sorted[i] as number) % KEY_LIMIT;
        const isSound = typeof block !== "string" && wordsIn(block) === wordsUnder(key, this.geometry);
        visit(key, isSound ? block : null);
      },
    );
  }

  /** Adds bits of a lost key, or all of a read one. The place must be clear. */
  prove(key: number, bits: Uint32Array): void {
    this.hydrated.load(key * REGIONS_PER_BLOCK, new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength));
  }

  /** Keys whose block no sound leaf names. */
  get unreachedKeys(): number[] {
    return this.#keysThat((block) => block === UNREACHED);
  }

  /** Keys whose bits are not known, for whatever reason. */
  get lostKeys(): number[] {
    return this.#keysThat((block) => block < 0);
  }

  /** All other keys. */
  get knownKeys(): number[] {
    return this.#keysThat((block) => block >= 0);
  }

  /** All known keys of each leaf that is such a block itself, or names one, or one that cannot be its own. */
  keysOfLeaves(isSuch: (block: number) => boolean): number[] {
    const leaves = new Set(this.#astray);
    this.#leaves.forEach((leaf, key) => {
      const block = this.#named[key] as number;
      if (leaf >= 0 && (isSuch(leaf) || (block >= 0 && isSuch(block)))) leaves.add(leaf);
    });
    return this.knownKeys.filter((key) => leaves.has(this.#leaves[key] as number));
  }

  /** Takes a block for that of a lost key, which is then not lost any more. */
  settle(key: number, block: Block): void {
    this.#blocks[key] = block.number;
    this.prove(key, bitsOf(block, wordsUnder(key, this.geometry)));
  }

  /** The block that a sound leaf names under a key, whatever stands there; undefined where none does. */
  placeOf(key: number): number | undefined {
    const block = this.#named[key] ?? UNREACHED;
    return block < 0 ? undefined : block;
  }

  /** The bits of a key, as far as they are proved. A copy. */
  bitsOf(key: number): Uint32Array {
    const bits = new Uint32Array(2 * wordsUnder(key, this.geometry));
    this.hydrated.store(key * REGIONS_PER_BLOCK, new Uint8Array(bits.buffer));
    return bits;
  }

  /** Takes these for the bits of a key, which is then not lost any more. */
  replace(key: number, bits: Uint32Array): void {
    this.lose(key);
    this.prove(key, bits);
    this.#blocks[key] = 0; // no array block's number
  }

  /** Nothing of a key is proved. */
  lose(key: number): void {
    this.hydrated.clearRange(regionsUnder(key, key + 1, this.geometry));
    this.#blocks[key] = USELESS;
  }

  #keysThat(holds: (block: number) => boolean): number[] {
    const keys: number[] = [];
    this.#blocks.forEach((block, key) => {
      if (holds(block)) keys.push(key);
    });
    return keys;
  }

  async #walk(reader: BlockReader, references: BlockReferences, root: number): Promise<void> {
    const twice = new Set<number>();
    const tree = new TreeChecker(reader, references, new FindingList(), {
      structure: "bitset node",
      root,
      leafValueSize: 8,
      onEntry: (key, leaf, offset) => {
        if (key >= this.#blocks.length) return; // surplus: the kernel has no use for it, and nor have we
        this.#leaves[key] = leaf.number;
        const block = readUint64(leaf.view, offset);
        const refused = references.enter(block);
        if (refused !== null) twice.add(block);
        this.#blocks[key] = refused === null ? block : USELESS;
        if (refused === null) this.#named[key] = block;
        else this.#astray.add(leaf.number);
      },
      onLost: () => {},
      describeLoss: () => "",
    });
    await tree.run();
    if (twice.size === 0) return;
    this.#blocks.forEach((block, key) => {
      if (twice.has(block)) this.#blocks[key] = USELESS;
    });
  }
}

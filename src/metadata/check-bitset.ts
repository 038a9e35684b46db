/**
 * The hydrated bits, as the checker reads them (format section 6): a tree that maps 0, 1, 2, … to array blocks, each of
 * which holds 509 words of 64 regions.
 *
 *     0 csum  4 max_entries  8 nr_entries  12 value_size  16 blocknr  24 … words; region r is bit r mod 64 of word r / 64
 */
import { type Block, type BlockReader, explainBlock, readUint64 } from "./check-blocks.ts";
import type { BlockReferences } from "./check-references.ts";
import type { FindingList } from "./check-report.ts";
import { TreeChecker } from "./check-tree.ts";
import { BitsDigest } from "./descriptor-digest.ts";

const WORDS_PER_BLOCK = 509;
const REGIONS_PER_BLOCK = 64 * WORDS_PER_BLOCK;
/** In place of an array block's number: the tree has no such key; the part of the tree that may have it is unreadable. */
const MISSING = -1;
const LOST = -2;
/** Above any key: 2^31 regions take 65923 array blocks. */
const KEY_LIMIT = 2 ** 17;

/** Checks the bitset's tree and its array blocks. */
export class BitsetChecker {
  readonly #reader: BlockReader;
  readonly #references: BlockReferences;
  readonly #fatal: FindingList;
  readonly #warnings: FindingList;
  readonly #regions: number;
  /** Block of each array block, or MISSING or LOST. */
  readonly #blocks: Int32Array;
  #hydrated = 0;
  readonly #digest = new BitsDigest();
  #unreadable = false;
  /** Sound nodes of the tree. */
  nodeCount = 0;

  constructor(
    reader: BlockReader,
    references: BlockReferences,
    regions: number,
    { fatal, warnings }: { fatal: FindingList; warnings: FindingList },
  ) {
    this.#reader = reader;
    this.#references = references;
    this.#fatal = fatal;
    this.#warnings = warnings;
    this.#regions = regions;
    this.#blocks = new Int32Array(Math.ceil(Math.ceil(regions / 64) / WORDS_PER_BLOCK)).fill(MISSING);
  }

  /** Array blocks that the regions take. */
  get arrayBlockCount(): number {
    return this.#blocks.length;
  }

  /** Set bits, or null where an array block is missing or unreadable. */
  get hydratedRegions(): number | null {
    return this.#unreadable ? null : this.#hydrated;
  }

  /** Digest of which regions are hydrated, or null where an array block is missing or unreadable. */
  get hydratedDigest(): string | null {
    return this.#unreadable ? null : this.#digest.toString();
  }

  async check(root: number): Promise<void> {
    await this.#walkTree(root);
    this.#reportMissing();
    await this.#checkArrayBlocks();
  }

  async #walkTree(root: number): Promise<void> {
    const tree = new TreeChecker(this.#reader, this.#references, this.#fatal, {
      structure: "bitset node",
      root,
      leafValueSize: 8,
      onEntry: (key, leaf, offset) => {
        const refused = this.#references.enter(readUint64(leaf.view, offset));
        const surplus = key >= this.#blocks.length;
        if (refused !== null) {
          this.#fatal.add("bitset node", leaf.number, `key ${key}: ${refused}${this.#describeLoss(key, key + 1)}`);
          this.#lose(key, key + 1);
        } else if (surplus) {
          this.#fatal.add(
            "bitset node",
            leaf.number,
            `key ${key} is surplus, the last one needed is ${this.#blocks.length - 1}`,
          );
        } else {
          this.#blocks[key] = readUint64(leaf.view, offset);
        }
      },
      onLost: (low, high) => this.#lose(low, high),
      describeLoss: (low, high) => this.#describeLoss(low, high),
    });
    await tree.run();
    this.nodeCount = tree.nodeCount;
  }

  #lose(low: number, high: number): void {
    this.#unreadable = true;
    this.#blocks.fill(LOST, Math.min(low, this.#blocks.length), Math.min(high, this.#blocks.length));
  }

  #describeLoss(low: number, high: number): string {
    const start = low * REGIONS_PER_BLOCK;
    const end = Math.min(high * REGIONS_PER_BLOCK, this.#regions);
    return start >= end ? "" : `; whether regions ${start} to ${end - 1} are hydrated is unknown`;
  }

  /** One finding for each run of keys that no leaf has. */
  #reportMissing(): void {
    const keys = this.#blocks.length;
    for (let start = this.#blocks.indexOf(MISSING); start !== -1 && start < keys; ) {
      let end = start + 1;
      while (end < keys && this.#blocks[end] === MISSING) end++;
      this.#unreadable = true;
      this.#references.complete = false;
      const missing = end === start + 1 ? `key ${start} is missing` : `keys ${start} to ${end - 1} are missing`;
      this.#fatal.add("bitset", null, `${missing} from the tree${this.#describeLoss(start, end)}`);
      start = this.#blocks.indexOf(MISSING, end);
    }
  }

  async #checkArrayBlocks(): Promise<void> {
    const places: number[] = [];
    this.#blocks.forEach((block, key) => {
      if (block >= 0) places.push(block * KEY_LIMIT + key);
    });
    const sorted = Float64Array.from(places).sort(); // by block, the key riding along
    const blocks = sorted.map((place) => Math.floor(place / KEY_LIMIT));
    await this.#reader.each(blocks, (block, i) => {
      const key = (sorted[i] as number) % KEY_LIMIT;
      const problem =
        typeof block === "string" ? block : (explainBlock(block, "array block") ?? this.#explain(block, key));
      if (typeof block !== "string" && problem === null) return this.#countBits(block, key);
      this.#unreadable = true;
      this.#fatal.add("array block", blocks[i] as number, `${problem}${this.#describeLoss(key, key + 1)}`);
    });
  }

  /** Words that array block `key` has to hold: all it has room for, but in the last one. */
  #wordsIn(key: number): number {
    return Math.min(Math.ceil(this.#regions / 64) - key * WORDS_PER_BLOCK, WORDS_PER_BLOCK);
  }

  #explain({ view }: Block, key: number): string | null {
    const maxEntries = view.getUint32(4, true);
    if (maxEntries !== WORDS_PER_BLOCK) return `room for ${maxEntries} words is claimed, not ${WORDS_PER_BLOCK}`;
    const valueSize = view.getUint32(12, true);
    if (valueSize !== 8) return `value size is ${valueSize}, not 8`;
    const entries = view.getUint32(8, true);
    if (entries !== this.#wordsIn(key)) return `it holds ${entries} words, not ${this.#wordsIn(key)}`;
    return null;
  }

  #countBits({ number, bytes }: Block, key: number): void {
    const words = this.#wordsIn(key);
    const halves = new Uint32Array(bytes.buffer, bytes.byteOffset + 24, 2 * words);
    for (const half of halves) if (half !== 0) this.#hydrated += countOnes(half);
    const inUse = Uint8Array.from(bytes.subarray(24, 24 + 8 * words));
    let stray = 0;
    const end = this.#regions - key * REGIONS_PER_BLOCK; // of the last block, within it
    for (let bit = end; bit < words * 64; bit++) {
      const byte = inUse[Math.floor(bit / 8)] as number;
      if ((byte >> (bit % 8)) % 2 === 0) continue;
      inUse[Math.floor(bit / 8)] = byte - 2 ** (bit % 8);
      stray++;
    }
    this.#digest.add(key, inUse);
    this.#hydrated -= stray;
    if (stray > 0) {
      const bits = stray === 1 ? "1 bit beyond the last region is" : `${stray} bits beyond the last region are`;
      this.#warnings.add("array block", number, `${bits} set; the kernel ignores and keeps this`);
    }
  }
}

/** Set bits in a 32-bit word. */
function countOnes(word: number): number {
  let sum = word - ((word >>> 1) & 0x55555555);
  sum = (sum & 0x33333333) + ((sum >>> 2) & 0x33333333);
  return Math.imul((sum + (sum >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/**
 * The space map, as the checker reads it (format section 4): the index block, the bitmaps it names and the tree of
 * counts above 2, then all counts against the references that the trees were found to make.
 *
 *     index block   16 + 16 i  blocknr of bitmap i    24 + 16 i  nr_free    28 + 16 i  none_free_before
 *     bitmap block  16 …  four 2-bit entries a byte, low pair first; the low bit of a pair is the high bit of the count
 */
import assert from "node:assert";
import { type Block, type BlockReader, explainBlock, readUint64 } from "./check-blocks.ts";
import type { BlockReferences } from "./check-references.ts";
import type { FindingList } from "./check-report.ts";
import type { Superblock } from "./check-superblock.ts";
import { TreeChecker } from "./check-tree.ts";

const ENTRIES_PER_BITMAP = 16320;
const MAX_BITMAPS = 255;
/** Stands for the count of a block whose bitmap cannot be read. */
const UNKNOWN = 255;
const IN_TREE = 3;

/** Checks the space map. Its own blocks are entered into `references`; all others must be there before `compare()`. */
export class SpaceMapChecker {
  readonly #reader: BlockReader;
  readonly #references: BlockReferences;
  readonly #fatal: FindingList;
  readonly #warnings: FindingList;
  readonly #superblock: Superblock;
  readonly #blockCount: number;
  /** 2-bit counts as stored, or UNKNOWN. */
  readonly #counts: Uint8Array;
  /** Where the bitmap with each count was found. */
  readonly #bitmapBlocks: Float64Array;
  /** Counts above 2, by block; made only where the tree has any, at most 16 MB. */
  #treeCounts: Uint32Array | null = null;

  constructor(
    reader: BlockReader,
    references: BlockReferences,
    superblock: Superblock,
    { fatal, warnings }: { fatal: FindingList; warnings: FindingList },
  ) {
    this.#reader = reader;
    this.#references = references;
    this.#superblock = superblock;
    this.#fatal = fatal;
    this.#warnings = warnings;
    this.#blockCount = references.counts.length;
    this.#counts = new Uint8Array(this.#blockCount).fill(UNKNOWN);
    this.#bitmapBlocks = new Float64Array(this.bitmapCount).fill(-1);
  }

  /** Bitmap blocks that the managed blocks take. */
  get bitmapCount(): number {
    return Math.ceil(this.#blockCount / ENTRIES_PER_BITMAP);
  }

  /** Blocks with a count above 0, or null where a bitmap cannot be read. */
  get usedBlocks(): number | null {
    let used = 0;
    for (const count of this.#counts) {
      if (count === UNKNOWN) return null;
      if (count !== 0) used++;
    }
    return used;
  }

  /** Reads the whole space map. */
  async read(): Promise<void> {
    const { bitmapRoot } = this.#superblock;
    const refused = this.#references.enter(bitmapRoot);
    if (refused !== null) this.#fatal.add("superblock", 0, `root of the space map: ${refused}`);
    else await this.#readIndex(bitmapRoot);
    await this.#readTree();
  }

  async #readIndex(number: number): Promise<void> {
    const index = await this.#reader.read(number);
    const problem = typeof index === "string" ? index : explainBlock(index, "index block");
    if (typeof index === "string" || problem !== null) {
      this.#references.complete = false;
      this.#fatal.add("index block", number, `${problem}; which blocks are in use is unknown`);
      return;
    }
    const bitmaps: { bitmap: number; block: number }[] = [];
    for (let bitmap = 0; bitmap < this.bitmapCount; bitmap++) {
      const block = readUint64(index.view, 16 + 16 * bitmap);
      const reason = this.#references.enter(block);
      if (reason === null) bitmaps.push({ bitmap, block });
      else this.#fatal.add("index block", number, `entry ${bitmap}: ${reason}`);
    }
    for (let entry = this.bitmapCount; entry < MAX_BITMAPS; entry++) {
      const used = readUint64(index.view, 16 + 16 * entry) !== 0 || readUint64(index.view, 24 + 16 * entry) !== 0;
      if (used)
        this.#warnings.add(
          "index block",
          number,
          `entry ${entry} is not zero, though only ${this.bitmapCount} are needed`,
        );
    }
    bitmaps.sort((a, b) => a.block - b.block);
    await this.#reader.each(
      bitmaps.map(({ block }) => block),
      (block, i) => {
        const found = bitmaps[i];
        assert(found);
        const reason = typeof block === "string" ? block : explainBlock(block, "bitmap block");
        if (typeof block !== "string" && reason === null) this.#readBitmap(block, found.bitmap, index);
        else this.#fatal.add("bitmap block", found.block, `${reason}; ${this.#describeSpan(found.bitmap)} is unknown`);
      },
    );
  }

  #describeSpan(bitmap: number): string {
    const start = bitmap * ENTRIES_PER_BITMAP;
    return `which of the blocks ${start} to ${Math.min(start + ENTRIES_PER_BITMAP, this.#blockCount) - 1} are in use`;
  }

  #readBitmap({ number, bytes }: Block, bitmap: number, index: Block): void {
    const base = bitmap * ENTRIES_PER_BITMAP;
    this.#bitmapBlocks[bitmap] = number;
    let used = 0;
    let firstFree = ENTRIES_PER_BITMAP;
    let stray = 0;
    for (let entry = 0; entry < ENTRIES_PER_BITMAP; entry++) {
      const pair = ((bytes[16 + Math.floor(entry / 4)] as number) >> (2 * (entry % 4))) & 3;
      const count = ((pair & 1) << 1) | (pair >> 1);
      if (count !== 0) used++;
      else if (firstFree === ENTRIES_PER_BITMAP) firstFree = entry;
      if (base + entry < this.#blockCount) this.#counts[base + entry] = count;
      else if (count !== 0) stray++;
    }
    if (stray > 0) {
      this.#warnings.add("bitmap block", number, `${stray} entries beyond the last managed block are not zero`);
    }
    const free = index.view.getUint32(24 + 16 * bitmap, true);
    if (free !== ENTRIES_PER_BITMAP - used) {
      const effect = free === 0 ? "; the kernel will not allocate from it and may run out of space" : "";
      const wrong = `entry ${bitmap} counts ${free} free entries, its bitmap has ${ENTRIES_PER_BITMAP - used}`;
      this.#warnings.add("index block", index.number, `${wrong}${effect}`);
    }
    const hint = index.view.getUint32(28 + 16 * bitmap, true);
    if (hint > firstFree) {
      const wrong = `entry ${bitmap} says that nothing is free before ${hint}, but ${firstFree} is`;
      this.#warnings.add("index block", index.number, `${wrong}; the kernel leaves these blocks unused`);
    }
  }

  /** The tree of counts above 2. In metadata of dm-clone it is one empty leaf, always. */
  async #readTree(): Promise<void> {
    let foreign = 0;
    const checker = new TreeChecker(this.#reader, this.#references, this.#fatal, {
      structure: "reference-count node",
      root: this.#superblock.referenceCountRoot,
      leafValueSize: 4,
      onEntry: (key, leaf, offset) => {
        if (key >= this.#blockCount) {
          foreign++;
          return;
        }
        this.#treeCounts ??= new Uint32Array(this.#blockCount);
        this.#treeCounts[key] = leaf.view.getUint32(offset, true);
        if (this.#counts[key] !== IN_TREE && this.#counts[key] !== UNKNOWN) {
          this.#warnings.add(
            "reference-count node",
            leaf.number,
            `block ${key} is listed, but its bitmap entry is not 3`,
          );
        }
      },
      onLost: () => {},
      describeLoss: () => "; counts above 2 are unknown",
    });
    await checker.run();
    if (foreign > 0) {
      const root = this.#superblock.referenceCountRoot;
      this.#warnings.add("reference-count node", root, `${foreign} entries are for blocks beyond the last managed one`);
    }
  }

  /** Holds the counts against the references; call when everything has been walked. */
  compare(): void {
    this.#compareCounts();
    const used = this.usedBlocks;
    const { allocated } = this.#superblock;
    if (used !== null && used !== allocated) {
      this.#warnings.add("superblock", 0, `${allocated} allocated blocks are recorded, the bitmaps count ${used}`);
    }
  }

  /** One finding for each run of neighbours with the same fault under the same bitmap. */
  #compareCounts(): void {
    let unreached = 0;
    let runStart = 0;
    let runFault: Fault | null = null;
    for (let block = 0; block <= this.#blockCount; block++) {
      let fault = block < this.#blockCount ? this.#faultOf(block) : null;
      if (fault === "leaked" && !this.#references.complete) {
        unreached++;
        fault = null;
      }
      if (fault === runFault && block % ENTRIES_PER_BITMAP !== 0) continue;
      if (runFault !== null) this.#reportRun(runFault, runStart, block - 1);
      runStart = block;
      runFault = fault;
    }
    if (unreached > 0) {
      const what = unreached === 1 ? "1 block is" : `${unreached} blocks are`;
      this.#warnings.add(
        "space map",
        null,
        `${what} counted in use but not reached, leaked or cut off by the damage found`,
      );
    }
  }

  #faultOf(block: number): Fault | null {
    const references = this.#references.counts[block] as number;
    const stored = this.#counts[block] as number;
    if (stored === UNKNOWN) return null;
    if (stored === IN_TREE && (this.#treeCounts?.[block] ?? 0) < IN_TREE) return "uncounted";
    if (references === 0) return stored === 0 ? null : "leaked";
    if (stored === 0) return "live";
    // A block reached twice has been reported where the second reference stands.
    return stored > references ? "overcounted" : null;
  }

  #reportRun(fault: Fault, first: number, last: number): void {
    const bitmap = this.#bitmapBlocks[Math.floor(first / ENTRIES_PER_BITMAP)] as number;
    const one = first === last;
    const run = one ? `block ${first} is` : `blocks ${first} to ${last} are`;
    switch (fault) {
      case "live":
        this.#fatal.add(
          "bitmap block",
          bitmap,
          `${run} in use but counted free; the kernel may overwrite ${one ? "it" : "them"}`,
        );
        break;
      case "leaked":
        this.#warnings.add(
          "bitmap block",
          bitmap,
          `${run} counted in use but nothing refers to ${one ? "it" : "them"}: leaked`,
        );
        break;
      case "overcounted":
        this.#warnings.add(
          "bitmap block",
          bitmap,
          `${run} in use once but counted more often; the kernel will never free ${one ? "it" : "them"}`,
        );
        break;
      case "uncounted":
        this.#warnings.add(
          "bitmap block",
          bitmap,
          `${run} counted as 3 or more, but no such count is in the reference-count tree`,
        );
        break;
    }
  }
}

type Fault = "live" | "leaked" | "overcounted" | "uncounted";

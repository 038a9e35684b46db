/**
 * A look at every block of a damaged metadata device: what each says it is, by itself. Three bytes are kept per block, 12 MB
 * at most. What they say is not proof of anything; see `repair.ts`.
 */
import { type BlockReader, identifyBlock, isZero } from "./check-blocks.ts";
import { wordsIn } from "./repair-array.ts";

const KINDS = ["blank", "damaged", "superblock", "btree node", "array block", "index block", "bitmap block"] as const;

/** `damaged`: not readable, or neither zero nor a sound block that stands at its own place. */
export type BlockKind = (typeof KINDS)[number];

/** What the blocks from 1 on are, as far as the device reaches. */
export class BlockSurvey {
  readonly #kinds: Uint8Array;
  readonly #words: Uint16Array;

  private constructor(blockCount: number) {
    this.#kinds = new Uint8Array(blockCount);
    this.#words = new Uint16Array(blockCount);
  }

  /** Reads all of the first `blockCount` blocks. @throws the signal's reason */
  static async take(reader: BlockReader, blockCount: number): Promise<BlockSurvey> {
    const survey = new BlockSurvey(blockCount);
    const numbers = Uint32Array.from({ length: Math.max(0, blockCount - 1) }, (_, i) => i + 1);
    await reader.each(numbers, (block, i) => {
      if (typeof block === "string") {
        survey.#set(i + 1, "damaged");
        return;
      }
      const { type, blockNumber } = identifyBlock(block.bytes, block.view);
      if (type !== null && blockNumber === block.number) survey.#set(block.number, type);
      else survey.#set(block.number, isZero(block.bytes) ? "blank" : "damaged");
      if (type === "array block") survey.#words[block.number] = wordsIn(block);
    });
    return survey;
  }

  get blockCount(): number {
    return this.#kinds.length;
  }

  kindOf(block: number): BlockKind {
    return KINDS[this.#kinds[block] ?? 0] ?? "blank";
  }

  /** Words that a sound array block holds; 0 where the block is none. */
  wordsOf(block: number): number {
    return this.#words[block] ?? 0;
  }

  /** The blocks of a kind, ascending; at most `most`, the last ones. */
  blocksOf(kind: BlockKind, most = Number.POSITIVE_INFINITY): number[] {
    const wanted = KINDS.indexOf(kind);
    const blocks: number[] = [];
    for (let block = this.#kinds.length - 1; block > 0 && blocks.length < most; block--) {
      if (this.#kinds[block] === wanted) blocks.push(block);
    }
    return blocks.reverse();
  }

  #set(block: number, kind: BlockKind): void {
    this.#kinds[block] = KINDS.indexOf(kind);
  }
}

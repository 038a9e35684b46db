import assert from "node:assert";

/**
 * Which blocks the trees reach, and how often: one byte per managed block, at most 4 MB. The space map's counts are held
 * against it in the end.
 */
export class BlockReferences {
  /** References found to each block, stopping at 255. */
  readonly counts: Uint8Array;
  /** False once a part of a tree could not be followed: what it refers to is then unknown. */
  complete = true;

  /** @param blockCount managed blocks */
  constructor(blockCount: number) {
    this.counts = new Uint8Array(blockCount);
    this.counts[0] = 1; // the superblock, which nothing points to
  }

  /** Notes a reference. Returns null where the block may be entered, else why not; the walk is then incomplete. */
  enter(block: number): string | null {
    if (!(block >= 1 && block < this.counts.length)) {
      this.complete = false;
      const named = Number.isFinite(block) ? `block ${block}` : "a block number beyond 2^53";
      return `it points to ${named}, outside 1 to ${this.counts.length - 1}`;
    }
    const before = this.counts[block];
    assert(before !== undefined);
    this.counts[block] = Math.min(before + 1, 255);
    if (before === 0) return null;
    this.complete = false;
    return `it points to block ${block}, which is already in use elsewhere`;
  }
}

/**
 * Sectors that tell who wrote them: each holds the number of the write it comes from and its own place, spread over all of its
 * bytes. So a sector that was read can be recognized, and one that is torn, displaced or made up is none at all.
 */

/** Bytes of what a disk writes whole. */
export const SECTOR = 512;
/** The stamp of a sector of zeros. */
export const ZEROS = 0;
const WORDS = SECTOR / 4;

/** Fills `bytes`, whole sectors from sector `first` of the disk on, with the stamp of a write, a number above 0. */
export function stampSectors(bytes: Buffer, first: number, stamp: number): Buffer {
  const words = wordsOf(bytes);
  for (let at = 0; at < words.length; at += WORDS) stampSector(words, at, first + at / WORDS, stamp);
  return bytes;
}

/** Which write the sector at `at` of `bytes`, sector `sector` of the disk, comes from; undefined where it is none. */
export function stampOf(bytes: Buffer, at: number, sector: number): number | undefined {
  const words = wordsOf(bytes.subarray(at, at + SECTOR));
  const stamp = words[0] ?? 0;
  const expected = new Uint32Array(WORDS);
  if (stamp !== ZEROS) stampSector(expected, 0, sector, stamp);
  return words.every((word, index) => word === expected[index]) ? stamp : undefined;
}

/** Whether each word of the sector at `at` of `bytes` comes from one of these writes: what a read in the middle of them may find. */
export function isMixture(bytes: Buffer, at: number, sector: number, stamps: readonly number[]): boolean {
  const candidates = stamps.map((stamp) => {
    const words = new Uint32Array(WORDS);
    if (stamp !== ZEROS) stampSector(words, 0, sector, stamp);
    return words;
  });
  return wordsOf(bytes.subarray(at, at + SECTOR)).every((word, index) =>
    candidates.some((candidate) => candidate[index] === word),
  );
}

function stampSector(words: Uint32Array, at: number, sector: number, stamp: number): void {
  words[at] = stamp;
  words[at + 1] = sector;
  let state = Math.imul(stamp, 0x9e3779b1) ^ Math.imul(sector + 1, 0x85ebca6b);
  for (let index = 2; index < WORDS; index++) {
    state = (Math.imul(state, 0x19660d) + 0x3c6ef35f) | 0;
    words[at + index] = state;
  }
}

function wordsOf(bytes: Buffer): Uint32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : Buffer.from(new Uint8Array(bytes).buffer);
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
}

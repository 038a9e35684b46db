/**
 * One bit per region, in 32-bit words: 256 MiB for the 2^31 regions that the format allows.
 *
 * Region indexes are at most 2^31, so `>>> 5` is exact for them (unlike for offsets and sizes).
 */
import assert from "node:assert";
import { endianness } from "node:os";
import type { Region, RegionRange } from "../base/geometry.ts";

// The on-disk bitset is little-endian, and its bytes are copied straight into the words.
assert(endianness() === "LE", "only little-endian machines are supported");

const ALL_ONES = 0xffffffff;
/** Bytes compared at a time where a bitmap is loaded. */
const ZEROS = new Uint8Array(4096);
const ONES = new Uint8Array(4096).fill(0xff);

/** A set of regions 0 … size - 1. Memory the bits do not touch stays unallocated by the kernel. */
export class RegionBitmap {
  readonly size: number;
  readonly #words: Uint32Array;

  constructor(size: number) {
    assert(Number.isInteger(size) && size >= 0 && size <= 2 ** 31);
    this.size = size;
    this.#words = new Uint32Array(Math.ceil(size / 64) * 2);
  }

  has(region: Region): boolean {
    if (!(region >= 0 && region < this.size)) this.#refuse(region, region + 1);
    return (((this.#words[region >>> 5] as number) >>> (region & 31)) & 1) === 1;
  }

  /** Sets the regions `start` … `end` - 1. */
  setRange({ start, end }: RegionRange): void {
    assert(start >= 0 && start <= end && end <= this.size, `regions ${start} … ${end} outside 0 … ${this.size}`);
    if (start === end) return;
    const first = start >>> 5;
    const last = (end - 1) >>> 5;
    const head = (ALL_ONES << (start & 31)) >>> 0;
    const tail = ALL_ONES >>> (31 - ((end - 1) & 31));
    if (first === last) {
      this.#words[first] = (this.#words[first] as number) | (head & tail);
      return;
    }
    this.#words[first] = (this.#words[first] as number) | head;
    this.#words.fill(ALL_ONES, first + 1, last);
    this.#words[last] = (this.#words[last] as number) | tail;
  }

  /** Takes the regions `start` … `end` - 1 out again. */
  clearRange({ start, end }: RegionRange): void {
    assert(start >= 0 && start <= end && end <= this.size, `regions ${start} … ${end} outside 0 … ${this.size}`);
    if (start === end) return;
    const first = start >>> 5;
    const last = (end - 1) >>> 5;
    const head = (ALL_ONES << (start & 31)) >>> 0;
    const tail = ALL_ONES >>> (31 - ((end - 1) & 31));
    if (first === last) {
      this.#words[first] = (this.#words[first] as number) & ~(head & tail);
      return;
    }
    this.#words[first] = (this.#words[first] as number) & ~head;
    this.#words.fill(0, first + 1, last);
    this.#words[last] = (this.#words[last] as number) & ~tail;
  }

  /** Clears all. */
  clear(): void {
    this.#words.fill(0);
  }

  /** The same set, of regions up to `size` - 1, this one's being no less; none that is left out may be in the set. */
  narrowedTo(size: number): RegionBitmap {
    assert(size <= this.size);
    const narrow = new RegionBitmap(size);
    narrow.#words.set(this.#words.subarray(0, narrow.#words.length));
    return narrow;
  }

  /** How many regions are in the set. */
  count(): number {
    return popcount(this.#words);
  }

  /** The first region from `from` on, below `end`, that is not in the set, or `end`. */
  nextUnset(from: Region, end: Region = this.size): Region {
    return this.#next(from, end, ALL_ONES);
  }

  /** The first region from `from` on, below `end`, that is in the set, or `end`. */
  nextSet(from: Region, end: Region = this.size): Region {
    return this.#next(from, end, 0);
  }

  /** The runs of regions in the set, ascending. */
  *ranges(): Generator<RegionRange> {
    for (let start = this.nextSet(0); start < this.size; ) {
      const end = this.nextUnset(start);
      yield { start, end };
      start = this.nextSet(end);
    }
  }

  /**
   * Puts words of an on-disk bitset in place and returns how many bits they hold. Bits from `size` on are left out.
   *
   * `firstRegion` is a multiple of 64 and `bytes` (little-endian, 8-byte aligned) whole 64-bit words. The place must be
   * clear.
   */
  load(firstRegion: Region, bytes: Uint8Array): number {
    assert(firstRegion % 64 === 0 && bytes.length % 8 === 0 && bytes.length <= ZEROS.length);
    // Zero words are not even written: that leaves the memory of what is not hydrated unallocated.
    if (equal(bytes, ZEROS)) return 0;
    const at = firstRegion / 32;
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    this.#words.set(words, at);
    const beyond = firstRegion + bytes.length * 8 - this.size;
    if (beyond <= 0) return equal(bytes, ONES) ? bytes.length * 8 : popcount(words);
    this.#clearFrom(this.size);
    return popcount(this.#words.subarray(at, at + words.length));
  }

  /**
   * The opposite of `load`: copies the words of the regions from `firstRegion` on, a multiple of 64, into `bytes`, whole
   * 64-bit words.
   */
  store(firstRegion: Region, bytes: Uint8Array): void {
    assert(firstRegion % 64 === 0 && bytes.length % 8 === 0 && firstRegion + bytes.length * 8 < this.size + 64);
    const at = firstRegion / 32;
    const words = this.#words.subarray(at, at + bytes.length / 4);
    bytes.set(new Uint8Array(words.buffer, words.byteOffset, words.byteLength));
  }

  #next(from: Region, end: Region, skip: number): Region {
    if (!(from >= 0 && end <= this.size)) this.#refuse(from, end);
    if (from >= end) return end;
    const last = (end - 1) >>> 5;
    let index = from >>> 5;
    // What is left after this differs from `skip` where the answer is; bits below `from` are made not to.
    let found = ((this.#words[index] as number) ^ skip) & (ALL_ONES << (from & 31));
    while (found === 0) {
      if (index === last) return end;
      index++;
      found = (this.#words[index] as number) ^ skip;
    }
    return Math.min(end, index * 32 + lowestBit(found));
  }

  /** Apart from the questions, which every request asks: the words of an error that never comes cost more than they do. */
  #refuse(start: Region, end: Region): never {
    assert.fail(`regions ${start} … ${end} outside 0 … ${this.size}`);
  }

  #clearFrom(region: Region): void {
    if (region % 32 !== 0) {
      const at = region >>> 5;
      this.#words[at] = (this.#words[at] as number) & ~(ALL_ONES << (region & 31));
    }
    this.#words.fill(0, Math.ceil(region / 32));
  }
}

/** Index of the lowest bit set in a non-zero word. */
function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word);
}

function popcount(words: Uint32Array): number {
  let count = 0;
  for (let i = 0; i < words.length; i++) {
    let word = words[i] as number;
    if (word === 0) continue;
    word -= (word >>> 1) & 0x55555555;
    word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
    count += Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
  }
  return count;
}

/** Whether `bytes` equal the beginning of `pattern`. */
function equal(bytes: Uint8Array, pattern: Uint8Array): boolean {
  return Buffer.compare(bytes, pattern.subarray(0, bytes.length)) === 0;
}

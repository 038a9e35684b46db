/**
 * A digest of which regions are hydrated, which the descriptor records of a clone that is left. The kernel's format cannot
 * tell an array block that has another clone's bits, or another time's, from the true one: it has the right type, the right
 * number and the right shape. (A write that went astray, or was lost, leaves such a block.)
 *
 *     XOR over the array blocks that have any bit set of the first 16 bytes of SHA-256(key, u64 little-endian; words)
 *
 * The words are those in use, bits beyond the last region zero. So the blocks can be added in any order, and what is empty
 * costs nothing.
 */
import { createHash } from "node:crypto";

const DIGEST_BYTES = 16;
const ZEROS = new Uint8Array(4096);

/** Adds array blocks up. */
export class BitsDigest {
  readonly #sum = new Uint8Array(DIGEST_BYTES);

  /** @param words of the array block under `key`, as they stand in it; at most 4096 bytes */
  add(key: number, words: Uint8Array): void {
    if (Buffer.compare(words, ZEROS.subarray(0, words.length)) === 0) return;
    const name = Buffer.alloc(8);
    name.writeBigUInt64LE(BigInt(key));
    const hash = createHash("sha256").update(name).update(words).digest();
    for (let i = 0; i < DIGEST_BYTES; i++) this.#sum[i] = (this.#sum[i] as number) ^ (hash[i] as number);
  }

  /** Of what has been added so far, 32 hexadecimal digits. */
  toString(): string {
    return Buffer.from(this.#sum).toString("hex");
  }
}

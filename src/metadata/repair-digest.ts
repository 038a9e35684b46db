/**
 * Bits that a digest proves. When the program lets go of a clone, the descriptor records how many regions are hydrated and a
 * digest of which. As long as nobody has committed since (`settled-witness.ts`) the bits must be those: whatever fits the digest is the truth, wherever it comes from. The digest is a sum over the array blocks, so that of a single lost one it leaves its
 * own hash, and the number its count of bits. Tried are
 *
 *     what stands in its place      where the header was hit, or a single bit
 *     an older block, wherever      of this or any other key
 *     either of these, or nothing   with the first regions filled up to the count, as hydration does in order
 *
 * Where no block is lost and the digest does not fit, one of them is another's or of another time; and if nothing fits in
 * the place of any of them, none is believed.
 */
import type { Geometry } from "../base/geometry.ts";
import type { Block, BlockReader } from "./check-blocks.ts";
import type { SettledState } from "./descriptor.ts";
import { BitsDigest } from "./descriptor-digest.ts";
import type { RegionBitmap } from "./region-bitmap.ts";
import { arrayBlockCount, bitsOf, clearBeyond, countBits, regionsUnder, wordsUnder } from "./repair-array.ts";
import type { ProvenBits } from "./repair-bitset.ts";
import type { BlockSurvey } from "./repair-survey.ts";

/** Hashes taken in all: some seconds. */
const MOST_HASHES = 2 ** 17;
/** Older blocks that are looked at, the last ones on the device. */
const MOST_BLOCKS = 1024;

/** The words of an array block, 32 bits at a time. */
type Bits = Uint32Array;

/** What an array block may have held, and how many bits of it are set. */
interface Version {
  bits: Bits;
  set: number;
}

/** What the digest has shown. */
export type DigestVerdict =
  /** It cannot be asked, or nothing was found that fits. */
  | "nothing"
  /** It fits: nothing is lost, and nothing is wrong. */
  | "fits"
  /** It proved what was lost, or corrected what was wrong. */
  | "exact"
  /** Some of the blocks that seemed sound are not the clone's; nothing is proved any more. */
  | "refuted";

/** What was recorded, and what is known besides. */
export interface DigestRequest {
  settled: SettledState;
  proven: ProvenBits;
  unknown: RegionBitmap;
  /** Of all managed blocks. */
  survey: () => Promise<BlockSurvey>;
}

/** Holds the bits against the digest, and finds those that are missing. */
export async function proveByDigest(reader: BlockReader, request: DigestRequest): Promise<DigestVerdict> {
  const { settled, proven, unknown } = request;
  const { hydratedDigest, hydratedRegions } = settled;
  if (hydratedDigest === undefined || hydratedRegions === undefined) return "nothing";
  const { geometry } = proven;
  const lost = proven.lostKeys;
  if (lost.length > 1) return "nothing";
  const known = new BitsDigest();
  let rest = hydratedRegions;
  for (const key of proven.knownKeys) {
    const bits = proven.bitsOf(key);
    known.add(key, bytesOf(bits));
    rest -= countBits(bits);
  }
  const missing = xor(hydratedDigest, known.toString());
  if (lost.length === 0 && /^0*$/.test(missing)) return "fits";

  const search = new Search(reader, request);
  // Without a lost one, each of them in turn is taken for it; but bits that are there are not taken back for fewer.
  const suspects = rest < 0 ? [] : proven.knownKeys;
  for (const key of lost.length > 0 ? lost : suspects) {
    if (search.isSpent) break;
    const bits = proven.bitsOf(key);
    const isLost = lost.length > 0;
    const found = await search.find(
      key,
      isLost ? missing : xor(missing, hashOf(key, bits)),
      isLost ? rest : rest + countBits(bits),
    );
    if (found === null) continue;
    proven.replace(key, found);
    if (unknown.size > 0) unknown.clearRange(regionsUnder(key, key + 1, geometry));
    return "exact";
  }
  if (lost.length > 0) return "nothing";
  for (let key = 0; key < arrayBlockCount(geometry); key++) proven.lose(key);
  return "refuted";
}

/** The search for the bits of one key. */
class Search {
  readonly #reader: BlockReader;
  readonly #request: DigestRequest;
  #hashesLeft = MOST_HASHES;
  /** Bits of array blocks of each length, wherever they are, and how many are set. Copies. */
  readonly #versions = new Map<number, Version[]>();

  constructor(reader: BlockReader, request: DigestRequest) {
    this.#reader = reader;
    this.#request = request;
  }

  /** Whether no more hashes are to be taken. */
  get isSpent(): boolean {
    return this.#hashesLeft <= 0;
  }

  /** The bits under `key` that have this hash and count, or null. */
  async find(key: number, hash: string, count: number): Promise<Bits | null> {
    const { start, end } = regionsUnder(key, key + 1, this.#request.proven.geometry);
    if (count < 0 || count > end - start) return null;
    for await (const bits of this.#candidates(key, count)) {
      if (this.#hashesLeft-- <= 0) return null;
      if (hashOf(key, bits) === hash) return bits;
    }
    return null;
  }

  async *#candidates(key: number, count: number): AsyncGenerator<Bits> {
    const { geometry } = this.#request.proven;
    const words = wordsUnder(key, geometry);
    yield filled(new Uint32Array(2 * words), count);
    const inPlace = await this.#inPlace(key, words);
    const bases = await this.#versionsOf(words);
    for (const base of inPlace === null ? bases : [versionOf(inPlace), ...bases]) {
      const { bits, set } = cutOff(base, geometry, key);
      if (set <= count) yield set === count ? bits : filled(bits, count - set);
    }
    if (inPlace !== null && Math.abs(countBits(inPlace) - count) === 1) yield* withOneBit(inPlace, count);
  }

  /** What stands where the key's block should be, sound or not. */
  async #inPlace(key: number, words: number): Promise<Bits | null> {
    const { proven } = this.#request;
    const place = proven.placeOf(key);
    const block = place === undefined ? "unknown" : await this.#reader.read(place);
    if (typeof block === "string") return null;
    const bits = bitsOf(block, words).slice();
    clearBeyond(bits, proven.geometry, key);
    return bits;
  }

  async #versionsOf(words: number): Promise<Version[]> {
    const known = this.#versions.get(words);
    if (known !== undefined) return known;
    const survey = await this.#request.survey();
    const places = survey.blocksOf("array block").filter((block) => survey.wordsOf(block) === words);
    const versions: Version[] = [];
    await this.#reader.each(places.slice(-MOST_BLOCKS), (block: Block | string) => {
      if (typeof block !== "string") versions.push(versionOf(bitsOf(block, words).slice()));
    });
    this.#versions.set(words, versions);
    return versions;
  }
}

function versionOf(bits: Bits): Version {
  return { bits, set: countBits(bits) };
}

/** The same without what is beyond the last region; a copy only where the key is the last. */
function cutOff(version: Version, geometry: Geometry, key: number): Version {
  const { start, end } = regionsUnder(key, key + 1, geometry);
  if (version.bits.length * 32 === end - start) return version;
  const bits = version.bits.slice();
  clearBeyond(bits, geometry, key);
  return versionOf(bits);
}

/** The same with the first `more` regions that are not set. */
function filled(base: Bits, more: number): Bits {
  const bits = base.slice();
  let left = more;
  for (let i = 0; i < bits.length && left > 0; i++) {
    for (let bit = 0; bit < 32 && left > 0; bit++) {
      if ((((bits[i] as number) >>> bit) & 1) === 1) continue;
      bits[i] = ((bits[i] as number) | (1 << bit)) >>> 0;
      left--;
    }
  }
  return bits;
}

/** Every variant with one bit more or less, whichever makes the count right. */
function* withOneBit(base: Bits, count: number): Generator<Bits> {
  const wanted = countBits(base) < count ? 0 : 1;
  const bits = base.slice();
  for (let i = 0; i < bits.length; i++) {
    const before = bits[i] as number;
    for (let bit = 0; bit < 32; bit++) {
      if (((before >>> bit) & 1) !== wanted) continue;
      bits[i] = (before ^ (1 << bit)) >>> 0;
      yield bits;
    }
    bits[i] = before;
  }
}

function hashOf(key: number, bits: Bits): string {
  const digest = new BitsDigest();
  digest.add(key, bytesOf(bits));
  return digest.toString();
}

function bytesOf(bits: Bits): Uint8Array {
  return new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength);
}

/** Of hexadecimal digits, as many as `a` has. */
function xor(a: string, b: string): string {
  const bytes = Buffer.from(a, "hex");
  const others = Buffer.from(b, "hex");
  return Buffer.from(bytes.map((byte, i) => byte ^ (others[i] ?? 0))).toString("hex");
}

/**
 * What was done to one image, and whom it can mislead: the format itself cannot tell a block of the right type, number and
 * shape from the true one. Blocks are found by a hand of its own, not by src.
 */
import type { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { type BaseImage, BLOCK, type Range, type Role } from "./base-image.ts";
import { type Damage, isSealed, originalOf } from "./blows.ts";
import { DamagedDevice } from "./damaged-device.ts";

/** Something that must not be. */
export class Violation extends Error {}

/** Bytes read for each byte of the device, and besides: a check reads most blocks once, a repair checks and reads again. */
const READS_PER_BYTE = 8;
const READS_BESIDES = 2 ** 21;
const REGIONS_PER_KEY = 32576;
const ENTRIES_PER_BITMAP = 16320;
const SPACE_MAP: ReadonlySet<Role> = new Set<Role>(["index", "bitmap"]);
/** Bytes of a superblock on which anything depends: number of blocks, roots of the space map, sizes, root of the bitset. */
const MEANINGS = [
  [44, 52],
  [60, 76],
  [172, 196],
] as const;
/** Free blocks that the descriptor records. */
const LOWEST_FREE = 16;

/** A base image, and the blocks of it that are not as they were. */
export class Evidence {
  readonly base: BaseImage;
  readonly damage: Damage;
  /** Blocks in use that are not as they were. */
  readonly struck: Map<number, Role>;
  /** By key: all of its regions are read from the same blocks. */
  readonly #paths = new Map<number, [block: number, role: Role][]>();
  #arrays: Buffer[] | undefined;

  constructor(base: BaseImage, damage: Damage) {
    this.base = base;
    this.damage = damage;
    this.struck = new Map([...base.live].filter(([block]) => this.#isStruck(block)));
  }

  /** Whether one of the lowest free blocks is not as it was: these tell whether anybody has gone on with the clone. */
  get isFreeStruck(): boolean {
    let looked = 0;
    for (let block = 0; block < this.base.blockCount && looked < LOWEST_FREE; block++) {
      if (this.base.live.has(block)) continue;
      if (this.#isStruck(block)) return true;
      looked++;
    }
    return false;
  }

  #isStruck(block: number): boolean {
    const { blocks, unreadable, size } = this.damage;
    return blocks.has(block) || unreadable.has(block) || (block + 1) * BLOCK > size;
  }

  /** The damaged image, each time anew. */
  device(readOnly = true): DamagedDevice {
    const { blocks, size, unreadable } = this.damage;
    const there = new Map([...blocks].filter(([block]) => block * BLOCK < size));
    return new DamagedDevice(this.base.bytes.subarray(0, size), there, { size, unreadable, readOnly });
  }

  /** Whether a block is not as it was, and yet has the checksum and number of one that belongs there. */
  isSealed(block: number, role: Role): boolean {
    const bytes = this.damage.blocks.get(block);
    return (
      bytes !== undefined &&
      isSealed(bytes, block, role) &&
      !this.damage.unreadable.has(block) &&
      !bytes.equals(originalOf(this.base, block))
    );
  }

  /**
   * Whether every block that a region's bit is read from or through, and that was struck, has its seal; at least one was struck.
   * From another superblock that has its seal all of another state follows, what is damaged of that state, too; and where a node
   * is lost, what another space map says that has its seals.
   */
  isMisled(region: number): boolean {
    if (this.isSealed(0, "superblock") && this.#isAnotherState()) return true;
    const path = this.#pathTo(region);
    // Without the tree all depends on what the space map calls in use.
    const isLost = path.some(
      ([block, role]) => role === "node" && this.#isStruck(block) && !this.isSealed(block, role),
    );
    if (isLost) return this.isAnotherSpaceMap;
    const struck = path.filter(([block]) => this.damage.blocks.has(block));
    return struck.length > 0 && struck.every(([block, role]) => this.isSealed(block, role));
  }

  /**
   * Whether the space map is one of another time that is as sound as the true one: its blocks have their seals, those that it is in
   * are in use, and as many of the others are as in truth. Then it contradicts the tree, and it could be the tree that is of
   * another time.
   */
  get isAnotherSpaceMap(): boolean {
    if (![...this.struck].some(([block, role]) => SPACE_MAP.has(role) && this.isSealed(block, role))) return false;
    const device = this.device();
    const superblock = device.block(0);
    if (superblock.length < BLOCK) return false;
    const index = device.block(Number(superblock.readBigUInt64LE(60)));
    if (index.length < BLOCK) return false;
    let [free, surplus] = [0, 0];
    for (let block = 0; block < this.base.blockCount; block++) {
      const place = Number(index.readBigUInt64LE(16 + 16 * Math.floor(block / ENTRIES_PER_BITMAP)));
      const entry = block % ENTRIES_PER_BITMAP;
      const byte = device.block(place)[16 + Math.floor(entry / 4)] ?? 0;
      const isInUse = ((byte >> (2 * (entry % 4))) & 3) !== 0;
      const role = this.base.live.get(block);
      if (isInUse && role === undefined) surplus++;
      if (isInUse || role === undefined) continue;
      if (role !== "array" && role !== "node") return false;
      free++;
    }
    return free > 0 && surplus >= free;
  }

  /**
   * Whether an array block in use was replaced by a sealed one that says this of the region, or of that which has the same place
   * under another key: a repair finds array blocks without the part of the tree that is lost.
   */
  isSaidByArray(region: number, isHydrated: boolean): boolean {
    this.#arrays ??= [...this.struck]
      .filter(([block, role]) => role === "array" && this.isSealed(block, role))
      .map(([block]) => this.damage.blocks.get(block) as Buffer);
    const bit = region % REGIONS_PER_KEY;
    const says = (bytes: Buffer) => (((bytes[24 + Math.floor(bit / 8)] as number) >> (bit % 8)) & 1) === 1;
    return this.#arrays.some((bytes) => says(bytes) === isHydrated);
  }

  /** Whether block 0 names other blocks or sizes than the true one. */
  #isAnotherState(): boolean {
    const [now, before] = [this.device().block(0), originalOf(this.base, 0)];
    return MEANINGS.some(([start, end]) => !now.subarray(start, end).equals(before.subarray(start, end)));
  }

  /** For people; blocks that were struck have an asterisk. */
  describePath(region: number): string {
    return this.#pathTo(region)
      .map(([block, role]) => `${role} ${block}${this.damage.blocks.has(block) ? "*" : ""}`)
      .join(", ");
  }

  /** The blocks from which a region's bit is read, as a hand of its own finds them. */
  #pathTo(region: number): [block: number, role: Role][] {
    const key = Math.floor(region / REGIONS_PER_KEY);
    let path = this.#paths.get(key);
    if (path === undefined) {
      path = this.#findPath(key);
      this.#paths.set(key, path);
    }
    return path;
  }

  #findPath(key: number): [block: number, role: Role][] {
    const device = this.device();
    const path: [number, Role][] = [[0, "superblock"]];
    const superblock = device.block(0);
    if (superblock.length < BLOCK) return path;
    let block = Number(superblock.readBigUInt64LE(188));
    for (;;) {
      const node = device.block(block);
      path.push([block, "node"]);
      if (node.length < BLOCK) return path;
      let child = 0;
      for (let i = 0; i < Math.min(node.readUInt32LE(16), 252); i++) {
        if (Number(node.readBigUInt64LE(32 + 8 * i)) <= key) child = Number(node.readBigUInt64LE(2048 + 8 * i));
      }
      if (node.readUInt32LE(4) === 2) {
        path.push([child, "array"]);
        return path;
      }
      if (path.some(([before]) => before === child)) return path;
      block = child;
    }
  }
}

/** @throws {Violation} where more was read than the size of the device explains */
export function bound(what: string, { bytesRead, size }: DamagedDevice): void {
  if (bytesRead > size * READS_PER_BYTE + READS_BESIDES)
    throw new Violation(`${what} read ${bytesRead} bytes of ${size}`);
}

/** What is hydrated, merged. */
export function rangesOf(metadata: CloneMetadata): Range[] {
  return [...metadata.hydratedRanges()].map(({ start, end }): Range => [start, end]);
}

/** Both are merged. */
export function same(a: readonly Range[], b: readonly Range[]): boolean {
  return a.length === b.length && a.every(([start, end], i) => start === b[i]?.[0] && end === b[i]?.[1]);
}

/** What of `ranges` is not among `others`. Both are merged. */
export function without(ranges: readonly Range[], others: readonly Range[]): Range[] {
  const rest: Range[] = [];
  let i = 0;
  for (let [start, end] of ranges) {
    while (i < others.length && (others[i] as Range)[1] <= start) i++;
    for (let k = i; start < end; k++) {
      const other = others[k];
      if (other === undefined || other[0] >= end) {
        rest.push([start, end]);
        break;
      }
      if (other[0] > start) rest.push([start, other[0]]);
      start = Math.min(end, other[1]);
    }
  }
  return rest;
}

/** The first region of `ranges` that is not among `others`, or null. Both are merged. */
export function firstMissing(ranges: readonly Range[], others: readonly Range[]): number | null {
  return without(ranges, others)[0]?.[0] ?? null;
}

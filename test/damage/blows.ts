/** What happens to images: one kind of damage each, drawn from a seed. */
import { crc32c } from "@node-rs/crc32";
import { MetadataImage, SALT, type SealedType } from "../support/metadata-image.ts";
import type { SeededRandom } from "../support/random.ts";
import { type BaseImage, BLOCK, type Role, TYPE_OF_ROLE } from "./base-image.ts";

const SECTOR = 512;

/** The kinds, each done to as many images as the others. */
export const BLOWS = [
  "bits flipped",
  "torn",
  "swapped",
  "misdirected",
  "misdirected and sealed",
  "zeroed",
  "truncated",
  "stale",
  "strayed",
  "writes lost",
  "of another clone",
  "noise",
  "forged",
  "unreadable",
] as const;
export type Blow = (typeof BLOWS)[number];

/** What became of an image: the blocks that are not as they were. */
export interface Damage {
  blocks: Map<number, Buffer>;
  size: number;
  unreadable: Set<number>;
}

/** Strikes a base image, which is not as it was then; `other` is another clone's. */
export function strike(base: BaseImage, other: BaseImage, blow: Blow, random: SeededRandom): Damage {
  for (let turn = 0; ; turn++) {
    // Not every image can be struck in every way: one that never had a commit has lost no writes.
    const damage = struckBy(base, other, turn < 20 ? blow : "bits flipped", random);
    if (damage.blocks.size > 0 || damage.unreadable.size > 0 || damage.size < base.bytes.length) return damage;
  }
}

function struckBy(base: BaseImage, other: BaseImage, blow: Blow, random: SeededRandom): Damage {
  const damage: Damage = { blocks: new Map(), size: base.bytes.length, unreadable: new Set() };
  for (let times = random.oneIn(4) ? random.integer(2, 4) : 1; times > 0; times--)
    strikeOnce(base, other, blow, random, damage);
  // What came out as it was has not been struck.
  for (const [block, bytes] of damage.blocks) if (bytes.equals(originalOf(base, block))) damage.blocks.delete(block);
  return damage;
}

/** A block as it was. */
export function originalOf({ bytes }: BaseImage, block: number): Buffer {
  return Buffer.from(bytes.subarray(block * BLOCK, (block + 1) * BLOCK));
}

function strikeOnce(base: BaseImage, other: BaseImage, blow: Blow, random: SeededRandom, damage: Damage): void {
  const at = aBlock(base, random);
  const now = (block: number): Buffer => Buffer.from(damage.blocks.get(block) ?? originalOf(base, block));
  const bytes = now(at);
  switch (blow) {
    case "bits flipped":
      for (let flips = random.integer(1, 4); flips > 0; flips--) {
        const byte = random.oneIn(2) ? random.integer(0, 199) : random.integer(0, BLOCK - 1);
        bytes[byte] = (bytes[byte] as number) ^ (1 << random.integer(0, 7));
      }
      break;
    case "torn": {
      const torn = random.oneIn(4) ? Buffer.alloc(BLOCK) : (anOlder(base, at, random) ?? now(aBlock(base, random)));
      for (let sector = 0; sector < BLOCK; sector += SECTOR) {
        if (random.oneIn(2)) torn.copy(bytes, sector, sector, sector + SECTOR);
      }
      break;
    }
    case "swapped": {
      const second = aBlock(base, random);
      const there = now(second);
      damage.blocks.set(second, bytes);
      damage.blocks.set(at, there);
      return;
    }
    case "misdirected":
      damage.blocks.set(at, now(aBlock(base, random)));
      return;
    case "misdirected and sealed": {
      const from = aBlock(base, random, base.live.get(at));
      damage.blocks.set(at, sealedAt(now(from), at, typeIn(base, from)));
      return;
    }
    case "zeroed": {
      const start = random.oneIn(2) ? 0 : SECTOR * random.integer(0, 7);
      bytes.fill(0, start, random.oneIn(2) ? BLOCK : start + SECTOR);
      break;
    }
    case "truncated":
      damage.size = random.integer(0, random.oneIn(3) ? damage.size : Math.min(damage.size, 40 * BLOCK));
      return;
    case "stale": {
      const places = [...base.older.keys()].filter((block) => base.live.has(block) || random.oneIn(8));
      const place = places.length === 0 ? at : random.pick(places);
      damage.blocks.set(place, Buffer.from(anOlder(base, place, random) ?? now(place)));
      return;
    }
    case "strayed": {
      // An array block is lost, and an older one of those that could stand for it has bits that nobody ever set.
      const places = freeArrays(base);
      if (places.length === 0) return;
      const place = random.pick(places);
      const stray = now(place);
      for (let more = random.integer(1, 8); more > 0; more--) {
        const byte = random.integer(24, 24 + 8 * Math.min(509, stray.readUInt32LE(8)) - 1);
        stray[byte] = (stray[byte] as number) | (1 << random.integer(0, 7));
      }
      damage.blocks.set(place, sealedAt(stray, place, "array"));
      const live = aBlock(base, random, "array");
      const hit = now(live);
      hit[0] = (hit[0] as number) ^ random.integer(1, 255);
      damage.blocks.set(live, hit);
      return;
    }
    case "writes lost":
      for (const [block, before] of base.lastCommit) if (random.oneIn(2)) damage.blocks.set(block, Buffer.from(before));
      return;
    case "of another clone": {
      const role = base.live.get(at) ?? random.pick(Object.keys(TYPE_OF_ROLE) as Role[]);
      const from = aBlock(other, random, random.oneIn(5) ? undefined : role);
      const foreign = originalOf(other, from);
      damage.blocks.set(at, random.oneIn(3) ? foreign : sealedAt(foreign, at, typeIn(other, from)));
      return;
    }
    case "noise": {
      const start = random.oneIn(2) ? 0 : SECTOR * random.integer(0, 7);
      const end = random.oneIn(2) ? BLOCK : start + SECTOR;
      for (let i = start; i < end; i++) bytes[i] = random.integer(0, 255);
      if (random.oneIn(3)) sealedAt(bytes, at, random.pick(Object.keys(SALT) as SealedType[]));
      break;
    }
    case "forged": {
      const type = typeIn(base, at);
      const offset = random.pick([
        random.integer(4, 60),
        random.integer(4, 250),
        random.integer(2048, 2100),
        random.integer(24, BLOCK - 8),
      ]);
      const value = random.pick([
        random.integer(0, 20),
        random.integer(0, base.blockCount),
        random.integer(0, 2 ** 32 - 1),
        252,
        509,
      ]);
      if (random.oneIn(2)) bytes[offset] = value % 256;
      else bytes.writeUInt32LE(value, offset);
      sealedAt(bytes, at, type, { keepNumber: true });
      break;
    }
    case "unreadable":
      damage.unreadable.add(at);
      return;
  }
  damage.blocks.set(at, bytes);
}

/** A whole block: mostly one in use, each role as likely as the others; of `role` where that is given. */
function aBlock({ live, bytes }: BaseImage, random: SeededRandom, role?: Role): number {
  if (role === undefined && random.oneIn(4)) return random.integer(0, Math.floor(bytes.length / BLOCK) - 1);
  const roles = [...new Set(live.values())];
  const wanted = role !== undefined && roles.includes(role) ? role : random.pick(roles);
  return random.pick([...live].filter(([, is]) => is === wanted).map(([block]) => block));
}

/** Free blocks that hold an array block of an earlier commit. */
function freeArrays(base: BaseImage): number[] {
  return [...base.older.keys()].filter(
    (block) => !base.live.has(block) && isSealed(originalOf(base, block), block, "array"),
  );
}

function anOlder({ older }: BaseImage, block: number, random: SeededRandom): Buffer | undefined {
  const versions = older.get(block);
  return versions === undefined ? undefined : random.pick(versions);
}

/** The type that a block of an image is of, or that of an array block. */
function typeIn({ live }: BaseImage, block: number): SealedType {
  const role = live.get(block);
  return role === undefined ? "array" : TYPE_OF_ROLE[role];
}

/** Gives bytes the checksum of a type, and, unless told, a block's number. */
function sealedAt(bytes: Buffer, block: number, type: SealedType, { keepNumber = false } = {}): Buffer {
  if (!keepNumber) bytes.writeBigUInt64LE(BigInt(block), type === "array" ? 16 : 8);
  bytes.writeUInt32LE((crc32c(bytes.subarray(4)) ^ 0xffffffff ^ SALT[type]) >>> 0, 0);
  return bytes;
}

/** Whether bytes are a block of `role` that belongs at `block`, by the checksum and number that it carries. */
export function isSealed(bytes: Buffer, block: number, role: Role): boolean {
  if (bytes.length < BLOCK) return false;
  const image = new MetadataImage(bytes);
  const type = TYPE_OF_ROLE[role];
  const own = image.get64(0, type === "array" ? 16 : 8) === block;
  return own && image.get32(0, 0) === (crc32c(bytes.subarray(4)) ^ 0xffffffff ^ SALT[type]) >>> 0;
}

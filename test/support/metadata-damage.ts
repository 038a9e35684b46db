/** Blows to a metadata image, drawn by fast-check: what a disk, a cable or another program does to it. */
import fc from "fast-check";
import { BLOCK, MetadataImage, SALT, type SealedType } from "./metadata-image.ts";

/** One blow; blocks are taken modulo the image's number of them. */
export type Blow =
  | { kind: "flip"; block: number; bit: number }
  | { kind: "zero"; block: number }
  | { kind: "noise"; block: number; bytes: Uint8Array }
  | { kind: "swap" | "misdirect"; block: number; other: number }
  | { kind: "field"; block: number; offset: number; value: number }
  | { kind: "cut"; block: number };

const place = fc.oneof(fc.nat(15), fc.nat(255));
/** Any one blow, the first blocks favoured. */
export const blow: fc.Arbitrary<Blow> = fc.oneof(
  fc.record({ kind: fc.constant("flip" as const), block: place, bit: fc.nat(BLOCK * 8 - 1) }),
  fc.record({ kind: fc.constant("zero" as const), block: place }),
  fc.record({
    kind: fc.constant("noise" as const),
    block: place,
    bytes: fc.uint8Array({ minLength: 1, maxLength: 64 }),
  }),
  fc.record({ kind: fc.constantFrom("swap" as const, "misdirect" as const), block: place, other: place }),
  fc.record({
    kind: fc.constant("field" as const),
    block: place,
    offset: fc.oneof(fc.nat(64), fc.nat(BLOCK - 4), fc.constantFrom(172, 180, 188, 2048, 2056)),
    value: fc.oneof(fc.nat(20), fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.constantFrom(252, 253, 509, 2 ** 31)),
  }),
  fc.record({ kind: fc.constant("cut" as const), block: place }),
);

/**
 * Strikes an image, and, to get past the checksums, seals what was struck again.
 * @returns the bytes that are left
 */
export function strike(image: MetadataImage, blows: Blow[], { reseal }: { reseal: boolean }): Buffer {
  let end = image.bytes.length;
  for (const hit of blows) {
    const number = hit.block % image.blockCount;
    const type = reseal ? typeOf(image, number) : undefined;
    if (hit.kind === "cut") end = Math.min(end, number * BLOCK + 100);
    else strikeBlock(image, number, hit);
    if (type !== undefined) image.seal(number, type);
  }
  return image.bytes.subarray(0, end);
}

function strikeBlock(image: MetadataImage, number: number, hit: Exclude<Blow, { kind: "cut" }>): void {
  const block = image.block(number);
  switch (hit.kind) {
    case "flip": {
      const byte = Math.floor(hit.bit / 8);
      block[byte] = (block[byte] ?? 0) ^ (1 << (hit.bit % 8));
      break;
    }
    case "zero":
      block.fill(0);
      break;
    case "noise":
      block.fill(hit.bytes);
      break;
    case "field":
      block.writeUInt32LE(hit.value, hit.offset);
      break;
    case "swap":
    case "misdirect": {
      const other = image.block(hit.other % image.blockCount);
      const before = Buffer.from(block);
      other.copy(block);
      if (hit.kind === "swap") before.copy(other);
    }
  }
}

/** The type whose checksum a block has. */
function typeOf(image: MetadataImage, number: number): SealedType | undefined {
  const copy = new MetadataImage(image.block(number));
  return (Object.keys(SALT) as SealedType[]).find((type) => {
    copy.seal(0, type, { keepNumber: true });
    return copy.get32(0, 0) === image.get32(number, 0);
  });
}

// Random damage to sound images: bits flipped, blocks zeroed, swapped, misdirected, filled with noise, the end cut off.
// The checker never fails or reports without bound; and where it finds nothing fatal the bits are still the true ones,
// because every block that carries them vouches for itself. Damage that is sealed again (checksums made to fit) may
// pass for other metadata, so only the first half is asked of it.
import fc from "fast-check";
import { expect, test } from "vitest";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { readFixtureImage } from "../support/kernel-fixtures.ts";
import { BLOCK, MetadataImage, SALT, type SealedType, twoLevelImage } from "../support/metadata-image.ts";

// Small images, cut to little more than their live blocks so that damage hits these.
const images: { name: string; bytes: Buffer }[] = [
  { name: "two-level tree", bytes: twoLevelImage().bytes },
  ...["writes-64m-4k", "mid-1g-4k", "regions-64"].map((name) => ({
    name,
    bytes: readFixtureImage(name).subarray(0, 2 ** 20),
  })),
];

function truthOf(bytes: Buffer): { image: MetadataImage; hydrated: [number, number][] } {
  const image = new MetadataImage(bytes);
  // An image cut short needs a space map that says so; unsealed fields are the test's own and sealed at once.
  image.edit(0, "superblock", () => image.set64(0, 44, image.blockCount));
  return { image, hydrated: image.hydratedRanges() };
}

type Blow =
  | { kind: "flip"; block: number; bit: number }
  | { kind: "zero"; block: number }
  | { kind: "noise"; block: number; bytes: Uint8Array }
  | { kind: "swap" | "misdirect"; block: number; other: number }
  | { kind: "field"; block: number; offset: number; value: number }
  | { kind: "cut"; block: number };

const place = fc.oneof(fc.nat(15), fc.nat(255));
const blow: fc.Arbitrary<Blow> = fc.oneof(
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

/** @returns the bytes that are left */
function strike(image: MetadataImage, blows: Blow[], { reseal }: { reseal: boolean }): Buffer {
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

const check = (bytes: Buffer) =>
  checkMetadata(new MemoryDevice({ size: bytes.length, content: bytes, readOnly: true }));

test.for(images)("checkMetadata() calls no damaged $name sound whose bits are not the true ones", ({ bytes }) => {
  const truth = truthOf(bytes);
  return fc.assert(
    fc.asyncProperty(fc.array(blow, { minLength: 1, maxLength: 4 }), async (blows) => {
      const struck = new MetadataImage(truth.image.bytes);
      const left = strike(struck, blows, { reseal: false });
      const report = await check(left);
      expect(report.fatal.length + report.warnings.length).toBeLessThan(500);
      if (report.ok) expect(new MetadataImage(left).hydratedRanges()).toEqual(truth.hydrated);
    }),
    { numRuns: 300 },
  );
});

test.for(images)("checkMetadata() survives any $name whose damage was sealed with fitting checksums", ({ bytes }) => {
  const truth = truthOf(bytes);
  return fc.assert(
    fc.asyncProperty(fc.array(blow, { minLength: 1, maxLength: 6 }), async (blows) => {
      const report = await check(strike(new MetadataImage(truth.image.bytes), blows, { reseal: true }));
      expect(report.fatal.length + report.warnings.length).toBeLessThan(500);
      expect(report.ok).toBe(report.fatal.length === 0);
    }),
    { numRuns: 300 },
  );
});

// Random damage to sound images: bits flipped, blocks zeroed, swapped, misdirected, filled with noise, the end cut off.
// The checker never fails or reports without bound; and where it finds nothing fatal the bits are still the true ones,
// because every block that carries them vouches for itself. Damage that is sealed again (checksums made to fit) may
// pass for other metadata, so only the first half is asked of it.
import fc from "fast-check";
import { expect, test, vi } from "vitest";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { readFixtureImage } from "../support/kernel-fixtures.ts";
import { blow, strike } from "../support/metadata-damage.ts";
import { MetadataImage, twoLevelImage } from "../support/metadata-image.ts";

vi.setConfig({ testTimeout: 120_000 }); // for slow and busy machines; nothing here measures time

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

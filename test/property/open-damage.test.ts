// Metadata is untrusted. Whatever its blocks say, with checksums that match, opening it ends: with metadata that can be
// committed to, or with an operating error. Never with a broken invariant, a crash or an endless loop.
import fc from "fast-check";
import { expect, test } from "vitest";
import { CloneError } from "../../src/base/errors.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { type SealedType, twoLevelImage } from "../support/metadata-image.ts";

/** Types of the blocks of `twoLevelImage()` in use. */
const TYPES: SealedType[] = [
  ...(["superblock", "index", "node", "bitmap", "node"] as const),
  ...Array<SealedType>(5).fill("array"),
  ...Array<SealedType>(3).fill("node"),
];
/** Fields are near the start of a block, of its values, or of its counts. */
const offset = fc.oneof(
  fc.integer({ min: 4, max: 200 }),
  fc.integer({ min: 2048, max: 2090 }),
  fc.integer({ min: 4, max: 4095 }),
);
const value = fc.oneof(fc.nat({ max: 20 }), fc.nat({ max: 255 }));
const edit = fc.record({ block: fc.nat({ max: TYPES.length - 1 }), offset, value });

test("CloneMetadata.open() of metadata with any fields changed refuses them or works with them", () =>
  fc.assert(
    fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 4 }), fc.boolean(), async (edits, readOnly) => {
      const image = twoLevelImage();
      for (const { block, offset, value } of edits) image.block(block)[offset] = value;
      for (const { block } of edits) image.seal(block, TYPES[block] as SealedType);
      const device = new MemoryDevice({ name: "x.meta", size: image.bytes.length, content: image.bytes });
      try {
        const metadata = await CloneMetadata.open(device, { readOnly });
        expect(metadata.hydratedCount).toBeLessThanOrEqual(metadata.regionCount);
        if (readOnly) return;
        const before = metadata.hydratedCount;
        const first = metadata.nextUnhydrated(0);
        if (first === metadata.regionCount) return;
        metadata.markHydrated({ start: first, end: first + 1 });
        metadata.preCommit();
        await metadata.commit();
        expect((await CloneMetadata.open(device)).hydratedCount).toBe(before + 1);
      } catch (error) {
        expect(error).toBeInstanceOf(CloneError);
      }
    }),
    { numRuns: 400 },
  ));

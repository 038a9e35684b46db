// Two readers of one format, written apart: the checker and CloneMetadata. On any image, however damaged, what the checker
// calls free of fatal faults CloneMetadata opens, with as many hydrated regions as the checker counted and those that a
// third, naive decoder finds; and what CloneMetadata refuses the checker calls fatal. The other way round nothing is
// asked: the checker reads all metadata, opening only what it needs.
import fc from "fast-check";
import { expect, test, vi } from "vitest";
import { MetadataError } from "../../src/base/errors.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { kernelFixtures, readFixtureImage } from "../support/kernel-fixtures.ts";
import { blow, strike } from "../support/metadata-damage.ts";
import { MetadataImage, twoLevelImage } from "../support/metadata-image.ts";

vi.setConfig({ testTimeout: 120_000 }); // for slow and busy machines; nothing here measures time

async function compare(bytes: Buffer): Promise<"refused" | "opened"> {
  const device = new MemoryDevice({ size: bytes.length, content: bytes });
  const report = await checkMetadata(device);
  for (const readOnly of [true, false]) {
    let metadata: CloneMetadata;
    try {
      metadata = await CloneMetadata.open(device, { readOnly });
    } catch (error) {
      if (!(error instanceof MetadataError)) throw error;
      expect(report.fatal, error.message).not.toEqual([]);
      continue;
    }
    if (!report.ok) continue;
    expect(metadata.hydratedCount).toBe(report.facts?.hydratedRegions);
    expect(metadata.regionCount).toBe(report.facts?.regions);
    expect(metadata.totalBlocks).toBe(report.facts?.totalBlocks);
    const ranges = [...metadata.hydratedRanges()].map(({ start, end }) => [start, end]);
    expect(ranges).toEqual(new MetadataImage(bytes).hydratedRanges());
  }
  return report.ok ? "opened" : "refused";
}

test.for(kernelFixtures)("CloneMetadata.open() and checkMetadata() agree on the kernel's %s", async (name) => {
  expect(await compare(readFixtureImage(name))).toBe("opened");
});

const images: { name: string; bytes: Buffer }[] = [
  { name: "image with a two-level tree", bytes: twoLevelImage().bytes },
  ...["mid-1g-4k", "regions-64"].map((name) => ({ name, bytes: readFixtureImage(name).subarray(0, 2 ** 19) })),
];

const damages = images.flatMap(({ name, bytes }) =>
  [false, true].map((reseal) => ({ name: reseal ? `${name}, sealed again` : name, bytes, reseal })),
);

test.for(damages)("CloneMetadata.open() and checkMetadata() agree on any damaged $name", ({ bytes, reseal }) => {
  const image = new MetadataImage(bytes);
  image.edit(0, "superblock", () => image.set64(0, 44, image.blockCount)); // cut short above
  return fc.assert(
    fc.asyncProperty(fc.array(blow, { minLength: 1, maxLength: 3 }), async (blows) => {
      await compare(strike(new MetadataImage(image.bytes), blows, { reseal }));
    }),
    { numRuns: 300 },
  );
});

// Random clones with random histories of commits are damaged at random: bits flipped, blocks zeroed, swapped, misdirected,
// filled with noise, the end cut off. Whatever a repair calls hydrated is hydrated in truth; whatever it does not name as
// unknown or copied again is as it was; and what it writes is sound.
import fc from "fast-check";
import { expect, test, vi } from "vitest";
import { Geometry } from "../../src/base/geometry.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES, type Descriptor, DescriptorStore } from "../../src/metadata/descriptor.ts";
import { writeFormatted } from "../../src/metadata/format-image.ts";
import { minimumBlockCount } from "../../src/metadata/metadata-size.ts";
import { RegionBitmap } from "../../src/metadata/region-bitmap.ts";
import { planRepair, writeRepaired } from "../../src/metadata/repair.ts";
import { imageBytes } from "../../src/metadata/repair-descriptor.ts";
import { recordFree } from "../../src/metadata/settled-witness.ts";
import { type Blow, blow, strike } from "../support/metadata-damage.ts";
import { MetadataImage } from "../support/metadata-image.ts";
import { plainDescriptor } from "../support/plain-descriptor.ts";

vi.setConfig({ testTimeout: 120_000 }); // for slow and busy machines; nothing here measures time

const history = fc.record({
  regions: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 32_000, max: 100_000 })),
  /** Marks, as shares of the clone, of each commit. */
  commits: fc.array(fc.array(fc.tuple(fc.nat(1000), fc.nat(400)), { minLength: 1, maxLength: 4 }), { maxLength: 9 }),
  spareBlocks: fc.nat(40),
  descriptor: fc.constantFrom("none", "blank", "alone", "served" as const),
});

interface History {
  regions: number;
  commits: [number, number][][];
  spareBlocks: number;
  descriptor: string;
}

function descriptorOf({ size }: Geometry, kind: string): Descriptor | null {
  if (kind === "none") return null;
  return plainDescriptor(size, { served: kind === "served", blank: true, alone: kind === "alone" });
}

async function make({ regions, commits, spareBlocks, descriptor: kind }: History) {
  const geometry = new Geometry({ size: regions * 4096, regionSize: 4096 });
  const blockCount = minimumBlockCount(regions) + spareBlocks;
  const descriptor = descriptorOf(geometry, kind);
  const device = new MemoryDevice({ size: imageBytes(blockCount, descriptor) });
  await writeFormatted(device, { geometry, blockCount, bits: null, descriptor, isBlank: true });
  const metadata = await CloneMetadata.open(device);
  const truth = new RegionBitmap(regions);
  for (const marks of commits) {
    for (const [at, length] of marks) {
      const start = Math.floor((at / 1001) * regions);
      const range = { start, end: Math.min(regions, start + 1 + Math.floor((length / 1000) * regions)) };
      metadata.markHydrated(range);
      truth.setRange(range);
    }
    metadata.preCommit();
    await metadata.commit();
  }
  const bytes = new Uint8Array(device.size);
  await device.read(0, bytes);
  if (descriptor !== null && kind !== "blank") {
    const bits = { hydratedRegions: metadata.hydratedCount, hydratedDigest: metadata.hydratedDigest() };
    const superblock = Buffer.from(bytes.subarray(0, 4)).toString("hex");
    const settled = {
      mtimeNs: "0",
      superblock,
      ...(await recordFree(device)),
      ...(spareBlocks % 2 === 0 ? bits : {}),
    };
    const store = await DescriptorStore.open(device, { geometry, blockCount });
    await store.write({ ...descriptor, destination: { ...descriptor.destination, settled } });
    await device.read(0, bytes);
  }
  return { bytes, truth };
}

function isSubset(a: RegionBitmap, b: RegionBitmap): boolean {
  for (const { start, end } of a.ranges()) if (b.nextUnset(start, end) !== end) return false;
  return true;
}

async function judge(bytes: Uint8Array, truth: RegionBitmap): Promise<void> {
  const device = new MemoryDevice({ size: bytes.length, content: bytes, readOnly: true });
  const plan = await planRepair(device, { assume: "unhydrated" });
  if (!plan.ok) return;
  expect(isSubset(plan.bits, truth)).toBe(true);
  const judged = new RegionBitmap(truth.size);
  for (const range of plan.bits.ranges()) judged.setRange(range);
  for (const range of [...plan.copiedAgain, ...(plan.assumed?.regions ?? [])]) judged.setRange(range);
  expect(isSubset(truth, judged)).toBe(true);

  const written = new MemoryDevice({ size: imageBytes(plan.blockCount, plan.descriptor) + DESCRIPTOR_BYTES });
  await writeRepaired(plan, written);
  expect(await checkMetadata(written)).toMatchObject({
    verdict: "clean",
    facts: { hydratedRegions: plan.bits.count() },
  });
}

test("planRepair() calls no region hydrated that is not, and loses none without naming it, whatever the damage", () =>
  fc.assert(
    fc.asyncProperty(history, fc.array(blow, { maxLength: 4 }), async (made, blows: Blow[]) => {
      const { bytes, truth } = await make(made);
      await judge(strike(new MetadataImage(bytes), blows, { reseal: false }), truth);
    }),
    { numRuns: 150 },
  ));

test("planRepair() does so without the superblock, too", () =>
  fc.assert(
    fc.asyncProperty(history, fc.array(blow, { maxLength: 2 }), fc.nat(511), async (made, blows: Blow[], from) => {
      const { bytes, truth } = await make(made);
      bytes.fill(0, from, 4096);
      await judge(strike(new MetadataImage(bytes), blows, { reseal: false }), truth);
    }),
    { numRuns: 100 },
  ));

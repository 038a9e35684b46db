// A sound array block of another clone is put in the place of the true one, its number right: the kernel's format cannot tell.
// The digest in the descriptor can, as long as the superblock is the one that it was recorded with.
import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MetadataError } from "../../../src/base/errors.ts";
import { Geometry } from "../../../src/base/geometry.ts";
import { refuseOtherBits } from "../../../src/clone/settled-bits.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES, DescriptorStore } from "../../../src/metadata/descriptor.ts";
import { writeFormatted } from "../../../src/metadata/format-image.ts";
import { planRepair } from "../../../src/metadata/repair.ts";
import { recordFree } from "../../../src/metadata/settled-witness.ts";
import { imageOf } from "../../support/image.ts";
import { MetadataImage } from "../../support/metadata-image.ts";
import { plainDescriptor } from "../../support/plain-descriptor.ts";

const REGIONS = 2 * 32576 + 100;
const geometry = new Geometry({ size: REGIONS * 4096, regionSize: 4096 });
const place = { geometry, blockCount: 64 };

const descriptor = plainDescriptor(geometry.size, { served: true });

/** A clone that was left with these regions hydrated. */
async function leftWith(ranges: readonly [number, number][]): Promise<MetadataImage> {
  const device = new MemoryDevice({ name: "x.clone", size: 64 * 4096 + DESCRIPTOR_BYTES });
  await writeFormatted(device, { ...place, bits: null, descriptor });
  const metadata = await CloneMetadata.open(device);
  for (const [start, end] of ranges) metadata.markHydrated({ start, end });
  metadata.preCommit();
  await metadata.commit();
  const superblock = new Uint8Array(4);
  await device.read(0, superblock);
  const settled = {
    mtimeNs: "1",
    superblock: Buffer.from(superblock).toString("hex"),
    ...(await recordFree(device)),
    hydratedRegions: metadata.hydratedCount,
    hydratedDigest: metadata.hydratedDigest(),
  };
  const store = await DescriptorStore.open(device, place);
  await store.write({ ...descriptor, destination: { ...descriptor.destination, settled } });
  return new MetadataImage(await imageOf(device));
}

async function look(image: MetadataImage) {
  const device = new MemoryDevice({ name: "x.clone", size: image.bytes.length, content: image.bytes });
  const metadata = await CloneMetadata.open(device, { readOnly: true });
  const read = (await DescriptorStore.open(device, place)).read();
  return { report: await checkMetadata(device), opened: () => refuseOtherBits(device, metadata, read), device };
}

describe("The digest of the hydrated regions", () => {
  test("is the one that its description makes, in the checker and in the clone, wherever the blocks are", () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(REGIONS - 1), fc.integer({ min: 1, max: 40_000 })), { minLength: 1, maxLength: 4 }),
        async (draws) => {
          const ranges = draws.map(([start, length]): [number, number] => [start, Math.min(REGIONS, start + length)]);
          const image = await leftWith(ranges);
          const sum = Buffer.alloc(16);
          image.arrayBlocks().forEach((block, key) => {
            const words = image.block(block).subarray(24, 24 + 8 * image.get32(block, 8));
            if (words.every((byte) => byte === 0)) return;
            const name = Buffer.alloc(8);
            name.writeUInt32LE(key);
            const hash = createHash("sha256")
              .update(Buffer.concat([name, words]))
              .digest();
            for (let i = 0; i < 16; i++) sum[i] = (sum[i] as number) ^ (hash[i] as number);
          });
          const { report, opened } = await look(image);
          expect(report.verdict).toBe("clean");
          expect(report.facts?.hydratedDigest).toBe(sum.toString("hex"));
          expect(await opened()).toBeUndefined();
        },
      ),
      { numRuns: 30 },
    ));

  test("refutes an array block of another clone, which is then neither opened nor believed by repair", async () => {
    const image = await leftWith([
      [10, 110],
      [40_000, 40_010],
    ]);
    const other = await leftWith([[500, 550]]);
    const [at, from] = [image.arrayBlocks()[0] as number, other.arrayBlocks()[0] as number];
    other.block(from).copy(image.block(at));
    image.seal(at, "array");
    const { report, opened, device } = await look(image);
    expect(report).toMatchObject({ ok: false, bitsRefuted: true, verdict: "damaged" });
    expect(report.fatal[0]).toMatchObject({ structure: "bitset", block: null });
    expect(report.fatal[0]?.message).toMatch(
      /not what the clone was left with: an array block or a node of another clone/,
    );
    await expect(opened()).rejects.toThrow(MetadataError);
    const plan = await planRepair(device);
    expect(plan).toMatchObject({ ok: false, unknown: [{ start: 0, end: REGIONS }] });
    const assumed = await planRepair(device, { assume: "unhydrated" });
    expect(assumed.ok && assumed.bits.count()).toBe(0);
  });

  // A kernel that goes on may come back to the same block numbers, and so to the same superblock: it has no transaction number.
  test("says nothing where a kernel has come back to the same superblock, and repair takes nothing back", async () => {
    const image = await leftWith([[0, 110]]);
    const kernel = new MemoryDevice({ size: image.bytes.length, content: image.bytes });
    for (const start of [1000, 2000]) {
      const metadata = await CloneMetadata.open(kernel);
      metadata.markHydrated({ start, end: start + 16 });
      metadata.preCommit();
      await metadata.commit();
    }
    const goneOn = new MetadataImage(await imageOf(kernel));
    expect(goneOn.block(0).equals(image.block(0))).toBe(true);
    const { report, opened, device } = await look(goneOn);
    expect(report).toMatchObject({ ok: true, verdict: "clean" });
    expect(report).not.toHaveProperty("bitsRefuted");
    expect(await opened()).toBeUndefined();
    const plan = await planRepair(device);
    expect(plan.ok && plan.bits.count()).toBe(110 + 32);
  });

  test("does not mind bits beyond the last region", async () => {
    const image = await leftWith([[REGIONS - 1, REGIONS]]);
    const at = image.arrayBlocks()[2] as number;
    image.edit(at, "array", (bytes) => {
      bytes[24 + 15] = 0x80;
    });
    const { report, opened } = await look(image);
    expect(report.verdict).toBe("warnings");
    expect(await opened()).toBeUndefined();
  });

  test("says nothing once somebody else has gone on, but that a clone with fewer regions is an older one is told", async () => {
    const newer = await leftWith([[0, 300]]);
    const older = await leftWith([[0, 100]]);
    const commit = async (image: MetadataImage, start: number) => {
      const device = new MemoryDevice({ size: image.bytes.length, content: image.bytes });
      const metadata = await CloneMetadata.open(device);
      metadata.markHydrated({ start, end: start + 1 });
      metadata.preCommit();
      await metadata.commit();
      return new MetadataImage(await imageOf(device));
    };
    const goneOn = await look(await commit(newer, 1000));
    expect(goneOn.report.verdict).toBe("clean");
    expect(await goneOn.opened()).toBeUndefined();
    // The blocks of the older state behind the descriptor of the newer.
    const mixed = await commit(older, 1000);
    newer.bytes.copy(mixed.bytes, 64 * 4096, 64 * 4096);
    const { report, opened } = await look(mixed);
    expect(report).toMatchObject({ ok: true, verdict: "warnings" });
    expect(report.warnings[0]?.message).toMatch(/^101 regions are hydrated, 300 were when the clone was left/);
    expect(await opened()).toMatch(/^101 regions are hydrated, 300 were/);
  });
});

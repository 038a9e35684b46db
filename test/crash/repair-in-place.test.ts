// A repair that overwrites a device is cut off at each of its operations in turn; of what was not flushed each sector lands or
// does not, by seed. What is left is the old metadata, the new, or something that neither this program nor the kernel takes
// for metadata: never a blank first block, which the kernel would format, and never bits that are not true.
import fc from "fast-check";
import { expect, test } from "vitest";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { planRepair, writeRepaired } from "../../src/metadata/repair.ts";
import { overwriteWithImage, readMark } from "../../src/metadata/repair-in-place.ts";
import { flipBit, type MetadataImage, twoLevelImage } from "../support/metadata-image.ts";
import { Power, PowerLossDevice, seededRandom } from "../support/power-loss-device.ts";

const BLOCK = 4096;

/** Metadata with an unreadable bitmap block, and its repaired image. */
async function damagedAndRepaired(): Promise<{
  damaged: MetadataImage;
  image: MemoryDevice;
  truth: [number, number][];
}> {
  const damaged = twoLevelImage();
  const truth = damaged.hydratedRanges();
  flipBit(damaged, 3);
  const { bytes } = damaged;
  const plan = await planRepair(new MemoryDevice({ size: bytes.length, content: bytes, readOnly: true }));
  if (!plan.ok) throw new Error(plan.reason);
  const image = new MemoryDevice({ size: bytes.length });
  await writeRepaired(plan, image);
  return { damaged, image, truth };
}

async function operationsOf(): Promise<number> {
  const { damaged, image } = await damagedAndRepaired();
  const power = new Power();
  await overwriteWithImage(new PowerLossDevice(damaged.bytes, { name: "device", power }), image, { backup: "/b" });
  return power.used;
}

test.for(Array.from({ length: (await operationsOf()) + 1 }, (_, i) => i))(
  "overwriteWithImage() cut after %i operations leaves old metadata, new, or none that anything would use",
  async (operations) => {
    const { damaged, image, truth } = await damagedAndRepaired();
    await fc.assert(
      fc.asyncProperty(fc.integer(), async (seed) => {
        const power = new Power();
        power.left = operations;
        const device = new PowerLossDevice(damaged.bytes, { name: "device", power });
        await overwriteWithImage(device, image, { backup: "/b" }).catch(() => {});
        const after = device.afterPowerLoss(seededRandom(seed));

        const bytes = new Uint8Array(after.size);
        await after.read(0, bytes);
        const first = bytes.subarray(0, BLOCK);
        expect(first.some((byte) => byte !== 0)).toBe(true);
        const plan = await planRepair(after);
        if (readMark(first) === "/b") {
          expect(plan).toMatchObject({ ok: false, reason: expect.stringContaining("cut off") });
          return;
        }
        if (!plan.ok) throw new Error(plan.reason);
        expect([...plan.bits.ranges()].map(({ start, end }) => [start, end])).toEqual(truth);
        const isOld = Buffer.compare(first, damaged.block(0)) === 0;
        if (isOld) expect(Buffer.compare(bytes, damaged.bytes)).toBe(0);
        else expect((await checkMetadata(after)).verdict).toBe("clean");
      }),
      { numRuns: 20 },
    );
  },
);

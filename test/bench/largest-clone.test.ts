// The largest clone there can be: 2^31 regions, 8 TiB of 4 KiB each. Writes some 300 MB to a temporary file, so it runs only
// when asked to.
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Geometry } from "../../src/base/geometry.ts";
import { FileDevice } from "../../src/device/file-device.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { metadataByteLength, recommendedBlockCount } from "../../src/metadata/metadata-size.ts";
import { RecordingDevice } from "../support/recording-device.ts";

const MIB = 2 ** 20;
const { CLONE_TEST_LARGE: asked } = process.env;
const geometry = new Geometry({ size: 2 ** 43, regionSize: 4096 });
const blockCount = recommendedBlockCount(geometry.regionCount);

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "clone-largest-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

test.runIf(asked === "1")(
  "CloneMetadata of 2^31 regions is created, opened and committed within its memory (only with CLONE_TEST_LARGE=1)",
  async () => {
    const path = join(folder, "largest.meta");
    await writeFile(path, "");
    await truncate(path, metadataByteLength(blockCount));
    await using device = new RecordingDevice(await FileDevice.open(path, { access: "read-write" }));
    const started = process.memoryUsage.rss();
    const grown = () => (process.memoryUsage.rss() - started) / MIB;

    let lap = performance.now();
    const report = (what: string) => {
      console.log(`${what}: ${Math.round(performance.now() - lap)} ms, ${Math.round(grown())} MiB more than before`);
      lap = performance.now();
    };
    await CloneMetadata.create(device, { geometry, blockCount });
    report("create");
    expect(grown()).toBeLessThan(150);

    const metadata = await CloneMetadata.open(device);
    report("open");
    device.takeChanges();
    metadata.markHydrated({ start: 2 ** 31 - 1, end: 2 ** 31 });
    metadata.preCommit();
    await metadata.commit();
    report("commit of one region");
    const writes = device.takeChanges().filter((entry) => entry.startsWith("write"));
    const blocksWritten = writes.reduce((sum, entry) => sum + Number(entry.split("+")[1]), 0);
    expect(blocksWritten).toBeLessThanOrEqual(10);
    console.log(`it wrote ${blocksWritten} blocks`);
    metadata.markHydrated({ start: 0, end: 2 ** 31 });
    metadata.preCommit();
    await metadata.commit();
    report("commit of all regions");
    expect(grown()).toBeLessThan(256 + 150);
    expect(metadata).toMatchObject({ hydratedCount: 2 ** 31, committedCount: 2 ** 31, totalBlocks: blockCount });
    expect(metadata.nextUnhydrated(0)).toBe(2 ** 31);
    expect(metadata.isHydrated(2 ** 31 - 1)).toBe(true);
  },
  120_000,
);

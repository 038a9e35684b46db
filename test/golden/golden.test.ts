// Metadata that each release has left: it must open, be found clean, dump as it did then, and take further commits.
import { readdirSync, readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { refuseOtherBits } from "../../src/clone/settled-bits.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { DescriptorStore } from "../../src/metadata/descriptor.ts";
import { dumpMetadata } from "../../src/metadata/dump.ts";

const FOLDER = new URL("./", import.meta.url);
const names = readdirSync(FOLDER)
  .filter((file) => file.endsWith(".dump"))
  .map((file) => file.slice(0, -".dump".length))
  .sort();

test("There is metadata of a release", () => expect(names.length).toBeGreaterThan(0));

test.for(names)("%s is opened, found clean, dumped as it was, and taken on", async (name) => {
  const content = gunzipSync(readFileSync(new URL(`${name}.clone.gz`, FOLDER)));
  const device = new MemoryDevice({ name, size: content.length, content });
  const report = await checkMetadata(device);
  expect(report.verdict).toBe("clean");
  const metadata = await CloneMetadata.open(device);
  const { geometry } = metadata;
  const store = await DescriptorStore.open(device, { geometry, blockCount: metadata.totalBlocks });
  const descriptor = store.read();
  expect(await refuseOtherBits(device, metadata, descriptor)).toBeUndefined();
  const dump = [...dumpMetadata({ geometry, hydratedRanges: metadata.hydratedRanges(), descriptor })].join("");
  expect(dump).toBe(readFileSync(new URL(`${name}.dump`, FOLDER), "utf8"));
  const next = metadata.nextUnhydrated(0);
  if (next === metadata.regionCount) return;
  metadata.markHydrated({ start: next, end: next + 1 });
  metadata.preCommit();
  await metadata.commit();
  expect((await CloneMetadata.open(device)).isHydrated(next)).toBe(true);
});

/** Commits of metadata with several array blocks and no block to spare, cut before every operation of the last ones. */
import { Geometry, type RegionRange } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES } from "../../../src/metadata/descriptor.ts";
import { minimumBlockCount } from "../../../src/metadata/metadata-size.ts";
import { imageOf } from "../../support/image.ts";
import { Power, PowerLossDevice, PowerLost, seededRandom } from "../../support/power-loss-device.ts";
import { Notebook } from "../../support/sim-notebook.ts";

const REGIONS = 40_000;
/** Of the second array block. */
const FAR = 39_000;
const COMMITS = 12;

/** What a commit adds: always a region of the first array block, and now and then one of the second, which is so left behind. */
function added(commit: number): RegionRange[] {
  const near = { start: commit, end: commit + 1 };
  return commit % 5 === 4 ? [near, { start: FAR + commit, end: FAR + commit + 1 }] : [near];
}

/** @returns what a cut leaves that is neither the state before the commit nor the one after it */
export async function everyCommit(): Promise<string[]> {
  const geometry = new Geometry({ size: REGIONS * 4096, regionSize: 4096 });
  const blank = new MemoryDevice({ name: "metadata", size: 13 * 4096 });
  await CloneMetadata.create(blank, { geometry, blockCount: 13 });
  const content = await imageOf(blank);
  const wrong = new Set<string>();
  for (let cut = 0; cut < COMMITS * 4 && wrong.size < 5; cut++) {
    const power = new Power();
    const store = new PowerLossDevice(content, { name: "metadata", power });
    const metadata = await CloneMetadata.open(store);
    power.left = cut;
    const states: RegionRange[][] = [[]];
    try {
      for (let commit = 0; commit < COMMITS; commit++) {
        for (const range of added(commit)) metadata.markHydrated(range);
        states.push([...metadata.hydratedRanges()]);
        metadata.preCommit();
        await metadata.commit();
        states.splice(0, states.length - 1);
      }
    } catch (error) {
      if (!(error instanceof PowerLost)) wrong.add(`${error}`);
    }
    for (const random of [() => 0, () => 0.999_999, seededRandom(cut), seededRandom(cut + 1000)]) {
      const after = store.afterPowerLoss(random);
      const { verdict, fatal } = await checkMetadata(after);
      if (verdict !== "clean") {
        wrong.add(`cut after ${cut}: the metadata is ${verdict}: ${fatal[0]?.message}`);
        continue;
      }
      const found = JSON.stringify([...(await CloneMetadata.open(after)).hydratedRanges()]);
      if (!states.some((state) => JSON.stringify(state) === found))
        wrong.add(`cut after ${cut}: ${found} are hydrated`);
    }
  }
  return [...wrong];
}

/** The descriptor is written again and again, cut before every operation: the last one answered is there, or the next. */
export async function everyDescriptor(): Promise<string[]> {
  const geometry = new Geometry({ size: 16 * 4096, regionSize: 4096 });
  const blockCount = minimumBlockCount(16);
  const blank = new MemoryDevice({ name: "metadata", size: blockCount * 4096 + DESCRIPTOR_BYTES });
  await CloneMetadata.create(blank, { geometry, blockCount });
  await Notebook.format(blank, { geometry, blockCount });
  const content = await imageOf(blank);
  const wrong = new Set<string>();
  for (let cut = 0; cut < 12 && wrong.size < 5; cut++) {
    const power = new Power();
    const store = new PowerLossDevice(content, { name: "metadata", power });
    let now = 1;
    const notebook = await Notebook.open(store, { geometry, blockCount }, () => now++);
    power.left = cut;
    try {
      for (let turn = 0; turn < 6; turn++) await notebook?.write();
    } catch (error) {
      if (!(error instanceof PowerLost)) wrong.add(`${error}`);
    }
    for (const random of [() => 0, () => 0.999_999, seededRandom(cut), seededRandom(cut + 1000)]) {
      const found = await Notebook.turnOn(store.afterPowerLoss(random), { geometry, blockCount });
      const sentence = notebook === undefined ? "there is no descriptor" : notebook.check(now, found);
      if (sentence !== undefined) wrong.add(`cut after ${cut}: ${sentence}`);
    }
  }
  return [...wrong];
}

/** Metadata is created over another clone's, cut before every operation: it is that one, none at all, or the new one whole. */
export async function newMetadata(): Promise<string[]> {
  const before = new MemoryDevice({ name: "metadata", size: 16 * 4096 });
  const older = new Geometry({ size: 200 * 4096, regionSize: 4096 });
  await CloneMetadata.create(before, { geometry: older, blockCount: 16 });
  const first = await CloneMetadata.open(before);
  first.markHydrated({ start: 3, end: 150 });
  first.preCommit();
  await first.commit();
  const content = await imageOf(before);
  const geometry = new Geometry({ size: REGIONS * 4096, regionSize: 4096 });
  const wrong = new Set<string>();
  for (let cut = 0; cut < 40 && wrong.size < 5; cut++) {
    const power = new Power();
    const store = new PowerLossDevice(content, { name: "metadata", power });
    power.left = cut;
    let done = true;
    try {
      await CloneMetadata.create(store, { geometry, blockCount: 13 });
    } catch (error) {
      if (!(error instanceof PowerLost)) wrong.add(`${error}`);
      done = false;
    }
    for (const random of [() => 0, () => 0.999_999, seededRandom(cut), seededRandom(cut + 1000)]) {
      const after = store.afterPowerLoss(random);
      const opened = await CloneMetadata.open(after, { readOnly: true }).catch((error: Error) => error);
      if (opened instanceof Error) {
        if (done) wrong.add(`cut after ${cut}: what was created is not there: ${opened.message}`);
        // No superblock, no clone; anything else would be half of one.
        const block = Buffer.alloc(4096);
        await after.read(0, block);
        if (block.some((byte) => byte !== 0)) wrong.add(`cut after ${cut}: the metadata is damaged: ${opened.message}`);
        continue;
      }
      const { verdict, fatal } = await checkMetadata(after);
      if (verdict !== "clean") wrong.add(`cut after ${cut}: the metadata is ${verdict}: ${fatal[0]?.message}`);
      const isNew = opened.regionCount === REGIONS;
      if (opened.hydratedCount !== (isNew ? 0 : 147))
        wrong.add(`cut after ${cut}: ${opened.hydratedCount} are hydrated`);
      if (done && !isNew) wrong.add(`cut after ${cut}: what was created is not there`);
    }
  }
  return [...wrong];
}

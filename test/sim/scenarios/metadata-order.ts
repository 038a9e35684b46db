/** Commits of metadata with several array blocks and no block to spare, cut before every operation of the last ones. */
import { Geometry, type RegionRange } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { imageOf } from "../../support/image.ts";
import { Power, PowerLossDevice, PowerLost, seededRandom } from "../../support/power-loss-device.ts";

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

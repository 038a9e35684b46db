/**
 * Plays one short scene on a clone whose destination and metadata have volatile caches, cuts the power before every device
 * operation in turn, and looks at what is left: with none of the unflushed sectors, all of them, and some by chance.
 */
import { Geometry } from "../../../src/base/geometry.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata } from "../../../src/metadata/check.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { ByteHistory } from "../../support/byte-history.ts";
import { bytesAt, makeClone, type TestClone } from "../../support/clone-device.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { Power, PowerLossDevice, seededRandom } from "../../support/power-loss-device.ts";

/** Bytes per region of the scenes. */
export const REGION = 4096;
/** Bytes of one sector. */
export const ONE_SECTOR = 512;

/** A destination that has flushed, and answers only when something else has happened. */
export class LateAnswer extends FilterDevice {
  /** What happens once, between a flush and its answer. */
  meanwhile: (() => Promise<void>) | undefined;

  override async flush(): Promise<void> {
    await super.flush();
    const meanwhile = this.meanwhile;
    this.meanwhile = undefined;
    await meanwhile?.();
  }
}

/** The clone of a scene, whose destination held noise before, and what its clients do. */
export interface Stage {
  clone: TestClone;
  destination: LateAnswer;
  /** Writes bytes that nobody else writes. */
  write(offset: number, length: number, options?: { fua?: boolean }): Promise<void>;
  flush(): Promise<void>;
  /** Copies a region, as the background does. */
  hydrate(region: number): Promise<void>;
}

/** @returns what was found wrong, one sentence each, the first few of them */
export async function crashEverywhere(
  play: (stage: Stage) => Promise<void>,
  { regions = 130, blockCount = 64 }: { regions?: number; blockCount?: number } = {},
): Promise<string[]> {
  const wrong = new Set<string>();
  const operations = (await crash(play, { regions, blockCount, cut: Infinity }, wrong)).used;
  for (let cut = 0; cut < operations && wrong.size < 5; cut++) {
    await crash(play, { regions, blockCount, cut }, wrong);
  }
  return [...wrong];
}

const SUBSETS: readonly (() => number)[] = [() => 0, () => 0.999_999, ...[1, 2, 3].map((seed) => seededRandom(seed))];

async function crash(
  play: (stage: Stage) => Promise<void>,
  { regions, blockCount, cut }: { regions: number; blockCount: number; cut: number },
  wrong: Set<string>,
): Promise<Power> {
  const size = regions * REGION;
  const source = new MemoryDevice({ name: "source", size, content: noise(size, 1) });
  const power = new Power();
  const disk = new PowerLossDevice(noise(size, 2), { name: "destination", power });
  const blank = new MemoryDevice({ name: "metadata", size: blockCount * 4096 });
  await CloneMetadata.create(blank, { geometry: new Geometry({ size, regionSize: REGION }), blockCount });
  const store = new PowerLossDevice(await imageOf(blank), { name: "metadata", power });
  const destination = new LateAnswer(disk);
  const clone = await makeClone({ size, regionSize: REGION, source, destination, store });
  const history = new ByteHistory(await imageOf(source));
  power.left = cut;
  try {
    await play(stageOf(clone, destination, history));
  } catch (error) {
    // What fails once the power is gone fails for that; before, it is a finding.
    if (power.left > 0) wrong.add(`${error}`);
  }
  for (const [index, subset] of SUBSETS.entries()) {
    const found = await lookAt(disk.afterPowerLoss(subset), store.afterPowerLoss(subset), size, source, history);
    for (const sentence of found) wrong.add(`cut after ${cut}, subset ${index}: ${sentence}`);
  }
  return power;
}

function stageOf(clone: TestClone, destination: LateAnswer, history: ByteHistory): Stage {
  let writes = 0;
  return {
    clone,
    destination,
    async write(offset, length, { fua = false } = {}) {
      writes++;
      const data = Buffer.alloc(length, writes);
      const change = history.begin(offset, data);
      let ended = false;
      try {
        await clone.device.write(offset, data, { fua });
        ended = true;
      } finally {
        history.end(change, { certain: ended, durable: ended && fua });
      }
    },
    async flush() {
      const askedAt = history.now();
      await clone.device.flush();
      history.flushed(askedAt);
    },
    async hydrate(region) {
      const hydration = clone.regions.begin({ start: region, end: region + 1 });
      await clone.copier.copy(clone.geometry.bytesOf(hydration), new AbortController().signal);
      clone.regions.complete(hydration);
    },
  };
}

/** From the disks alone: the metadata without fault, and each sector old or new, nothing else, nothing else's. */
async function lookAt(
  disk: MemoryDevice,
  store: MemoryDevice,
  size: number,
  source: MemoryDevice,
  history: ByteHistory,
): Promise<string[]> {
  const { verdict, fatal } = await checkMetadata(store);
  if (verdict !== "clean") return [`the metadata is ${verdict}: ${fatal[0]?.message}`];
  const reopened = await makeClone({ size, regionSize: REGION, source, destination: disk, store });
  const content = await bytesAt(reopened.device, 0, size);
  const sentence = history.checkAfterPowerLoss(0, content);
  if (sentence !== undefined) return [sentence];
  const { hydratedCount } = await CloneMetadata.open(store, { readOnly: true });
  return hydratedCount === reopened.metadata.hydratedCount ? [] : ["two openings see different regions"];
}

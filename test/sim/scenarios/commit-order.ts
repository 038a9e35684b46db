/**
 * What goes wrong where a commit does not keep its order (dm-clone before 5.5): the four corruption cases that its fix
 * describes, the two ways to commit a bit too early, and the metadata's own order.
 */
import { crashEverywhere, ONE_SECTOR, REGION } from "./crash-everywhere.ts";

/** Case 1: a region is copied in the background, and the timer commits it. */
export async function dataThatNobodyTouched(): Promise<string[]> {
  return await crashEverywhere(async ({ clone, hydrate }) => {
    await hydrate(3);
    await hydrate(70);
    await clone.commits.commit();
  });
}

/** Case 2: one sector is written to a region that is not hydrated; old or new, never something else. */
export async function oneSector(): Promise<string[]> {
  return await crashEverywhere(async ({ clone, write }) => {
    await write(5 * REGION + 3 * ONE_SECTOR, ONE_SECTOR);
    await clone.commits.commit();
  });
}

/** Case 3: several sectors, and the commit is somebody else's. */
export async function unflushedSectors(): Promise<string[]> {
  return await crashEverywhere(async ({ write }) => {
    await write(REGION - 2 * ONE_SECTOR, 4 * ONE_SECTOR);
    await write(8 * REGION, 2 * REGION);
    await write(100 * REGION, REGION, { fua: true });
  });
}

/** Case 4: the client itself flushes. */
export async function flushedSectors(): Promise<string[]> {
  return await crashEverywhere(async ({ write, flush }) => {
    await write(2 * REGION + ONE_SECTOR, 2 * ONE_SECTOR);
    await write(9 * REGION, REGION);
    await flush();
    await write(9 * REGION, ONE_SECTOR);
    await flush();
  });
}

/** A region that is hydrated while the destination's flush is not answered yet belongs to the next commit. */
async function hydratedMeanwhile(next: number): Promise<string[]> {
  return await crashEverywhere(async ({ clone, destination, hydrate }) => {
    await hydrate(3);
    destination.meanwhile = () => hydrate(next);
    await clone.commits.commit();
  });
}

/** It is one whose bit lies in another 64-bit word than that of the region being committed. */
export const inAnotherWord = (): Promise<string[]> => hydratedMeanwhile(100);
/** Or in the same. */
export const inTheSameWord = (): Promise<string[]> => hydratedMeanwhile(4);

/** More commits than the metadata has room for without using its blocks again. */
export async function manyCommits(): Promise<string[]> {
  return await crashEverywhere(
    async ({ clone, hydrate }) => {
      for (let region = 0; region < 12; region++) {
        await hydrate(region);
        await clone.commits.commit();
      }
    },
    { regions: 16, blockCount: 10 },
  );
}

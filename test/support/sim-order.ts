/**
 * The order in which things must reach the disks, held against the log of a run, whatever a power cut may have left of it:
 *
 *     a region's last write while it was hydrated ─► marked ─► destination's flush asked for ─► answered ─► superblock with its bit
 *     blocks of the metadata written ─► metadata's flush ─► superblock that points to them
 */
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import type { SimulatedDisk, SimulationEvent } from "./sim-disk.ts";
import { ImageDevice } from "./sim-image.ts";

const SECTORS_PER_BLOCK = 8;

/** What is wrong with the order, sentences. */
export async function checkOrder(
  events: readonly SimulationEvent[],
  disks: { destination: SimulatedDisk; metadata: SimulatedDisk },
): Promise<string[]> {
  const wrong: string[] = [];
  const image = disks.metadata.born.copy();
  let committed = await opened(image);
  const { totalBlocks, regionCount } = committed;
  const markedAt = new Float64Array(regionCount);
  let flushAskedAt = 0;
  /** Blocks written since the metadata was last flushed. */
  const unflushed = new Map<number, number>();
  for (const event of events) {
    if (event.kind === "note") {
      if (event.marked) markedAt.fill(event.at, event.marked.start, event.marked.end);
    } else if (event.kind === "durable") {
      if (!event.flush) continue;
      if (event.disk === disks.destination) flushAskedAt = Math.max(flushAskedAt, event.askedAt);
      else for (const [block, at] of unflushed) if (at < event.askedAt) unflushed.delete(block);
    } else if (event.disk === disks.metadata) {
      image.write(event.firstSector * 512, event.data);
      const first = Math.floor(event.firstSector / SECTORS_PER_BLOCK);
      const end = Math.ceil((event.firstSector + event.data.length / 512) / SECTORS_PER_BLOCK);
      for (let block = Math.max(1, first); block < Math.min(end, totalBlocks); block++) unflushed.set(block, event.at);
      if (event.firstSector > 0) continue;
      if (unflushed.size > 0) {
        wrong.push(`at ${event.at} the superblock is written before block ${[...unflushed.keys()][0]} is flushed`);
      }
      const next = await opened(image).catch((error: Error) => error);
      if (next instanceof Error) {
        wrong.push(`at ${event.at} the superblock does not point to metadata: ${next.message}`);
        continue;
      }
      for (const { start, end: after } of next.hydratedRanges()) {
        for (let region = start; region < after; region++) {
          if (committed.isHydrated(region) || (markedAt[region] as number) < flushAskedAt) continue;
          wrong.push(`at ${event.at} the superblock sets the bit of region ${region}, whose data no flush has covered`);
          break;
        }
      }
      committed = next;
    }
  }
  return wrong;
}

async function opened(image: ConstructorParameters<typeof ImageDevice>[0]): Promise<CloneMetadata> {
  return await CloneMetadata.open(new ImageDevice(image, "metadata"), { readOnly: true });
}

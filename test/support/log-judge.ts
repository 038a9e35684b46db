/**
 * Judges the log of a clone's disk (`logged-disk.ts`), with no word of ours about what was durable: walks it entry by entry, and
 * where the power might have failed asks what the clone would be if it had.
 *
 *     durable    what every write up to the last flush has left
 *     pending    what was written since: each sector of it, on its own, may be there or not
 *
 *     after each superblock     that alone has landed, all of it and nothing else, parts of everything
 *     after each flush          nothing is pending: one state
 *     after some other entries  parts of everything
 *
 * Of each state: `check` finds nothing; each region that is called hydrated holds, sector by sector, what the last checkpoint
 * says or what a client has sent since, and so does, seen through the clone, all the rest. The first state after a superblock
 * is the proof of the order: what it newly vouches for was flushed before it, and so was every block that it points to.
 */

import { MemoryDevice } from "../../src/device/memory-device.ts";
import { checkMetadata, formatFinding } from "../../src/metadata/check.ts";
import type { Flushes } from "./logged-disk.ts";
import { MetadataImage } from "./metadata-image.ts";
import type { SeededRandom } from "./random.ts";
import { SECTOR } from "./stamped-sectors.ts";
import type { LoggedRequest } from "./write-log.ts";

/** A change that a client has sent: bytes, whole sectors. */
export interface SentChange {
  offset: number;
  data: Buffer;
}

/** What the clone certainly holds once so many entries are in the log, but for what was sent later. */
export interface Checkpoint {
  entries: number;
  content: Buffer;
  later: SentChange[];
}

/** A clone and the log of its disk. */
export interface LoggedClone {
  source: Buffer;
  regionSize: number;
  /** What the disk held before the first entry. */
  destination: Buffer;
  metadata: Buffer;
  flushes: Flushes;
  /** In order; the first with 0 entries. */
  checkpoints: Checkpoint[];
  requests: LoggedRequest[];
}

/** What was looked at, and what was wrong: one line for each state. */
export interface Judgement {
  states: number;
  superblocks: number;
  /** Regions that superblocks have vouched for, each as often as it was news. */
  vouched: number;
  wrong: string[];
}

/** States with parts of what is pending, after each superblock; after other entries one in so many times. */
const PARTS_OF_SUPERBLOCK = 3;
const OTHERS_ONE_IN = 4;

/** Judges all of a log, or as much of it as it takes to find `mostWrong` states that lie. */
export async function judgeLog(clone: LoggedClone, random: SeededRandom, { mostWrong = 10 } = {}): Promise<Judgement> {
  return await new LogJudge(clone, random).run(mostWrong);
}

class LogJudge {
  readonly #clone: LoggedClone;
  readonly #random: SeededRandom;
  readonly #disk: VolatileDisk;
  readonly #judgement: Judgement = { states: 0, superblocks: 0, vouched: 0, wrong: [] };
  #checkpoint = 0;
  #hydrated = 0;

  constructor(clone: LoggedClone, random: SeededRandom) {
    this.#clone = clone;
    this.#random = random;
    this.#disk = new VolatileDisk(Buffer.concat([clone.destination, clone.metadata]));
    this.#hydrated = count(new MetadataImage(clone.metadata).hydratedRanges());
  }

  async run(mostWrong: number): Promise<Judgement> {
    const { requests, checkpoints } = this.#clone;
    for (const [index, request] of requests.entries()) {
      while ((checkpoints[this.#checkpoint + 1]?.entries ?? Infinity) <= index + 1) this.#checkpoint++;
      await this.#take(request, `entry ${index}`);
      if (this.#judgement.wrong.length >= mostWrong) return this.#judgement;
    }
    await this.#judge(
      this.#disk.landed(() => true),
      "the end",
    );
    return this.#judgement;
  }

  async #take(request: LoggedRequest, where: string): Promise<void> {
    const disk = this.#disk;
    if (request.kind === "flush") {
      disk.flush();
      await this.#judge(disk.durable, `${where}, a flush`);
      return;
    }
    const { offset } = request;
    const data = request.kind === "write" ? request.data : Buffer.alloc(request.length);
    disk.write(offset, data);
    // The slice whose flushes were swallowed is durable at once, or nothing could be said of the other.
    const inMetadata = offset >= this.#clone.destination.length;
    if (this.#clone.flushes === (inMetadata ? "destination" : "metadata")) disk.settle(offset, data.length);
    if (offset === this.#clone.destination.length && data.length >= SECTOR) await this.#superblock(data, where);
    else if (this.#random.oneIn(OTHERS_ONE_IN)) await this.#judgeParts(where);
  }

  async #superblock(data: Buffer, where: string): Promise<void> {
    this.#judgement.superblocks++;
    const start = this.#clone.destination.length;
    const isSuperblock = (at: number): boolean => at >= start && at < start + data.length;
    const alone = await this.#judge(this.#disk.landed(isSuperblock), `${where}, a superblock alone`);
    const hydrated = count(alone);
    this.#judgement.vouched += Math.max(0, hydrated - this.#hydrated);
    this.#hydrated = hydrated;
    await this.#judge(
      this.#disk.landed(() => true),
      `${where}, a superblock and all before it`,
    );
    for (let part = 0; part < PARTS_OF_SUPERBLOCK; part++) await this.#judgeParts(`${where}, a superblock`);
  }

  async #judgeParts(where: string): Promise<void> {
    const chance = this.#random.integer(1, 9);
    const lands = (): boolean => this.#random.integer(0, 9) < chance;
    await this.#judge(this.#disk.landed(lands), `${where}, parts of what was pending`);
  }

  /** Looks at one state of the disk. Resolves to the regions that it calls hydrated. */
  async #judge(disk: Buffer, where: string): Promise<[number, number][]> {
    this.#judgement.states++;
    const { destination } = this.#clone;
    const metadata = disk.subarray(destination.length);
    const report = await checkMetadata(
      new MemoryDevice({ size: metadata.length, content: metadata, name: "metadata" }),
    );
    if (!report.ok) {
      this.#judgement.wrong.push(`${where}: ${report.fatal.map(formatFinding).join("; ")}`);
      return [];
    }
    const hydrated = new MetadataImage(metadata).hydratedRanges();
    const wrong = this.#firstWrong(disk.subarray(0, destination.length), hydrated);
    if (wrong !== undefined) this.#judgement.wrong.push(`${where}: ${wrong}`);
    return hydrated;
  }

  /** The first sector that is not what it may be. */
  #firstWrong(destination: Buffer, hydrated: [number, number][]): string | undefined {
    const { source, regionSize, checkpoints } = this.#clone;
    const { content, later } = checkpoints[this.#checkpoint] as Checkpoint;
    let from = 0;
    const runs: { start: number; end: number; isHydrated: boolean }[] = [];
    for (const [start, end] of hydrated) {
      runs.push({ start: from, end: start, isHydrated: false }, { start, end, isHydrated: true });
      from = end;
    }
    runs.push({ start: from, end: Math.ceil(source.length / regionSize), isHydrated: false });
    for (const { start, end, isHydrated } of runs) {
      const [first, last] = [start * regionSize, Math.min(source.length, end * regionSize)];
      const found = (isHydrated ? destination : source).subarray(first, last);
      if (Buffer.compare(found, content.subarray(first, last)) === 0) continue;
      for (let at = first; at < last; at += SECTOR) {
        const sector = found.subarray(at - first, at - first + SECTOR);
        if (Buffer.compare(sector, content.subarray(at, at + SECTOR)) === 0) continue;
        const isSent = later.some(
          ({ offset, data }) =>
            offset <= at &&
            at + SECTOR <= offset + data.length &&
            data.compare(sector, 0, SECTOR, at - offset, at - offset + SECTOR) === 0,
        );
        if (isSent) continue;
        const region = Math.floor(at / regionSize);
        return `sector ${at / SECTOR}, of the ${isHydrated ? "hydrated" : "unhydrated"} region ${region}, holds what it must not`;
      }
    }
    return undefined;
  }
}

/** A disk with a cache that is lost. */
class VolatileDisk {
  /** What survives for sure. Not to be changed from outside. */
  readonly durable: Buffer;
  #pending: { offset: number; data: Buffer }[] = [];

  constructor(content: Buffer) {
    this.durable = content;
  }

  write(offset: number, data: Buffer): void {
    this.#pending.push({ offset, data });
  }

  flush(): void {
    for (const { offset, data } of this.#pending) data.copy(this.durable, offset);
    this.#pending = [];
  }

  /** Makes durable all that is pending within a range, whole requests of which lie there. */
  settle(offset: number, length: number): void {
    const isInside = (write: { offset: number; data: Buffer }): boolean =>
      write.offset >= offset && write.offset + write.data.length <= offset + length;
    for (const write of this.#pending.filter(isInside)) write.data.copy(this.durable, write.offset);
    this.#pending = this.#pending.filter((write) => !isInside(write));
  }

  /** A copy, with those sectors of what is pending that `lands` says; asked for each by its offset, in order of writing. */
  landed(lands: (offset: number) => boolean): Buffer {
    const disk = Buffer.from(this.durable);
    for (const { offset, data } of this.#pending) {
      for (let at = 0; at < data.length; at += SECTOR) {
        if (lands(offset + at)) data.copy(disk, offset + at, at, at + SECTOR);
      }
    }
    return disk;
  }
}

function count(ranges: readonly [number, number][]): number {
  return ranges.reduce((sum, [start, end]) => sum + end - start, 0);
}

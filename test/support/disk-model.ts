/**
 * What a disk may hold, told from the requests it was given and has answered: a plain disk in memory that knows, for each
 * sector, the writes that a read may find there (`now`), and those that may be there after a crash (`crash`).
 *
 * - A write that is under way may be found, or what was there before, or some words of each. When it is answered it alone is there, or one of those
 *   that overlapped it in time.
 * - A discarded sector holds zeros, as one that was zeroed: a clone on a file promises that.
 * - A flush that is answered makes durable what had been answered when it was sent, whichever connection it came over. A
 *   FUA write makes itself durable.
 * - After a crash a sector holds anything written since it was last durable, or what was durable.
 *
 * Every set is too large rather than too small: what is not in it is a fault of the disk.
 */
import { isMixture, SECTOR, stampOf, ZEROS } from "./stamped-sectors.ts";

/** One write, or several of which any may be there. Never changed, only replaced. */
type Stamps = number | ReadonlySet<number>;

/** A write, a discard or a write of zeros that is under way; from sector `start` to `end`. */
export interface ModelWrite {
  readonly start: number;
  readonly end: number;
  readonly stamp: number;
  /** Writes that were under way at some time while this one was. */
  readonly rivals: ModelWrite[];
}

/** A read that is under way. */
export interface ModelRead {
  readonly start: number;
  /** What each sector may have held when it was sent. */
  readonly before: Stamps[];
  /** Writes that were under way then. */
  readonly rivals: readonly ModelWrite[];
  /** Writes sent since. */
  readonly later: ModelWrite[];
}

/** A flush that is under way. */
export interface ModelFlush {
  readonly before: Map<number, Stamps>;
  readonly later: ModelWrite[];
}

export class DiskModel {
  readonly sectors: number;
  readonly #now: Stamps[];
  readonly #crash: Stamps[];
  /** The sectors of which `now` and `crash` may differ, or are several. */
  readonly #unsettled = new Set<number>();
  readonly #writes = new Set<ModelWrite>();
  readonly #reads = new Set<ModelRead>();
  readonly #flushes = new Set<ModelFlush>();

  /** @param content stamp of each sector, durable */
  constructor(content: readonly number[]) {
    this.sectors = content.length;
    this.#now = [...content];
    this.#crash = [...content];
  }

  /** A write is sent. `stamp` is its own, or ZEROS. */
  sendWrite(start: number, end: number, stamp: number): ModelWrite {
    const write: ModelWrite = { start, end, stamp, rivals: [] };
    for (const other of this.#writes) {
      if (other.end <= start || other.start >= end) continue;
      other.rivals.push(write);
      write.rivals.push(other);
    }
    for (let sector = start; sector < end; sector++) {
      this.#now[sector] = union(this.#at(this.#now, sector), stamp);
      this.#crash[sector] = union(this.#at(this.#crash, sector), stamp);
      this.#unsettled.add(sector);
    }
    for (const other of [...this.#reads, ...this.#flushes]) other.later.push(write);
    this.#writes.add(write);
    return write;
  }

  /** It has been answered with success. */
  wrote(write: ModelWrite, { fua = false } = {}): void {
    this.#writes.delete(write);
    for (let sector = write.start; sector < write.end; sector++) {
      let stamps: Stamps = write.stamp;
      for (const rival of write.rivals) if (covers(rival, sector)) stamps = union(stamps, rival.stamp);
      this.#now[sector] = stamps;
      if (fua) this.#crash[sector] = stamps;
    }
  }

  /** It has been answered with an error: nobody knows what it did. */
  failed(write: ModelWrite): void {
    this.#writes.delete(write);
  }

  sendRead(start: number, end: number): ModelRead {
    const rivals = [...this.#writes].filter((write) => write.start < end && start < write.end);
    const read = { start, before: this.#now.slice(start, end), rivals, later: [] };
    this.#reads.add(read);
    return read;
  }

  /** It has been answered. Returns the first sector that cannot be right, and why; undefined where all can. */
  didRead(read: ModelRead, bytes: Buffer): { sector: number; why: string } | undefined {
    this.#reads.delete(read);
    for (const [index, before] of read.before.entries()) {
      const sector = read.start + index;
      const stamp = stampOf(bytes, index * SECTOR, sector);
      const later = read.later.filter((write) => covers(write, sector));
      const may = later.reduce((stamps, write) => union(stamps, write.stamp), before);
      const atRest = later.length === 0 && !read.rivals.some((write) => covers(write, sector));
      // A page cache may show a write half done.
      const torn = () => !atRest && isMixture(bytes, index * SECTOR, sector, allOf(may));
      if ((stamp === undefined || !has(may, stamp)) && !torn()) {
        return { sector, why: `holds ${stamp ?? "what nobody has written"}, not ${shown(may)}` };
      }
      // It was one of several and nothing was being done to it meanwhile: from now on it is known.
      if (typeof before !== "number" && atRest && stamp !== undefined) this.#now[sector] = stamp;
    }
    return undefined;
  }

  /** A read that got no answer. */
  forget(read: ModelRead): void {
    this.#reads.delete(read);
  }

  sendFlush(): ModelFlush {
    const before = new Map([...this.#unsettled].map((sector) => [sector, this.#at(this.#now, sector)]));
    const flush = { before, later: [] };
    this.#flushes.add(flush);
    return flush;
  }

  flushed(flush: ModelFlush): void {
    this.#flushes.delete(flush);
    for (const [sector, before] of flush.before) {
      let durable = before;
      for (const write of flush.later) if (covers(write, sector)) durable = union(durable, write.stamp);
      // A FUA write may have told more meanwhile.
      this.#crash[sector] = intersection(durable, this.#at(this.#crash, sector));
      const settled = this.#crash[sector];
      if (typeof settled === "number" && settled === this.#now[sector]) this.#unsettled.delete(sector);
    }
  }

  /** A flush that got no answer. */
  unflushed(flush: ModelFlush): void {
    this.#flushes.delete(flush);
  }

  /** Everything in flight is gone, and of each sector the disk holds anything that may be there after a crash. */
  crashed(): void {
    for (const sector of this.#unsettled) this.#now[sector] = this.#at(this.#crash, sector);
    for (const underWay of [this.#writes, this.#reads, this.#flushes]) underWay.clear();
  }

  /** The disk was stopped in order: what it answered is durable. */
  stopped(): void {
    for (const sector of this.#unsettled) this.#crash[sector] = this.#at(this.#now, sector);
    for (const underWay of [this.#writes, this.#reads, this.#flushes]) underWay.clear();
  }

  /** Holds the whole disk, at rest, against the model; from then on each sector is known. Returns as `didRead` does. */
  settle(bytes: Buffer): { sector: number; why: string } | undefined {
    const wrong = this.didRead(this.sendRead(0, this.sectors), bytes);
    if (wrong !== undefined) return wrong;
    for (const sector of this.#unsettled) {
      const stamp = stampOf(bytes, sector * SECTOR, sector) ?? ZEROS;
      this.#now[sector] = stamp;
      this.#crash[sector] = stamp;
    }
    this.#unsettled.clear();
    return undefined;
  }

  #at(stamps: readonly Stamps[], sector: number): Stamps {
    const found = stamps[sector];
    if (found === undefined) throw new RangeError(`sector ${sector} is beyond the end`);
    return found;
  }
}

function covers({ start, end }: ModelWrite, sector: number): boolean {
  return start <= sector && sector < end;
}

function has(stamps: Stamps, stamp: number): boolean {
  return typeof stamps === "number" ? stamps === stamp : stamps.has(stamp);
}

function union(stamps: Stamps, stamp: number): Stamps {
  if (has(stamps, stamp)) return stamps;
  return new Set(typeof stamps === "number" ? [stamps, stamp] : [...stamps, stamp]);
}

function intersection(one: Stamps, other: Stamps): Stamps {
  const common = allOf(one).filter((stamp) => has(other, stamp));
  const [first] = common;
  if (first === undefined) throw new Error("the model contradicts itself");
  return common.length === 1 ? first : new Set(common);
}

function allOf(stamps: Stamps): number[] {
  return typeof stamps === "number" ? [stamps] : [...stamps];
}

function shown(stamps: Stamps): string {
  return allOf(stamps).join(" or ");
}

/**
 * Disks with a volatile write cache in one machine, and the log of what happened to them, from which every state that a
 * power cut may leave is derived afterwards (`sim-crash.ts`).
 *
 *     asked ── pause ── applied ── pause ── [rest applied] ── pause ── answered        a write, zero, discard
 *                          │                     │                        │
 *     log                change               change                  (durable, if FUA)
 *
 *     asked ── pause ── durable: what had been answered when the flush was asked for ── pause ── answered
 *
 *     asked ── pause ── fails: what had been answered when it was asked for may never be durable, whoever flushes later
 *
 * Pauses are drawn from the seed, so requests overlap in any way and end in any order. A flush is as weak as a device may make it:
 * a write that was still under way when it was asked for may be lost after it.
 */
import type { BlockDevice, Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { ioError } from "../../src/device/io-error.ts";
import { checkRange } from "../../src/device/range-check.ts";
import type { LossyServer } from "./lossy-link-device.ts";
import { pagesOf, SECTOR, type SparseImage } from "./sim-image.ts";
import type { VirtualClock } from "./virtual-clock.ts";

const ZEROS = Buffer.alloc(4096);

/** Sectors of a disk that were given new content in one instant. */
export interface DiskChange {
  readonly kind: "change";
  readonly at: number;
  readonly disk: SimulatedDisk;
  readonly verb: "write" | "zero" | "discard" | "loss";
  readonly firstSector: number;
  /** Of whole sectors, as they are from this moment on. */
  readonly data: Buffer;
  /** When the request that it is of was answered, or Infinity. */
  answeredAt: number;
}

/** Changes that are on the medium from this moment on. */
export interface DiskDurable {
  readonly kind: "durable";
  readonly at: number;
  readonly disk: SimulatedDisk;
  /** When the flush, or the FUA write, was asked for. */
  readonly askedAt: number;
  readonly flush: boolean;
  readonly changes: readonly DiskChange[];
}

/** Something else that happened: for assertions about the order of things, and for people. */
export interface Note {
  readonly kind: "note";
  readonly at: number;
  readonly what: string;
  /** Regions that were marked hydrated in memory at this moment. */
  readonly marked?: { start: number; end: number };
  /** Somebody was answered: from here on more is promised. */
  readonly answer?: boolean;
  /** So many regions are hydrated for good. */
  readonly committed?: number;
}

export type SimulationEvent = DiskChange | DiskDurable | Note;

/** What happened, in order; `at` are moments of one counter that everything in the machine shares. */
export class SimulationLog {
  readonly events: SimulationEvent[] = [];
  #now = 1;
  #closed = false;

  /** A moment of its own. */
  moment(): number {
    return this.#now++;
  }

  note(what: string, details: Pick<Note, "marked" | "answer" | "committed"> = {}): void {
    this.add({ kind: "note", at: this.moment(), what, ...details });
  }

  add(event: SimulationEvent): void {
    if (!this.#closed) this.events.push(event);
  }

  /** Whatever comes now has no part in it any more. */
  close(): void {
    this.#closed = true;
  }
}

/** How a disk behaves. Chances from 0 to 1; ms. */
export interface DiskHabits {
  /** The longest pause within a request. */
  latencyMs: number;
  /** That a request that could be served at once is. */
  immediate?: number;
  failWrite?: number;
  failFlush?: number;
  /** Zeroing takes no longer than a discard. Default true. */
  zeroesFast?: boolean;
  /** A flush is answered and makes nothing durable; so is FUA. */
  lies?: boolean;
}

/** One disk. */
export class SimulatedDisk implements BlockDevice {
  readonly name: string;
  readonly size: number;
  readonly readOnly = false;
  readonly blockSize = SECTOR;
  /** What was there before anything happened, durably. */
  readonly born: SparseImage;
  /** What a read finds. */
  readonly seen: SparseImage;
  /** May be changed at any time. */
  habits: DiskHabits;
  readonly #log: SimulationLog;
  readonly #clock: VirtualClock;
  readonly #random: () => number;
  /** Not durable yet. */
  #cached: DiskChange[] = [];
  /** What is durable of each sector, as far as it is not what was there at first. */
  readonly #durable = new Map<number, DiskChange>();

  constructor(
    content: SparseImage,
    parts: {
      name: string;
      size?: number;
      log: SimulationLog;
      clock: VirtualClock;
      random: () => number;
      habits: DiskHabits;
    },
  ) {
    this.name = parts.name;
    this.size = parts.size ?? content.size;
    this.born = content.copy();
    this.seen = content.copy();
    this.habits = parts.habits;
    this.#log = parts.log;
    this.#clock = parts.clock;
    this.#random = parts.random;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    await this.#pause();
    const bytes = Buffer.alloc(buffer.length);
    this.seen.read(offset, bytes);
    await this.#pause();
    buffer.set(bytes);
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    checkRange(this, offset, buffer.length);
    if (!this.#happens(this.habits.immediate)) return false;
    this.seen.read(offset, buffer);
    return true;
  }

  async write(offset: number, data: Uint8Array, { fua = false }: { fua?: boolean } = {}): Promise<void> {
    checkRange(this, offset, data.length);
    await this.#inParts("write", offset, data.length, fua, (from, to) => [
      this.#apply("write", from, data.subarray(from - offset, to - offset)),
    ]);
  }

  tryWrite(offset: number, data: Uint8Array): boolean {
    checkRange(this, offset, data.length);
    if (!this.#happens(this.habits.immediate)) return false;
    this.#apply("write", offset, data).answeredAt = this.#log.moment();
    return true;
  }

  async zero(offset: number, length: number, { fua = false }: ZeroOptions = {}): Promise<void> {
    checkRange(this, offset, length);
    await this.#inParts("zero", offset, length, fua, (from, to) => this.#applyZeros("zero", from, to));
  }

  async canZeroFast(): Promise<boolean> {
    return this.habits.zeroesFast !== false;
  }

  /** As a sparse file does: whole pages are gone, and read as zeros. */
  async discard(offset: number, length: number): Promise<void> {
    checkRange(this, offset, length);
    await this.#inParts("discard", offset, length, false, (from, to) => this.#applyZeros("discard", from, to));
  }

  async flush(): Promise<void> {
    const askedAt = this.#log.moment();
    await this.#pause();
    if (this.#happens(this.habits.failFlush)) {
      // As a page that could not be written counts as clean from then on.
      this.#cached = this.#cached.filter((change) => change.answeredAt >= askedAt || this.#happens(0.5));
      this.#log.note(`${this.name}: a flush fails`);
      throw ioError({ verb: "flush", name: this.name, errno: "EIO" });
    }
    this.#makeDurable(askedAt, true, (change) => change.answeredAt < askedAt);
    await this.#pause();
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    await this.#pause();
    const extents = length === 0 ? [] : this.seen.extents(offset, length);
    await this.#pause();
    return extents;
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** The same disk in a server at the other end of a connection that breaks: what is asked of it is done at once. */
  asServer(): LossyServer {
    const disk = this;
    const answered = (changes: DiskChange[]): void => {
      const at = this.#log.moment();
      for (const change of changes) change.answeredAt = at;
    };
    return {
      size: this.size,
      read: async (offset, buffer) => this.seen.read(offset, buffer),
      write: async (offset, data) => answered(data.length > 0 ? [this.#apply("write", offset, data)] : []),
      flush: async () => this.#makeDurable(this.#log.moment(), true, () => true),
      loseCache: (random) => answered(this.#loseCache(random)),
      get durable(): Buffer {
        throw new Error(`nobody looks at ${disk.name} but the log`);
      },
    };
  }

  /** Of each sector that was changed the medium holds, from now on, what was durable or any of its contents since. */
  #loseCache(random: () => number): DiskChange[] {
    const sectors = new Set(this.#cached.flatMap(sectorsOf));
    const changes: DiskChange[] = [];
    for (const sector of sectors) {
      const versions = this.#cached.filter((change) => sectorsOf(change).includes(sector));
      const landed = versions[Math.floor(random() * (versions.length + 1)) - 1] ?? this.#durable.get(sector);
      const bytes = landed === undefined ? this.#bornSector(sector) : sectorOf(landed, sector);
      changes.push(this.#apply("loss", sector * SECTOR, bytes));
    }
    this.#makeDurable(this.#log.moment(), false, () => true);
    return changes;
  }

  #bornSector(sector: number): Buffer {
    const bytes = Buffer.alloc(SECTOR);
    this.born.read(sector * SECTOR, bytes);
    return bytes;
  }

  /** A request in two halves, cut where sectors end, each applied in one instant. */
  async #inParts(
    verb: DiskChange["verb"],
    offset: number,
    length: number,
    fua: boolean,
    apply: (from: number, to: number) => DiskChange[],
  ): Promise<void> {
    const askedAt = this.#log.moment();
    const end = offset + length;
    const cut = Math.ceil((offset + this.#random() * 1.3 * length) / SECTOR) * SECTOR;
    const middle = Math.min(end, Math.max(offset, cut));
    const fails = this.#happens(this.habits.failWrite);
    const changes: DiskChange[] = [];
    await this.#pause();
    if (middle > offset) changes.push(...apply(offset, middle));
    if (middle < end && !fails) {
      await this.#pause();
      changes.push(...apply(middle, end));
    }
    await this.#pause();
    // What a request that failed has done is there, and the next flush covers it like anything that can be seen.
    const answeredAt = this.#log.moment();
    for (const change of changes) change.answeredAt = answeredAt;
    if (fails) {
      this.#log.note(`${this.name}: a ${verb} of ${length} bytes at ${offset} fails`);
      throw ioError({ verb, name: this.name, offset, length, errno: "ENOSPC" });
    }
    if (fua) this.#makeDurable(askedAt, false, (change) => changes.includes(change));
  }

  #applyZeros(verb: DiskChange["verb"], from: number, to: number): DiskChange[] {
    // What has never been written is zeros, on the medium too.
    return pagesOf(this.seen, from, to - from).map(({ start, end }) =>
      this.#apply(verb, start, ZEROS.subarray(0, end - start)),
    );
  }

  #apply(verb: DiskChange["verb"], offset: number, data: Uint8Array): DiskChange {
    this.seen.write(offset, data);
    const firstSector = Math.floor(offset / SECTOR);
    const sectors = Math.ceil((offset + data.length) / SECTOR) - firstSector;
    const whole = Buffer.alloc(sectors * SECTOR);
    this.seen.read(firstSector * SECTOR, whole);
    const at = this.#log.moment();
    const change: DiskChange = { kind: "change", at, disk: this, verb, firstSector, data: whole, answeredAt: Infinity };
    this.#log.add(change);
    this.#cached.push(change);
    return change;
  }

  #makeDurable(askedAt: number, flush: boolean, isCovered: (change: DiskChange) => boolean): void {
    const changes = this.habits.lies ? [] : this.#cached.filter(isCovered);
    const covered = new Set(changes);
    this.#cached = this.#cached.filter((change) => !covered.has(change));
    for (const change of changes) {
      for (const sector of sectorsOf(change)) {
        if ((this.#durable.get(sector)?.at ?? 0) < change.at) this.#durable.set(sector, change);
      }
    }
    this.#log.add({ kind: "durable", at: this.#log.moment(), disk: this, askedAt, flush, changes });
  }

  #happens(chance = 0): boolean {
    return chance > 0 && this.#random() < chance;
  }

  async #pause(): Promise<void> {
    const { latencyMs } = this.habits;
    if (latencyMs > 0) await this.#clock.sleep(Math.floor(this.#random() * (latencyMs + 1)));
  }
}

/** The sectors that a change gave new content. */
export function sectorsOf({ firstSector, data }: DiskChange): number[] {
  return Array.from({ length: data.length / SECTOR }, (_, index) => firstSector + index);
}

/** What a change made of one of its sectors. */
export function sectorOf({ firstSector, data }: DiskChange, sector: number): Buffer {
  const from = (sector - firstSector) * SECTOR;
  return data.subarray(from, from + SECTOR);
}

/** An event as a line of text. */
export function shownEvent(event: SimulationEvent): string {
  if (event.kind === "note") return `${event.at} ${event.what}`;
  const { at, disk } = event;
  if (event.kind === "durable") {
    return `${at} ${disk.name} ${event.flush ? "flush" : "FUA"} of ${event.askedAt}: ${event.changes.length} changes`;
  }
  return `${at} ${disk.name} ${event.verb} ${event.firstSector * 512}+${event.data.length}`;
}

/**
 * The states that a power cut may leave, told from the log: it is played once from the beginning, and at any cut each disk
 * holds what was durable then and, of every sector that was changed since, either that or any of the contents it was
 * given since, on its own.
 *
 *     base image     durable at the cut                                 ─┐
 *     versions       of each sector, the contents since, oldest first    ├─► picked in place, looked at, put back
 *     a choice       which of them has reached the medium               ─┘
 */
import { createHash } from "node:crypto";
import { type DiskChange, type SimulatedDisk, type SimulationEvent, sectorOf, sectorsOf } from "./sim-disk.ts";
import { SECTOR, type SparseImage } from "./sim-image.ts";

/** Which of the unflushed contents have landed. */
export type LandedMode = "none" | "all" | "all but one" | "only one" | "some writes" | "torn";

/** One disk as it would be after a power cut at the moment that has been reached. */
export class DiskAtCut {
  readonly disk: SimulatedDisk;
  /** What is durable; with a choice in place, what the medium holds. */
  readonly image: SparseImage;
  /** Of what the image holds and did not hold at first, put together from those of its sectors. */
  readonly #digest = new Uint32Array(2);
  readonly #versions = new Map<number, DiskChange[]>();
  #pending: DiskChange[] = [];

  constructor(disk: SimulatedDisk) {
    this.disk = disk;
    this.image = disk.born.copy();
  }

  /** Plays one event; those of other disks change nothing. */
  play(event: SimulationEvent): void {
    if (event.kind === "note" || event.disk !== this.disk) return;
    if (event.kind === "change") {
      this.#pending.push(event);
      for (const sector of sectorsOf(event)) {
        const versions = this.#versions.get(sector);
        if (versions === undefined) this.#versions.set(sector, [event]);
        else versions.push(event);
      }
      return;
    }
    if (event.changes.length === 0) return;
    const durable = new Set(event.changes);
    this.#pending = this.#pending.filter((change) => !durable.has(change));
    for (const sector of new Set(event.changes.flatMap(sectorsOf))) {
      const versions = this.#versions.get(sector) ?? [];
      const last = versions.findLastIndex((change) => durable.has(change));
      if (last < 0) continue; // a later content is durable already
      this.#put(sector, versions[last] as DiskChange);
      const rest = versions.slice(last + 1);
      if (rest.length === 0) this.#versions.delete(sector);
      else this.#versions.set(sector, rest);
    }
  }

  /** Writes that may be lost. */
  get pending(): number {
    return this.#pending.length;
  }

  /**
   * Has some of the unflushed contents land, looks, and takes them back. `look` is given a name of what the medium holds: the same
   * name for the same bytes, however they got there, and another for others.
   */
  async withLanded<T>(mode: LandedMode, random: () => number, look: (name: string) => Promise<T>): Promise<T> {
    const landed = this.#choose(mode, random);
    const before = new Map<number, Buffer>();
    for (const [sector, change] of landed) {
      const bytes = Buffer.alloc(SECTOR);
      this.image.read(sector * SECTOR, bytes);
      before.set(sector, bytes);
      this.#put(sector, change);
    }
    try {
      return await look(this.#digest.join("."));
    } finally {
      for (const [sector, bytes] of before) this.#write(sector, bytes);
    }
  }

  #choose(mode: LandedMode, random: () => number): Map<number, DiskChange> {
    const landed = new Map<number, DiskChange>();
    if (mode === "none") return landed;
    if (mode === "torn") {
      for (const [sector, versions] of this.#versions) {
        const change = versions[Math.floor(random() * (versions.length + 1)) - 1];
        if (change !== undefined) landed.set(sector, change);
      }
      return landed;
    }
    const one = Math.floor(random() * this.#pending.length);
    const lands = (index: number): boolean => {
      if (mode === "all") return true;
      if (mode === "some writes") return random() < 0.5;
      return (index === one) === (mode === "only one");
    };
    const chosen = new Set(this.#pending.filter((_, index) => lands(index)));
    for (const [sector, versions] of this.#versions) {
      const change = versions.findLast((version) => chosen.has(version));
      if (change !== undefined) landed.set(sector, change);
    }
    return landed;
  }

  #put(sector: number, change: DiskChange): void {
    this.#write(sector, sectorOf(change, sector));
  }

  #write(sector: number, bytes: Buffer): void {
    const before = Buffer.alloc(SECTOR);
    this.image.read(sector * SECTOR, before);
    this.image.write(sector * SECTOR, bytes);
    // What was there is taken out, what is there now put in.
    for (const content of [before, bytes]) {
      const hash = createHash("md5").update(`${sector} `).update(content).digest();
      for (const word of [0, 1]) {
        this.#digest[word] = (this.#digest[word] as number) ^ hash.readUInt32LE(4 * word);
      }
    }
  }
}

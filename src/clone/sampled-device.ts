/**
 * A destination that remembers some of what was written to it and flushed. A disk behind NBD has no identity: after a loss of its
 * connection another one may be there, or the same that has lost what it has called durable, and every bit that is on disk
 * would vouch for nothing.
 *
 *     write ends ──► recent ──► a flush that was begun afterwards succeeds ──► durable: must be there for ever
 *                      │                                                          │
 *                      └── a flush fails: may be lost ──► forgotten ◄── changed ──┘
 *
 * Digests are taken of the bytes as they are written, so nothing is read for them. Of what has been written at the same time as
 * something else in its place nobody knows how it came out: it is no sample.
 */
import { createHash } from "node:crypto";
import type { BlockDevice, ZeroOptions } from "../device/block-device.ts";
import { FilterDevice } from "../device/filters/filter-device.ts";
import type { Probe } from "../device/remote-device.ts";
import { isUnreadable } from "../engine/source-errors.ts";
import { notRecognised } from "./content-samples.ts";

/** Samples kept, at most, of each kind; of the recent ones a flush takes no more over than leave half of the older ones. */
const MOST_DURABLE = 32;
const MOST_RECENT = 16;
/** Of each, at most. */
const SAMPLE_BYTES = 16384;

interface Sample {
  readonly start: number;
  readonly end: number;
  readonly digest: string;
  durable: boolean;
}

/** A change while it is made. */
interface Change {
  readonly start: number;
  readonly end: number;
  /** Another one has touched the same bytes meanwhile. */
  mixed: boolean;
}

/** The filter. All that changes the device must go through it. */
export class SampledDevice extends FilterDevice {
  readonly #random: () => number;
  readonly #samples = new Set<Sample>();
  readonly #underWay = new Set<Change>();
  /** Writes since the last flush that could have become samples. */
  #written = 0;

  /** @param random uniformly from 0 to 1: which writes are remembered */
  constructor(inner: BlockDevice, random: () => number = Math.random) {
    super(inner);
    this.#random = random;
  }

  /** Remembers the beginning of each range, as it is now, flushed before and not changed since. @throws {DeviceError} */
  async remember(ranges: readonly { offset: number; length: number }[]): Promise<void> {
    await Promise.all(
      ranges.map(async ({ offset, length }) => {
        const bytes = new Uint8Array(Math.min(SAMPLE_BYTES, length));
        await this.inner.read(offset, bytes);
        this.#samples.add({ ...sampleOf(offset, bytes), durable: true });
      }),
    );
  }

  /**
   * How what is there now differs from what was flushed: the end of a sentence about it, or undefined.
   * @throws {DeviceError} where too few samples can be read to tell: nobody takes it for anything then
   * @throws what `probe` throws where it cannot reach the device
   */
  async difference(probe: Probe): Promise<string | undefined> {
    const durable = [...this.#samples].filter((sample) => sample.durable);
    const findings = await Promise.all(durable.map((sample) => this.#look(sample, probe)));
    if (findings.includes("differs")) return "it is another disk, or has lost what was flushed to it";
    const unreadable = findings.filter((finding) => finding === "unreadable").length;
    if (unreadable * 2 <= findings.filter((finding) => finding !== "outdated").length) return undefined;
    throw notRecognised(this.name, "too few samples of what was flushed can be read to know it again");
  }

  async #look(sample: Sample, probe: Probe): Promise<"same" | "differs" | "unreadable" | "outdated"> {
    const bytes = new Uint8Array(sample.end - sample.start);
    let finding: "same" | "differs" | "unreadable";
    try {
      await probe(sample.start, bytes);
      finding = digestOf(bytes) === sample.digest ? "same" : "differs";
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      finding = "unreadable";
    }
    // Through other connections it may have been changed meanwhile.
    return finding === "same" || this.#samples.has(sample) ? finding : "outdated";
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    const change = await this.#make(offset, data.length, () => super.write(offset, data, options));
    if (!change.mixed && data.length > 0) this.#note(offset, data);
  }

  /** What has no promise has no end either that could be waited for. */
  override tryWrite(): boolean {
    return false;
  }

  override async zero(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    await this.#make(offset, length, () => super.zero(offset, length, options));
  }

  override async discard(offset: number, length: number): Promise<void> {
    await this.#make(offset, length, () => super.discard(offset, length));
  }

  override async reflinkFrom(source: BlockDevice, from: number, offset: number, length: number): Promise<boolean> {
    let shared = false;
    await this.#make(offset, length, async () => {
      shared = await super.reflinkFrom(source, from, offset, length);
    });
    return shared;
  }

  override async flush(): Promise<void> {
    const covered = [...this.#samples];
    this.#written = 0;
    try {
      await super.flush();
    } catch (error) {
      for (const sample of this.#samples) if (!sample.durable) this.#samples.delete(sample);
      throw error;
    }
    this.#keep(covered.filter((sample) => !sample.durable && this.#samples.has(sample)));
  }

  /** They are durable now; where there are too many samples, old and new ones go. */
  #keep(flushed: Sample[]): void {
    let room = Math.max(MOST_DURABLE / 2, MOST_DURABLE - this.#count(true));
    for (const sample of flushed) {
      if (room-- > 0) sample.durable = true;
      else this.#samples.delete(sample);
    }
    while (this.#count(true) > MOST_DURABLE) this.#forgetOne(true);
  }

  async #make(offset: number, length: number, make: () => Promise<void>): Promise<Change> {
    const change: Change = { start: offset, end: offset + length, mixed: false };
    for (const sample of this.#samples) if (overlap(sample, change)) this.#samples.delete(sample);
    for (const other of this.#underWay) {
      if (!overlap(other, change)) continue;
      other.mixed = true;
      change.mixed = true;
    }
    this.#underWay.add(change);
    try {
      await make();
    } finally {
      this.#underWay.delete(change);
    }
    return change;
  }

  /** Of all writes since the last flush each is as likely to be remembered as any other. */
  #note(offset: number, data: Uint8Array): void {
    this.#written++;
    if (this.#count(false) >= MOST_RECENT) {
      if (this.#random() * this.#written >= MOST_RECENT) return;
      this.#forgetOne(false);
    }
    this.#samples.add(sampleOf(offset, data.subarray(0, SAMPLE_BYTES)));
  }

  #count(durable: boolean): number {
    let count = 0;
    for (const sample of this.#samples) if (sample.durable === durable) count++;
    return count;
  }

  #forgetOne(durable: boolean): void {
    const those = [...this.#samples].filter((sample) => sample.durable === durable);
    const one = those[Math.floor(this.#random() * those.length)];
    if (one !== undefined) this.#samples.delete(one);
  }
}

function sampleOf(offset: number, bytes: Uint8Array): Sample {
  return { start: offset, end: offset + bytes.length, digest: digestOf(bytes), durable: false };
}

function digestOf(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("base64");
}

function overlap(a: { start: number; end: number }, b: { start: number; end: number }): boolean {
  return a.start < b.end && b.start < a.end;
}

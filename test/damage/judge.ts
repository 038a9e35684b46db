/**
 * Shows a damaged image to everything that reads metadata, and judges what it makes of it by the truth.
 *
 *     nothing in use was struck      all of it works, and says the truth
 *     something in use was struck    the checker finds it; or what it means is the same
 *     sealed at its place            a block of the right type, number and shape: what the format cannot tell from a true one.
 *                                    The checker may find nothing, and then each wrong region must be reached through such
 *                                    a block; these images are counted, never passed over
 *
 * Whatever it is: nothing but operating errors is thrown, work is bounded by the size of the device, and no region is called
 * hydrated that is not.
 */
import { CloneError } from "../../src/base/errors.ts";
import { refuseOtherBits } from "../../src/clone/settled-bits.ts";
import { type CheckReport, checkMetadata, formatFinding } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES, DescriptorStore } from "../../src/metadata/descriptor.ts";
import { dumpMetadata } from "../../src/metadata/dump.ts";
import { metadataByteLength } from "../../src/metadata/metadata-size.ts";
import { planRepair, type RepairRequest, writeRepaired } from "../../src/metadata/repair.ts";
import { readDump } from "../../src/metadata/restore-dump.ts";
import type { SeededRandom } from "../support/random.ts";
import { type BaseImage, BLOCK, merged, type Range, type Role } from "./base-image.ts";
import { type Damage, isSealed, originalOf } from "./blows.ts";
import { DamagedDevice } from "./damaged-device.ts";

/** What an image is counted as. */
export const OUTCOMES = [
  "found",
  "harmless",
  "without a change of meaning",
  "an older state that the format cannot tell",
  "other bits that the format cannot tell",
] as const;
export type Outcome = (typeof OUTCOMES)[number];

/** What a repair makes of it. */
export const REPAIR_OUTCOMES = ["sound to repair", "repaired exactly", "repaired partly", "refused by repair"] as const;
export type RepairOutcome = (typeof REPAIR_OUTCOMES)[number];

/** Something that must not be. */
export class Violation extends Error {}

/** Bytes read for each byte of the device, and besides: a check reads most blocks once, a repair checks and reads again. */
const READS_PER_BYTE = 8;
const READS_BESIDES = 2 ** 21;
/** Findings are bounded by kind (test/unit/metadata/check.test.ts); these are all kinds' together. */
const MOST_FINDINGS = 600;

/** One image under judgement. */
export class Judgement {
  readonly #base: BaseImage;
  readonly #damage: Damage;
  readonly #random: SeededRandom;
  /** Blocks in use that are not as they were. */
  readonly #struck: Map<number, Role>;
  /** Whether there is a descriptor that says how the clone was left. */
  #isDescribed = false;

  constructor(base: BaseImage, damage: Damage, random: SeededRandom) {
    this.#base = base;
    this.#damage = damage;
    this.#random = random;
    const isStruck = (block: number) =>
      damage.blocks.has(block) || damage.unreadable.has(block) || (block + 1) * BLOCK > damage.size;
    this.#struck = new Map([...base.live].filter(([block]) => isStruck(block)));
  }

  /** @throws {Violation} */
  async judge(): Promise<Outcome> {
    const report = await this.#check(this.#device());
    const opened = await this.#open(report);
    await this.#commit(report, opened);
    if (opened !== null) await this.#dump(opened);
    return this.#outcome(report, opened);
  }

  /** @throws {Violation} */
  async repair(): Promise<RepairOutcome> {
    const device = this.#device();
    const before = await this.#check(device);
    const plan = await this.#planAndWrite({});
    if (plan === null) {
      // What nobody knows may at least be called unhydrated, by the user.
      await this.#planAndWrite({ assume: "unhydrated" });
      return "refused by repair";
    }
    if (before.ok && before.warnings.length === 0) return "sound to repair";
    return same(plan, this.#base.truth) ? "repaired exactly" : "repaired partly";
  }

  #device(readOnly = true): DamagedDevice {
    const { blocks, size, unreadable } = this.#damage;
    const there = new Map([...blocks].filter(([block]) => block * BLOCK < size));
    return new DamagedDevice(this.#base.bytes.subarray(0, size), there, { size, unreadable, readOnly });
  }

  async #check(device: DamagedDevice): Promise<CheckReport> {
    const report = await checkMetadata(device);
    const findings = report.fatal.length + report.warnings.length;
    if (findings > MOST_FINDINGS) throw new Violation(`${findings} findings`);
    this.#bound("check", device);
    return report;
  }

  #bound(what: string, { bytesRead, size }: DamagedDevice): void {
    if (bytesRead > size * READS_PER_BYTE + READS_BESIDES)
      throw new Violation(`${what} read ${bytesRead} bytes of ${size}`);
  }

  /** What is hydrated as the program sees it, or null where it refuses the metadata. */
  async #open(report: CheckReport): Promise<Range[] | null> {
    const device = this.#device();
    try {
      await using metadata = await CloneMetadata.open(device, { readOnly: true });
      const ranges = rangesOf(metadata);
      this.#bound("open", device);
      if (report.ok && report.facts?.hydratedRegions !== metadata.hydratedCount) {
        throw new Violation(`check counts ${report.facts?.hydratedRegions} hydrated, open ${metadata.hydratedCount}`);
      }
      const place = { geometry: metadata.geometry, blockCount: metadata.totalBlocks };
      const descriptor = (await DescriptorStore.open(device, place)).read();
      this.#isDescribed = descriptor?.destination.settled != null;
      const refused = await refuseOtherBits(device, metadata, descriptor).then(
        () => false,
        () => true,
      );
      if (refused ? report.ok : report.bitsRefuted) throw new Violation("check and clone differ about what was left");
      this.#explain("open", ranges);
      return ranges;
    } catch (error) {
      if (!(error instanceof CloneError)) throw error;
      this.#bound("open", device);
      if (report.ok) throw new Violation(`check finds nothing fatal, open says: ${error.message}`);
      return null;
    }
  }

  /** Goes on with the clone on a copy: what is marked is there afterwards, with all that was there before. */
  async #commit(report: CheckReport, opened: Range[] | null): Promise<void> {
    const device = this.#device(false);
    try {
      await using metadata = await CloneMetadata.open(device);
      const start = metadata.nextUnhydrated(this.#random.integer(0, metadata.regionCount - 1));
      if (start === metadata.regionCount) return;
      const end = Math.min(metadata.regionCount, start + this.#random.integer(1, 3));
      const before = rangesOf(metadata);
      await unsettle(device, metadata);
      metadata.markHydrated({ start, end });
      metadata.preCommit();
      await metadata.commit();
      this.#bound("commit", device);
      if (opened !== null && !same(before, opened)) throw new Violation("open for writing sees other bits");
      const after = await CloneMetadata.open(device, { readOnly: true });
      if (!same(rangesOf(after), merged([...before, [start, end]]))) throw new Violation("a commit lost or made bits");
      const again = await checkMetadata(device);
      if (report.ok && !again.ok)
        throw new Violation(`a commit did harm: ${again.fatal.map(formatFinding).join(" | ")}`);
    } catch (error) {
      if (!(error instanceof CloneError)) throw error;
      const isFull = error.code === "failed" && /No block is free/.test(error.message);
      if (report.ok && !isFull) throw new Violation(`check finds nothing fatal, a commit says: ${error.message}`);
    }
  }

  async #dump(opened: Range[]): Promise<void> {
    if (!this.#random.oneIn(4)) return;
    await using metadata = await CloneMetadata.open(this.#device(), { readOnly: true });
    const { geometry } = metadata;
    const pieces = dumpMetadata({ geometry, hydratedRanges: metadata.hydratedRanges(), descriptor: null }, "line");
    const { bits } = await readDump(encoded(pieces), "dump");
    const ranges = [...bits.ranges()].map(({ start, end }): Range => [start, end]);
    if (!same(ranges, opened)) throw new Violation("the dump has other bits");
  }

  /** The hydrated regions of what a repair writes, or null where it refuses. */
  async #planAndWrite(request: RepairRequest): Promise<Range[] | null> {
    const device = this.#device();
    const plan = await planRepair(device, request);
    this.#bound("repair", device);
    if (!plan.ok) {
      if (plan.reason === "" || /\n/.test(plan.reason))
        throw new Violation(`a repair is refused with "${plan.reason}"`);
      return null;
    }
    const size = metadataByteLength(plan.blockCount) + DESCRIPTOR_BYTES;
    const repaired = new DamagedDevice(Buffer.alloc(size), new Map(), { readOnly: false });
    await writeRepaired(plan, repaired);
    const { verdict, fatal, warnings } = await checkMetadata(repaired);
    const findings = [...fatal, ...warnings].map(formatFinding);
    // What an older superblock has cost stays lost, and stays to be told.
    const isOlder =
      verdict === "warnings" && findings.length === 1 && /when the clone was left/.test(findings[0] ?? "");
    if (verdict !== "clean" && !isOlder)
      throw new Violation(`what repair writes is ${verdict}: ${findings.join(" | ")}`);
    const metadata = await CloneMetadata.open(repaired, { readOnly: true });
    const ranges = rangesOf(metadata);
    this.#explain("repair", ranges);
    return ranges;
  }

  #outcome(report: CheckReport, opened: Range[] | null): Outcome {
    const { truth } = this.#base;
    const findings = [...report.fatal, ...report.warnings].filter(({ structure }) => structure !== "descriptor");
    if (this.#struck.size === 0) {
      // A file that ends before its last managed block is cut off, whatever was in the part that is gone.
      const isCut = this.#damage.size < this.#base.blockCount * BLOCK;
      if (isCut !== report.fatal.length > 0)
        throw new Violation(`free space is struck: ${findings.map(formatFinding).join(" | ")}`);
      if (!isCut && findings.length > 0)
        throw new Violation(`free space is struck: ${findings.map(formatFinding).join(" | ")}`);
      if (!isCut && (opened === null || !same(opened, truth)))
        throw new Violation("free space is struck, and the bits differ");
      return isCut ? "found" : "harmless";
    }
    if (report.fatal.length > 0) return "found";
    if (opened === null) throw new Violation("nothing fatal, but not opened");
    if (same(opened, truth)) {
      const unsealed = [...this.#struck].find(([block, role]) => !this.#isSealed(block, role));
      if (findings.length > 0) return "found";
      if (unsealed !== undefined) throw new Violation(`block ${unsealed[0]} is damaged, and not found`);
      return "without a change of meaning";
    }
    const missing = firstMissing(truth, opened);
    if (missing !== null) this.#explainRegion("open", missing);
    if (findings.length > 0) return "found";
    const isOlder = firstMissing(opened, truth) === null;
    // Our descriptor can tell, unless another superblock, or more bits, say that somebody has gone on with the clone.
    const goneOn = !isOlder && (this.#struck.has(0) || count(opened) > count(truth));
    if (this.#isDescribed && !goneOn) throw new Violation("the descriptor knows other bits");
    return isOlder ? "an older state that the format cannot tell" : "other bits that the format cannot tell";
  }

  /** @throws {Violation} where a region is called hydrated that is not, unless the format cannot tell why */
  #explain(who: string, ranges: readonly Range[]): void {
    const wrong = firstMissing(ranges, this.#base.truth);
    if (wrong !== null) this.#explainRegion(who, wrong);
  }

  /** Every block that the wrong bit was read from or through, and that was struck, has its seal; at least one was struck. */
  #explainRegion(who: string, region: number): void {
    const path = this.#pathTo(region);
    const struck = path.filter(([block]) => this.#damage.blocks.has(block));
    if (struck.length > 0 && struck.every(([block, role]) => this.#isSealed(block, role))) return;
    // Repair finds array blocks without the part of the tree that is lost: then the sealed one is what it was misled by.
    const misled = [...this.#struck].some(([block, role]) => role === "array" && this.#isSealed(block, role));
    if (who === "repair" && misled) return;
    const way = path.map(([block, role]) => `${role} ${block}${this.#damage.blocks.has(block) ? "*" : ""}`).join(", ");
    throw new Violation(`${who} is wrong about region ${region}, which is read from ${way}`);
  }

  /** The blocks from which a region's bit is read, as a hand of its own finds them. */
  #pathTo(region: number): [block: number, role: Role][] {
    const device = this.#device();
    const key = Math.floor(region / 32576);
    const path: [number, Role][] = [[0, "superblock"]];
    let block = Number(device.block(0).readBigUInt64LE(188));
    for (let depth = 0; depth < 8; depth++) {
      const node = device.block(block);
      path.push([block, "node"]);
      if (node.length < BLOCK) return path;
      let child = 0;
      for (let i = 0; i < Math.min(node.readUInt32LE(16), 252); i++) {
        if (Number(node.readBigUInt64LE(32 + 8 * i)) <= key) child = Number(node.readBigUInt64LE(2048 + 8 * i));
      }
      if (node.readUInt32LE(4) === 2) {
        path.push([child, "array"]);
        return path;
      }
      block = child;
    }
    return path;
  }

  #isSealed(block: number, role: Role): boolean {
    const bytes = this.#damage.blocks.get(block);
    return (
      bytes !== undefined &&
      isSealed(bytes, block, role) &&
      !this.#damage.unreadable.has(block) &&
      !bytes.equals(originalOf(this.#base, block))
    );
  }
}

/** As the program does before it changes anything: how the clone was left means nothing from here on. */
async function unsettle(device: DamagedDevice, { geometry, totalBlocks }: CloneMetadata): Promise<void> {
  const store = await DescriptorStore.open(device, { geometry, blockCount: totalBlocks });
  const descriptor = store.read();
  if (descriptor === null) return;
  await store.write({ ...descriptor, destination: { ...descriptor.destination, settled: null } });
}

function rangesOf(metadata: CloneMetadata): Range[] {
  return [...metadata.hydratedRanges()].map(({ start, end }): Range => [start, end]);
}

function same(a: readonly Range[], b: readonly Range[]): boolean {
  return a.length === b.length && a.every(([start, end], i) => start === b[i]?.[0] && end === b[i]?.[1]);
}

/** The first region of `ranges` that is not among `others`, or null. Both are merged. */
function firstMissing(ranges: readonly Range[], others: readonly Range[]): number | null {
  let i = 0;
  for (const [start, end] of ranges) {
    while (i < others.length && (others[i] as Range)[1] <= start) i++;
    const other = others[i];
    if (other === undefined || start < other[0]) return start;
    if (end > other[1]) return other[1];
  }
  return null;
}

async function* encoded(pieces: Iterable<string>): AsyncGenerator<Uint8Array> {
  for (const piece of pieces) yield Buffer.from(piece);
}

function count(ranges: readonly Range[]): number {
  return ranges.reduce((sum, [start, end]) => sum + end - start, 0);
}
